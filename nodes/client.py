"""A client's process: wait for a round, take part in it, until the server says stop."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from methods import Peer as MethodPeer
from methods.payload.coder import Coder
from nodes.accelerated_compute import memory
from nodes.checkpoint.store import Keeps
from nodes.compute import Compute
from nodes.kinds import METRICS
from nodes.metrics import numbers
from nodes.peer import Overtaken, Peer, Refused, Stopped
from testbed import clock
from testbed.metering import meter
from testbed.network.topology import SERVER
from testbed.processes import heap
from testbed.processes.channel import Channel
from testbed.record import events
from testbed.record.drops import Condensed
from testbed.run.config import RunConfig
from testbed.run.zygote import Address
from testbed.transport.sockets import ClientTransport, Neighbours, Timeout
from testbed.transport.wire import MAX_FRAME_BYTES


class MethodClient(Protocol):
    def round(self, peer: MethodPeer) -> None: ...


def participate(
    config: RunConfig,
    method: MethodClient,
    tests: Mapping[str, tuple[Tensor, Tensor]],
    name: str,
    neighbours: Neighbours,
    samples: int,
    flops: Callable[[int], int | None],
    compute: Compute,
    channel: Channel,
    checkpointer: Keeps | None = None,
    coder: Coder | None = None,
    most_frame_bytes: int = MAX_FRAME_BYTES,
) -> None:
    """Take part in every round that the server begins.

    ``tests``: what the client's own model is evaluated on, where it has one, by what its metrics'
    names then begin with.
    ``neighbours``: addresses of all clients, where they speak to one another; else empty.
    ``flops``: floating-point operations of its part in that round, where known.
    ``checkpointer``: of the client's state after each round. ``coder``: of its messages.
    ``most_frame_bytes``: as of ClientTransport.
    """
    address: Address = channel.receive(timeout_s=30)
    report = Condensed(channel.send)
    transport = ClientTransport(
        name,
        address.host,
        address.port,
        report,
        config.congestion,
        address.keys,
        address.began_ns,
        most_frame_bytes,
    )
    if neighbours:
        transport.listen(*neighbours[name], neighbours)
    # A client that no round chooses hears nothing for as long as the run lasts.
    # One that reduces waits for what all others do, and the server has the limits of that.
    limit_s = config.time_limit_s if config.transport == "gloo" else config.round_timeout_s
    round_s = min(limit_s, config.deadline_s or limit_s)
    peer = Peer(transport, report, limit_s, config.time_limit_s, compute, round_s, name, coder)
    report(events.Ready(samples=samples, round_flops=flops(1)))
    try:
        peer.join(config.join_timeout_s)
        while True:
            compute.rest()
            begins = peer.await_round()
            try:
                if not begins:
                    # All others are done with the round: nobody trains beside this.
                    evaluate = getattr(method, "evaluate", None)
                    with clock.beside():
                        metrics = {
                            f"{whose}{metric}": value
                            for whose, test in tests.items()
                            for metric, value in numbers(evaluate and evaluate(*test)).items()
                        }
                    compute.rest()
                    peer.send(METRICS, {}, to=SERVER, base=None, **metrics)
                    continue
                method.round(peer)
                compute.settle()
            except (Overtaken, Timeout) as reason:
                # Cut off from the server, it waits for whichever round reaches it.
                report(events.Overtaken(reason=str(reason)))
            except Refused:
                pass  # On record as dropped here, and as missed by the server.
            with clock.beside():
                if checkpointer is not None:
                    checkpointer.save(peer.round)
                heap.release()
                facts = compute.facts()
                if facts and (known := flops(peer.round)) is not None:
                    facts["flops"] = known
                if facts and facts["late_s"] is not None and peer.stopped:
                    # Overtaken by the run's end, it lengthens no round.
                    facts["late_s"] = 0.0
                if facts:
                    report(events.Computed(round=peer.round, **facts))
                report(events.Usage(**meter.usage(), **memory()))
    except Stopped:
        # The last one came before the last upload had ended.
        report(events.Usage(**meter.usage(), **memory()))
        transport.close()
