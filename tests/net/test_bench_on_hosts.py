"""Benches on several machines: their runs have the same agents, one after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import LIMIT_S, Machines, said

BENCH = """
seeds = [0, 1]

[run]
method = "fedavg"
profile = "rate 10mbit delay 10ms"
clients = 2
links = "userspace"
train_samples = 200
options = { batch_size = 128, local_epochs = 1 }

[[rows]]
name = "own"
"""
PLACE = "--place=server=a,client-1=a,client-2=b"
pytestmark = [pytest.mark.timeout(4 * LIMIT_S), pytest.mark.patient]


@pytest.fixture
def machines(userspace_links: None, root: None, tmp_path: Path) -> Iterator[Machines]:
    (tmp_path / "bench.toml").write_text(BENCH)
    made = Machines(2, tmp_path)
    yield made
    made.close()


def bench(machines: Machines, *flags: str) -> Any:
    return machines.bench(f"--preset={machines.folder / 'bench.toml'}", *flags)


def places(machines: Machines) -> list[str]:
    """Where each run's nodes were."""
    return [event["place"] for event in machines.events("hosts", "bench")]


def test_runs_of_a_bench_have_the_same_agents_and_are_not_made_again(machines: Machines):
    absent = bench(machines)
    assert "host b at 10.1.0.2:7400: no agent answers" in said(absent)
    assert absent.returncode == 2 and not places(machines)
    agent = machines.agent(1)
    made = bench(machines, "--rounds=1", PLACE)
    text = said(made)
    assert made.returncode == 0, text
    assert places(machines) == ["server=a,client-1=a,client-2=b"] * 2
    assert agent.poll() is None
    said(agent)
    # What is there needs no host, and so may be told of without any.
    again = bench(machines, "--rounds=1", "--place=client-2=a")
    text = said(again)
    assert again.returncode == 0, text
    assert text.count(": there already") == 2 and len(places(machines)) == 2


def test_a_host_that_is_lost_fails_its_run_and_the_bench_goes_on_once_it_is_back(
    machines: Machines, until: Callable[..., Any]
):
    agent = machines.agent(1)
    made = bench(machines, "--rounds=6", PLACE)
    until(lambda: machines.events("round", "bench"), "a round", LIMIT_S, made)
    agent.kill()
    text = said(made)
    assert made.returncode == 1
    first, second = (line for line in text.splitlines() if line.startswith("no result of "))
    assert ": failed: host b is gone: " in first and "is gone" not in second
    assert ": error: hosts = " in second and "no agent answers" in second
    machines.agent(1)
    again = bench(machines, "--rounds=6", PLACE)
    text = said(again)
    assert again.returncode == 0, text
    assert text.count(": done after ") == 2
