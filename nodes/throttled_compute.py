"""Real compute at a device's speed: what this machine was quicker at is waited for.

A node's CPU time is measured from one sending or receiving to the next. Its device would have
needed a multiple of that, and before the node sends or waits for something it lets the rest of that
time pass. Where a core was not free in time, the node is late, and says by how much.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from methods.shared import flops
from nodes.spells import UNKNOWN_S, Spells
from testbed import clock
from testbed.metering import meter
from testbed.transport.wire import Message

IDLE_S = 0.0002
"""Shorter gaps in a node's work are none."""
MEASURED_STEPS = 7
STEP_IMAGES = 16
MOST_STEP_FLOPS = 2e10
"""A step of a large model has fewer images, so that measuring stays within seconds."""
MOST_MEASURING_S = 3.0


class Stretched:
    """One device, which does one thing after the other, ``ratio`` times slower than a core here.

    With a ratio of 1 it is a core of this machine for the node alone. Without dilation nothing is
    waited for then, and late is what it waited for a core; with it a core's work takes as many
    emulated seconds as it took the core, which is as much longer on this machine.
    """

    def __init__(
        self,
        ratio: float,
        now: Callable[[], float] = clock.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        waited: Callable[[], float | None] = meter.thread_delay_s,
        first_s: float = UNKNOWN_S,
    ) -> None:
        """``first_s``: device's seconds from the first message to its answer, at least. ``cpu``,
        ``waited``: the machine's seconds in which this thread was on a core, and ready without one.
        """
        self._ratio = ratio
        self._clock = now
        self._cpu = cpu
        self._waited = waited
        self._free_at = 0.0
        """When the device is done with what it was given."""
        self._cpu_s = self._device_s = self._late_s = 0.0
        self._spells = Spells(first_s)
        self._ready_at: float | None = None
        """When the thread became ready, where that is told."""
        self._can_tell = waited() is not None
        self.rest()

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def outgoing(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tensors

    def incoming(self, message: Message) -> Message:
        self._charge()
        return message

    def settle(self) -> None:
        if (left_s := self._left_s()) > 0:
            with self._spells.settling():
                clock.sleep(left_s)
            self._since = self._clock()

    async def settled(self) -> None:
        if (left_s := self._left_s()) > 0:
            await asyncio.sleep(left_s)
            self._since = self._clock()

    def woken(self) -> float:
        if not self._spells.settles:
            waited_s = (self._waited() or 0.0) - self._marks[1]
            self._ready_at = self._clock() - waited_s
        return self._spells.begin()

    def rest(self) -> None:
        self._since, self._ready_at = self._clock(), None
        self._free_at = max(self._free_at, self._since)
        self._marks = self._cpu(), self._waited() or 0.0

    def facts(self) -> dict[str, Any]:
        found = {
            "cpu_s": round(self._cpu_s, 6),
            "device_s": round(self._device_s, 6),
            "late_s": round(self._late_s, 6) if self._can_tell else None,
        }
        self._cpu_s = self._device_s = self._late_s = 0.0
        return found

    def _left_s(self) -> float:
        """Seconds until the device is done; below 0 the node is late, which is counted once."""
        self._charge()
        left_s = self._free_at - self._since
        self._late_s += max(0.0, -left_s)
        self._free_at = max(self._free_at, self._since)
        return left_s

    def _charge(self) -> None:
        """Give the device what was computed since the last time.

        It began when the thread became ready, which may be long after the last time: a server
        waits for its clients in between.
        """
        cpu, waited = self._cpu(), self._waited() or 0.0
        cpu_s, waited_s = cpu - self._marks[0], waited - self._marks[1]
        now = self._clock()
        began, self._ready_at = self._ready_at, None
        if began is None:
            began = now - (cpu_s + waited_s) / clock.dilation()
        if began > self._since + IDLE_S:
            self._free_at = max(self._free_at, began)
        self._free_at += self._ratio * cpu_s
        self._spells.add(self._ratio * cpu_s)
        self._cpu_s += cpu_s
        self._device_s += self._ratio * cpu_s
        self._since, self._marks = now, (cpu, waited)


def host_flops_per_s(model: nn.Module, images: Tensor, steps: int = MEASURED_STEPS) -> float:
    """The rate of one core of this machine in training ``model``: the median of some steps.

    ``images``: float32 (n, channels, height, width) of which a batch is made, n at least 1. The
    model, its gradients and torch's generator are left as they were.
    """
    one = flops.step(model, images[:1], model)
    count = max(1, min(STEP_IMAGES, len(images), int(MOST_STEP_FLOPS / max(1, one))))
    batch, began, rates = images[:count], time.thread_time(), []
    with torch.random.fork_rng(devices=[]):
        for _ in range(1 + steps):
            at = time.thread_time()
            _step(model, batch)
            rates.append(count * one / max(1e-9, time.thread_time() - at))
            if time.thread_time() - began > MOST_MEASURING_S:
                break
    # The first one is slower, for it loads and allocates.
    return statistics.median(rates[1:] or rates)


def _step(model: nn.Module, batch: Tensor) -> None:
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if wanted:
        torch.autograd.grad(model(batch).sum(), wanted, allow_unused=True)
    else:
        with torch.no_grad():
            model(batch)
