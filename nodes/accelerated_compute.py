"""Real compute on an accelerator: what waits for the device computes.

Calls of a device return before it is done. So before a node sends or waits it waits until its
device is; that time, of which its thread's CPU time may have nothing, counts as the CPU time does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import torch

from nodes.device_tensors import DeviceTensors
from nodes.throttled_compute import Stretched
from testbed import clock
from testbed.metering import meter
from testbed.transport.wire import Message


class Accelerated(Stretched):
    """One device of this machine, which its nodes share as processes do."""

    def __init__(
        self,
        device: torch.device,
        synchronize: Callable[[], object],
        now: Callable[[], float] = clock.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        waited: Callable[[], float | None] = meter.thread_delay_s,
        wall: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``synchronize`` returns when the device is done. ``wall``: the machine's seconds."""
        self.place = DeviceTensors(device)
        self._synchronize = synchronize
        self._thread_s, self._wall, self._delay_s = cpu, wall, waited
        self._blocked_s = 0.0
        """For the device, neither on a core nor waiting for one."""
        # How quick a device is shows in its first spell alone.
        super().__init__(1.0, now, lambda: self._thread_s() + self._blocked_s, waited, first_s=0.0)

    def active(self) -> AbstractContextManager[Any]:
        return self.place

    def incoming(self, message: Message) -> Message:
        message = super().incoming(message)
        return msgspec.structs.replace(message, tensors=self.place.moved(message.tensors))

    def rest(self) -> None:
        self._await_device()
        super().rest()

    def _charge(self) -> None:
        self._await_device()
        super()._charge()

    def _await_device(self) -> None:
        wall, cpu, delay = self._wall(), self._thread_s(), self._delay_s() or 0.0
        self._synchronize()
        busy_s = self._thread_s() - cpu + (self._delay_s() or 0.0) - delay
        self._blocked_s += max(0.0, self._wall() - wall - busy_s)


def of_cuda(name: str, seed: int) -> Accelerated:
    """The compute of this process on a device of CUDA's, such as ``cuda:0``; initialises that.

    ``seed``: of what the device draws by itself, as dropout does.
    """
    device = torch.device(name)
    torch.cuda.set_device(device)
    torch.cuda.manual_seed(seed)
    # As exact as float32 is on a CPU; matrix products are by default, convolutions are not.
    torch.backends.cudnn.allow_tf32 = False
    return Accelerated(device, torch.cuda.synchronize)


def memory() -> dict[str, Any]:
    """The most that this process' tensors have taken on its device since the last call, in MB of
    10^6 bytes, as a "usage" event has it; empty where it has none."""
    if not torch.cuda.is_initialized():
        return {}
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_accelerator_mb": round(most / 1e6, 2)}
