"""Hosts of so much memory: who gets how many clients, and a run that has no room on them."""

from collections.abc import Callable, Iterator

import pytest

from experiments import hosts
from testbed.config_error import ConfigError
from testbed.network.hosts import Needs, written
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.processes import cores, free_memory
from testbed.processes.channel import Channel
from testbed.processes.worker import Ready, Refusal, Result, Worker
from testbed.run.config import RunConfig
from testbed.run.hosts.agent import Agent
from testbed.run.hosts.part import Prepared

GB = 10**9
TOKEN = b"x" * 32
NEEDS = Needs(client=GB // 2, server=GB, shared=GB)
LAYOUT = plan([LinkProfile(name="any")] * 20)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Agents' addresses, on hosts with so much memory and four cores, as the driver's has."""
    started: list[Worker] = []
    monkeypatch.setattr(cores, "usable", lambda: 4)

    def make(memory_bytes: int) -> str:
        def body(channel: Channel) -> None:
            free_memory.usable_bytes = lambda: memory_bytes  # type: ignore[assignment]
            agent = Agent("127.0.0.1", 0, TOKEN, lambda config: Prepared(None, LAYOUT, {}))
            channel.send(Result(f"127.0.0.1:{agent.address[1]}"))
            agent.serve(lambda text: None)

        worker = Worker("agent", body, answers=Ready | Result | Refusal)
        started.append(worker)
        return str(worker.receive(Result, 30.0).value)

    yield make
    for worker in started:
        worker.close()


def placed(addresses: list[str], **more: str) -> Plan:
    config = RunConfig(hosts=",".join(["127.0.0.1", *addresses]), clients=20, **more)
    with (
        hosts.called(config, 20, TOKEN) as called,
        hosts.joined(called, config, LAYOUT, {}, NEEDS) as (_, layout),
    ):
        return layout


def test_clients_go_where_there_is_memory_for_them(
    start: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(free_memory, "usable_bytes", lambda: 8 * GB)
    layout = placed([start(3 * GB), start(100 * GB)])
    assert written(layout) == "server=a,client-1:8=a,client-9:12=b,client-13:20=c"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (
            None,
            "20 clients of 0.5 GB each do not fit into the hosts' memory: a has room for 4 more, "
            "with 4 GB free; b has room for 4 more, with 3 GB free. Take fewer clients, or more "
            "hosts",
        ),
        (
            "client-1:19=b",
            "host b has 3 GB free, and what is placed there takes 1 GB that nodes share + 19 "
            "clients x 0.5 GB = 10.5 GB; place fewer nodes there",
        ),
    ],
)
def test_a_run_that_has_no_room_is_refused_with_the_sum_before_any_host_checks_it(
    start: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, place: str | None, reason: str
):
    monkeypatch.setattr(free_memory, "usable_bytes", lambda: 4 * GB)
    monkeypatch.setattr(hosts, "checked", lambda *_: pytest.fail("it was asked to check"))
    with pytest.raises(ConfigError) as error:
        placed([start(3 * GB)], **({} if place is None else {"place": place}))
    assert str(error.value) == reason
