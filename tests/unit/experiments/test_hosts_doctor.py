"""`doctor --hosts`: a line a host, with agents on this machine's own loopback addresses."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from experiments import hosts_doctor
from testbed.config_error import ConfigError
from testbed.processes.channel import Channel
from testbed.processes.child import NotForked
from testbed.processes.worker import Ready, Refusal, Result, Worker
from testbed.run.hosts import agent as agents
from testbed.run.hosts.agent import Agent

TOKEN = b"x" * 32
Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """An agent in a process of its own; its address and port."""
    started: list[Worker] = []

    def make(token: bytes = TOKEN, software: dict[str, Any] | None = None) -> str:
        def body(channel: Channel) -> None:
            if software is not None:
                agents.software = lambda: software
            found = Agent("127.0.0.1", 0, token, lambda config: pytest.fail("nobody asks for it"))
            channel.send(Result(f"127.0.0.1:{found.address[1]}"))
            found.serve(lambda text: None)

        worker = Worker("agent", body, answers=Ready | Result | Refusal)
        started.append(worker)
        return str(worker.receive(Result, 30.0).value)

    yield make
    for worker in started:
        worker.close()


def test_who_answers_is_told_by_cores_memory_and_how_far_away_it_is(start: Start) -> None:
    here, there = hosts_doctor.findings(f"127.0.0.1,{start()}", TOKEN)
    assert here.ok and here.what == "host a at 127.0.0.1" and "this machine" in here.found
    assert there.ok and there.what.startswith("host b at 127.0.0.1:")
    assert "GB free" in there.found and "ms there and back" in there.found


def test_an_agent_that_was_asked_has_its_next_run_all_the_same(start: Start) -> None:
    address = start()
    for _ in range(2):
        assert hosts_doctor.findings(f"127.0.0.1,{address}", TOKEN)[1].ok


def test_an_agent_that_can_have_no_process_says_so_and_stays(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_more = Mock(side_effect=NotForked(errno.EAGAIN, "no", "part of a run"))
    monkeypatch.setattr(agents, "Child", no_more)
    address = start()
    for _ in range(2):
        there = hosts_doctor.findings(f"127.0.0.1,{address}", TOKEN)[1]
        assert not there.ok and "start the part of a run: there are as many" in there.found, there


def test_who_calls_and_says_nothing_keeps_nobody_from_an_agent(start: Start) -> None:
    address, _, port = (place := start()).partition(":")
    with contextlib.ExitStack() as owned:
        for _ in range(20):
            owned.enter_context(socket.create_connection((address, int(port))))
        assert hosts_doctor.findings(f"127.0.0.1,{place}", TOKEN)[1].ok


def test_who_would_be_refused_is_named_with_the_reason(start: Start) -> None:
    found = hosts_doctor.findings(
        f"127.0.0.1,{start(b'y' * 32)},{start(software={'python': '2.7'})},127.0.0.1:1", TOKEN
    )
    assert [finding.ok for finding in found] == [True, False, False, False]
    assert "token" in found[1].found
    assert "a run takes the same on all hosts" in found[2].cure
    assert "no agent answers" in found[3].found


def test_an_address_that_is_not_this_machines_is_said() -> None:
    here, _ = hosts_doctor.findings("192.0.2.1,127.0.0.1:1", TOKEN)
    assert not here.ok and here.cure == "name an address of this machine's first"


def test_what_is_no_list_of_hosts_is_refused() -> None:
    with pytest.raises(ConfigError, match="are 1"):
        hosts_doctor.findings("127.0.0.1", TOKEN)
