"""Cuts between two hosts of a run neither of which has the server: whom it matters to, and word."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from machines import LIMIT_S, Machines, Make, alive, below, said

TOLD_S = 5.0
TOLD_BESIDE_S = 15.0
"""The same beside other tests."""
ROUNDS_MORE = 2
PLACE = "--place=server=a,client-1=a,client-2:3=b,client-4=c"
RUN = ("--clients=4", "--dilation=1", "--links=userspace", "--rounds=500", "--no-calibrate")
LINKS = ("--profile=rate 10mbit delay 10ms", "--train-samples=200", "--eval-samples=40", *RUN)
FAST = ("--set=batch_size=128", "--set=local_epochs=1")
AMONG_CLIENTS = ("--method=dispfl", "--set=density=0.05")
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


def parted(
    found: Machines, until: Callable[..., Any], told_s: float, *method: str
) -> tuple[Any, float]:
    """A run of ``method`` with hosts b and c cut from each other, and when that was."""
    run = found.launch(*method, PLACE, *LINKS, *FAST)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    (began,) = found.events("run")
    cut_s = (time.monotonic_ns() - began["origin_ns"]) / 1e9
    found.part(1, 2)
    (told,) = until(lambda: found.events("hosts_cut"), "word of the cut", LIMIT_S, run)
    assert told["hosts"] == ["b", "c"] and told["reason"]
    print("told after, s:", told["t"] - cut_s)
    assert 0 < told["t"] - cut_s < told_s
    return run, cut_s


def goes_on(found: Machines, until: Callable[..., Any], run: Any) -> None:
    done = len(found.events("round"))
    until(lambda: len(found.events("round")) >= done + ROUNDS_MORE, "rounds", LIMIT_S, run)


@pytest.mark.thorough
@pytest.mark.quiet
def test_one_of_them_is_gone_where_clients_speak_to_one_another(
    machines: Make, until: Callable[..., Any]
):
    found = machines(3)
    agents = [found.agent(1), found.agent(2)]
    run, cut_s = parted(found, until, TOLD_S, *AMONG_CLIENTS)
    (gone,) = until(lambda: found.events("host_gone"), "word of one of them", LIMIT_S, run)
    # It has the fewer clients.
    assert gone["host"] == "c" and gone["reason"].startswith("cut from host b: ")
    (lost,) = until(lambda: found.events("lost"), "word of its client", LIMIT_S, run)
    assert lost["peer"] == "client-4" and lost["t"] - cut_s < TOLD_S
    assert not alive(below(agents[1]))
    goes_on(found, until, run)
    run.send_signal(signal.SIGINT)
    text = said(run)
    assert run.returncode == 130, text
    assert "hosts b and c reach each other no more: " in text
    assert len(found.events("lost")) == 1
    assert [agent.poll() for agent in agents] == [None, None]
    assert not alive(below(agents[0]))


def test_nothing_becomes_of_it_but_word_where_they_do_not(
    machines: Make, until: Callable[..., Any]
):
    found = machines(3)
    agents = [found.agent(1), found.agent(2)]
    run, _ = parted(found, until, TOLD_BESIDE_S, "--method=fedpeft")
    goes_on(found, until, run)
    run.send_signal(signal.SIGINT)
    text = said(run)
    assert run.returncode == 130, text
    assert "hosts b and c reach each other no more: " in text
    for kind in ("lost", "missed", "host_gone"):
        assert found.events(kind) == []
    assert len(found.events("hosts_cut")) == 1
    rows = found.summary()["hosts"]
    assert [row.get("cut_from") for row in rows] == [None, ["c"], ["b"]]
    assert not any(alive(below(agent)) for agent in agents)
