"""The server of an all-reduce: it conducts the rounds, and its model stays the first one."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from methods import Missed
from nodes.allreduce import (
    ADDRESS,
    ADDRESSES,
    BEGIN,
    FIRST_MODEL,
    ORDER,
    REDUCED,
    TRAINED,
    AveragingServer,
)
from nodes.fleet import Fleet
from nodes.kinds import EVALUATE, METRICS
from nodes.metrics import Metrics, numbers
from testbed.transport.wire import Detail, Message

ATTEMPTS = 3
"""All-reduces that a round may begin, each without those whom the one before lost."""


class ReducingServer:
    def __init__(self, method: AveragingServer, clients: Sequence[str]) -> None:
        self.model = method.model
        self._method = method
        self._clients = clients
        self._counts = FIRST_MODEL
        """The model that counts, by the attempt that it came of."""
        self._holders: set[str] | None = None
        """Who was told to adopt it; None: everybody has it."""
        self._members: list[str] = []
        """Of the group that is connected, by rank."""
        self._evaluator: str | None = None

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of the model that all begin with."""
        return self._method.evaluate(inputs, targets)

    async def ask_metrics(self, fleet: Fleet) -> Metrics:
        """Metrics of the model that counts, by who evaluates it; empty where that is lost."""
        if self._evaluator is None:
            return {}
        fleet.conclude()
        try:
            await fleet.send(self._evaluator, EVALUATE, {})
            told = await fleet.receive(self._evaluator, METRICS)
        except Missed:
            return {}
        return numbers(told.details) | numbers(self._method.metrics())

    async def round(self, fleet: Fleet) -> None:
        """Raises RuntimeError where no client that is left has the model that counts."""
        if self._holders is not None and not self._holders & set(fleet.clients):
            raise RuntimeError("every client that had the present model is gone")
        # 1. Who has the model trains.
        await fleet.broadcast(BEGIN, {}, model=self._counts)
        there, givers = set(), set()
        async for told in fleet.gather(TRAINED):
            there.add(told.sender)
            if self._gives(told, fleet):
                givers.add(told.sender)
        # 2. They reduce.
        there = await self._reduce(fleet, there, givers)
        # 3. They adopt the sum, or go back to the model that they had.
        self._evaluator = None
        for client in self._sorted(there):
            able = self._holders is None or client in self._holders
            with suppress(Missed):
                await fleet.send(client, ORDER, {}, adopt=1, attempt=self._counts)
                if able and self._evaluator is None:
                    self._evaluator = client

    async def _reduce(self, fleet: Fleet, there: set[str], givers: set[str]) -> set[str]:
        """All-reduces until one comes about, whose sum then counts; returns who is left."""
        reason = "no client had an update to give"
        for attempt in range(1, ATTEMPTS + 1):
            if not there & givers:
                break
            name = f"{fleet.round}.{attempt}"
            done, failures = await self._attempt(fleet, name, self._sorted(there), givers)
            if done == there:
                self._counts, self._holders = name, done
                return there
            self._members = []
            there = done | failures.keys()
            reason = next(iter(failures.values()), "members were lost")
        for client in self._sorted(there):
            fleet.refuse(client, f"no all-reduce came about: {reason}")
        return there

    async def _attempt(
        self, fleet: Fleet, name: str, members: list[str], givers: set[str]
    ) -> tuple[set[str], dict[str, str]]:
        """One all-reduce: who has the sum, and who says why not; the rest said nothing."""
        new = members != self._members
        if new:
            self._members = members
        fleet.conclude()
        for rank, client in enumerate(members):
            place = {"new": int(new), "rank": rank, "size": len(members)}
            details: dict[str, Detail] = {"attempt": name, "gives": int(client in givers), **place}
            with suppress(Missed):
                await fleet.send(client, ORDER, {}, adopt=0, base=None, **details)
        if new and len(members) > 1:
            await self._introduce(fleet, members)
            fleet.conclude()
        done, failures = set(), {}
        async for told in fleet.gather(REDUCED, clients=members):
            if told.details.get("ok") == 1:
                done.add(told.sender)
            else:
                failures[told.sender] = str(told.details.get("reason"))
        return done, failures

    async def _introduce(self, fleet: Fleet, members: list[str]) -> None:
        """Tell every member where the others are; nothing where one of them does not say."""
        found = {}
        async for told in fleet.gather(ADDRESS, clients=members):
            address = told.tensors.get("address")
            if address is not None and address.dtype == torch.uint8:
                found[told.sender] = address.flatten()
        whole = len(found) == len(members) and len({len(each) for each in found.values()}) == 1
        tensors = {"addresses": torch.stack([found[name] for name in members])} if whole else {}
        for client in members:
            with suppress(Missed):
                await fleet.send(client, ADDRESSES, tensors)

    def _gives(self, told: Message, fleet: Fleet) -> bool:
        """Whether a client's update may enter the sum; where not, why is on record."""
        if told.details.get("model") != self._counts:
            fleet.refuse(told.sender, "it had missed the model of an earlier round")
            return False
        if told.details.get("finite") != 1:
            fleet.refuse(told.sender, "it holds values that are not finite")
            return False
        return self._method.take(told, fleet)

    def _sorted(self, clients: set[str]) -> list[str]:
        return [name for name in self._clients if name in clients]
