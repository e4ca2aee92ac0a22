"""Real compute at a device's speed: by clocks that are told the time, and the host's rate."""

import asyncio
import time
from typing import Any

import pytest
import torch
from torch import nn

from methods.shared import flops
from nodes.throttled_compute import Stretched, host_flops_per_s
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed import clock
from testbed.transport.wire import Header, Message

MESSAGE = Message("server", Header("model", 1, 0), {}, 0, 9)
IDLE_S = 5.0


class Thread:
    """A thread of which the test says what it does with its time, in the machine's seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.on_core = self.waited = 0.0
        self.slept: list[float] = []
        monkeypatch.setattr(time, "sleep", self._sleep)

    def device(self, ratio: float) -> Stretched:
        return Stretched(ratio, lambda: self.now, lambda: self.on_core, lambda: self.waited)

    def compute(self, seconds: float, waiting: float = 0.0) -> None:
        self.now += (seconds + waiting) / clock.dilation()
        self.on_core += seconds
        self.waited += waiting

    def idle(self, seconds: float = IDLE_S) -> None:
        self.now += seconds

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds / clock.dilation()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    return Thread(monkeypatch)


def test_a_device_takes_its_multiple_of_the_time_on_a_core(thread: Thread) -> None:
    device = thread.device(3.0)
    thread.compute(2.0)
    device.settle()
    assert thread.slept == [pytest.approx(4.0)]
    assert device.facts() == {"cpu_s": 2.0, "device_s": 6.0, "late_s": 0.0}
    assert device.facts() == {"cpu_s": 0.0, "device_s": 0.0, "late_s": 0.0}


def test_waiting_for_a_core_is_hidden_in_the_time_of_a_slower_device(thread: Thread) -> None:
    device = thread.device(3.0)
    thread.compute(2.0, waiting=3.0)
    device.settle()
    assert thread.slept == [pytest.approx(1.0)]
    assert device.facts()["late_s"] == 0


def test_what_is_longer_than_the_device_needs_is_late_and_counts_once(thread: Thread) -> None:
    device = thread.device(3.0)
    thread.compute(2.0, waiting=9.0)
    device.settle()
    device.settle()
    assert thread.slept == []
    assert device.facts() == {"cpu_s": 2.0, "device_s": 6.0, "late_s": 5.0}


def test_a_core_of_its_own_is_late_by_what_it_waited_for_one(thread: Thread) -> None:
    device = thread.device(1.0)
    thread.idle()
    thread.compute(2.0, waiting=1.5)
    device.settle()
    assert thread.slept == []
    assert device.facts() == {"cpu_s": 2.0, "device_s": 2.0, "late_s": 1.5}


def test_nothing_is_computed_while_a_message_is_waited_for(thread: Thread) -> None:
    device = thread.device(3.0)
    thread.compute(1.0)
    device.settle()
    thread.idle()
    assert device.incoming(MESSAGE) is MESSAGE
    thread.compute(2.0)
    device.settle()
    assert thread.slept == [pytest.approx(2.0), pytest.approx(4.0)]
    assert device.facts()["late_s"] == 0


def test_a_wake_up_that_waited_for_a_core_is_made_good_by_a_slower_device(thread: Thread) -> None:
    """The message comes, and the thread that is to read it gets no core for a second."""
    device = thread.device(3.0)
    thread.idle()
    thread.compute(0.1, waiting=1.0)
    device.incoming(MESSAGE)
    thread.compute(2.0)
    device.settle()
    assert thread.slept == [pytest.approx(3 * 2.1 - 3.1)]
    assert device.facts()["late_s"] == 0


def test_lateness_before_an_idle_time_delayed_nothing(thread: Thread) -> None:
    """A server puts one update away late, and then waits for the next one anyway."""
    device = thread.device(1.0)
    thread.compute(0.1, waiting=1.0)
    device.incoming(MESSAGE)
    thread.idle()
    thread.compute(0.1)
    device.settle()
    assert device.facts()["late_s"] == 0


@pytest.mark.parametrize(
    ("waiting", "sleeps", "late_s"), [(1.0, 5.0, 0.0), (6.0, 0.0, 0.0), (8.0, 0.0, 0.5)]
)
def test_with_dilation_a_core_of_its_own_is_as_much_slower(
    thread: Thread, waiting: float, sleeps: float, late_s: float
) -> None:
    """Two seconds on a core are two emulated ones, which are eight here."""
    with clock.dilated(4):
        device = thread.device(1.0)
        thread.idle()
        thread.compute(2.0, waiting)
        device.settle()
    assert sum(thread.slept) == pytest.approx(sleeps)
    assert device.facts() == {"cpu_s": 2.0, "device_s": 2.0, "late_s": pytest.approx(late_s)}


def test_an_evaluation_is_not_the_devices_work(thread: Thread) -> None:
    device = thread.device(3.0)
    thread.compute(7.0, waiting=2.0)
    device.rest()
    thread.compute(1.0)
    device.settle()
    assert thread.slept == [pytest.approx(2.0)]
    assert device.facts() == {"cpu_s": 1.0, "device_s": 3.0, "late_s": 0.0}


def test_two_conversations_share_one_device(thread: Thread) -> None:
    device = thread.device(3.0)
    ends = []

    async def talk() -> None:
        thread.compute(0.001)
        await device.settled()
        ends.append(time.monotonic())

    async def both() -> None:
        await asyncio.gather(talk(), talk())

    began = time.monotonic()
    asyncio.run(both())
    # The told clock stands still meanwhile: the second one waits for both.
    assert ends[0] - began >= 0.002
    assert ends[1] - began >= 0.004
    assert device.facts()["device_s"] == pytest.approx(0.006)


def test_where_waiting_for_a_core_is_not_told_lateness_is_unknown() -> None:
    device = Stretched(1.0, waited=lambda: None)
    device.settle()
    assert device.facts()["late_s"] is None


# The host's rate


def model() -> nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec(side=8, patch=4, width=8, depth=2, heads=2)
    return VisionTransformer(spec, 3)


def test_the_hosts_rate_is_operations_over_time_on_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    images, steps = torch.rand(4, 1, 8, 8), 0
    one = flops.step(model(), images[:1], model())

    def told() -> float:
        nonlocal steps
        steps += 1
        return steps * 0.01

    monkeypatch.setattr(time, "thread_time", told)
    net: Any = model()
    one = flops.step(net, images[:1], net)
    assert host_flops_per_s(net, images) == pytest.approx(4 * one / 0.01)


def test_measuring_leaves_the_model_and_the_generator_as_they_were() -> None:
    net, images = model(), torch.rand(4, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert host_flops_per_s(net, images) > 1e5
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_model_of_which_nothing_is_trained_has_a_rate() -> None:
    net = model().requires_grad_(False)
    assert host_flops_per_s(net, torch.rand(1, 1, 8, 8)) > 1e5
