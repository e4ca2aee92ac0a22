"""A client of an all-reduce: it trains, gives its part and takes the sum."""

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.shared.averaging import rounded
from methods.shared.local_training import load_trainable, trainable_state
from methods.shared.objective import scores
from nodes.allreduce import (
    ADDRESS,
    ADDRESSES,
    BEGIN,
    FIRST_MODEL,
    ORDER,
    REDUCED,
    TRAINED,
    AveragingClient,
)
from nodes.compute import Compute
from nodes.device_tensors import moved
from nodes.peer import Peer
from testbed import clock
from testbed.metering import retransmissions
from testbed.network.topology import SERVER
from testbed.record.events import Connection, Reduced, Report
from testbed.transport.gloo import Group, ReduceFailed
from testbed.transport.wire import Message


class ReducingClient:
    def __init__(
        self,
        method: AveragingClient,
        samples: int,
        host: str,
        names: Mapping[str, str],
        limit_s: float,
        compute: Compute,
        report: Report,
        congestion: str | None = None,
    ) -> None:
        """``host``: where it listens. ``names``: every client's, by its address.

        ``limit_s``: of an all-reduce. ``congestion``: of the connections among clients; None leaves
        the host's default.
        """
        self._method = method
        self._samples = samples
        self._host = host
        self._names = names
        self._limit_s = limit_s
        self._compute = compute
        self._report = report
        self._congestion = congestion
        self._has = FIRST_MODEL
        """Which model the method's is."""
        self._candidate: tuple[str, Tensor] | None = None
        """A sum that may come to count, and the attempt it came of."""
        self._group: Group | None = None

    def round(self, peer: Peer) -> None:
        # 1. Train, unless a round was missed.
        counts = peer.receive(BEGIN).details["model"]
        self._adopt(counts)
        start = trainable_state(self._method.model)
        try:
            bucket = self._update(peer, start, self._has == counts)
            # 2. Reduce, as often as the server says.
            while not (order := peer.receive(ORDER)).details["adopt"]:
                self._candidate = None
                self._reduce(peer, order, bucket)
        finally:
            load_trainable(self._method.model, start)
        # 3. The sum is the new model, if the server says so.
        self._adopt(order.details["attempt"])

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of the model that counts."""
        return scores(self._method.model, inputs, targets)

    def _adopt(self, counts: object) -> None:
        if self._candidate is not None and self._candidate[0] == counts:
            name, bucket = self._candidate
            load_trainable(self._method.model, mean(bucket, trainable_state(self._method.model)))
            self._has = name
        self._candidate = None

    def _update(self, peer: Peer, start: dict[str, Tensor], trains: bool) -> Tensor:
        """The part that this client gives, said to the server."""
        state, details = self._method.update(start) if trains else (start, {})
        bucket = flat(moved(self._compute.outgoing(state), "cpu"), self._samples)
        finite = bool(torch.isfinite(bucket).all())
        peer.send(TRAINED, {}, to=SERVER, model=self._has, finite=int(finite), base=None, **details)
        return bucket

    def _reduce(self, peer: Peer, order: Message, bucket: Tensor) -> None:
        """One all-reduce, and a word to the server of what came of it."""
        total = bucket.clone() if order.details["gives"] else torch.zeros_like(bucket)
        if order.details["new"]:
            self._leave()
        began_ns, before, reason = clock.monotonic_ns(), self._received(), ""
        connected_ns = began_ns
        try:
            if int(order.details["size"]) > 1:
                group = self._join(peer, order)
                connected_ns = clock.monotonic_ns()
                group.reduce(total)
            self._candidate = (str(order.details["attempt"]), total)
        except ReduceFailed as error:
            reason = str(error)[:200]
        ended_ns, after = clock.monotonic_ns(), self._received()
        if reason:
            self._leave()
        self._report(
            Reduced(
                round=peer.round,
                members=int(order.details["size"]),
                began_ns=began_ns,
                connected_ns=connected_ns,
                ended_ns=ended_ns,
                received={name: count - before.get(name, 0) for name, count in after.items()},
                reason=reason or None,
            )
        )
        peer.send(REDUCED, {}, ok=int(not reason), reason=reason)

    def _join(self, peer: Peer, order: Message) -> Group:
        """The group of the order's members.

        Raises:
            ReduceFailed: one of them is not to be had.
        """

        def exchange(own: bytes) -> list[bytes]:
            peer.send(ADDRESS, {"address": torch.frombuffer(bytearray(own), dtype=torch.uint8)})
            told = peer.receive(ADDRESSES).tensors.get("addresses")
            if told is None:
                raise ReduceFailed("another member was lost")
            return [bytes(row) for row in told.numpy()]

        if order.details["new"]:
            rank, size = int(order.details["rank"]), int(order.details["size"])
            self._group = Group(self._host, rank, size, self._limit_s, exchange, self._congestion)
            for used in self._group.congestion:
                self._report(Connection(congestion=used))
        if self._group is None:
            raise ReduceFailed("this member has left its group")
        return self._group

    def _leave(self) -> None:
        """Whoever waits for this member in its group fails at once."""
        if self._group is not None:
            self._group.close()
        self._group = None

    def _received(self) -> dict[str, int]:
        """Bytes that came from each other client over the connections that are open."""
        found = retransmissions.received() or {}
        return {self._names[peer]: count for peer, count in found.items() if peer in self._names}


def flat(tensors: Mapping[str, Tensor], weight: int) -> Tensor:
    """weight * tensors, one after the other, and the weight: float32 (parameters + 1,)."""
    parts = [tensor.flatten().float() * weight for tensor in tensors.values()]
    return torch.cat([*parts, torch.tensor([float(weight)])])


def mean(total: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A sum of such buckets over its weight, in the names, shapes and dtypes of ``like``."""
    sizes = [tensor.numel() for tensor in like.values()]
    parts = (total[:-1] / total[-1]).split(sizes)
    return {
        name: rounded(part.view(tensor.shape), tensor.dtype)
        for part, (name, tensor) in zip(parts, like.items(), strict=True)
    }
