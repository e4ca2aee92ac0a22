"""What a driver makes of what programs on other hosts say and write, and of hosts that are gone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_far_programs import Made

from testbed.exec import lines
from testbed.exec.hosts.messages import Left, Tell, Told, Wrote
from testbed.run.hosts.messages import Spawn
from testbed.run.zygote import Reaped


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with contextlib.ExitStack() as owned:
        yield Made(owned, tmp_path)


def test_a_node_elsewhere_is_started_told_and_heard(made: Made, tmp_path: Path) -> None:
    made.channel.send(lines.Signal(15))
    assert [made.end.receive(Spawn, 10), made.end.receive(Tell, 10)] == [
        Spawn(2),
        Tell(2, lines.Signal(15)),
    ]
    made.end.send(Told(2, lines.Up([])))
    made.end.send(Wrote(2, 0, b"one\n"))
    made.end.send(Wrote(2, 1, b"\xff"))
    made.end.send(Told(2, lines.Began(7)))
    assert made.heard(2) == [lines.Up([]), lines.Began(7)]
    # What it has written before it said so is there.
    assert (tmp_path / "out").read_bytes() == b"one\n"
    assert (tmp_path / "err").read_bytes() == b"\xff"
    assert not made.channel.closed


def test_a_node_that_is_left_says_no_more_and_is_not_lost_with_its_host(made: Made) -> None:
    made.end.send(Left(2))
    while not made.channel.closed:
        made.spawner.channel.drain()
    made.end.close()
    while not made.hosts.gone():
        assert made.spawner.channel.drain() == []


def test_who_runs_on_a_host_that_is_gone_is_lost_by_that(made: Made) -> None:
    made.end.close()
    found: list[object] = []
    while not found:
        found = list(made.spawner.channel.drain())
    assert found == [Reaped(2, 0, "host b is gone")]
    assert made.channel.closed


def test_words_of_nodes_that_were_not_started_are_nobodys(made: Made, tmp_path: Path) -> None:
    made.end.send(Wrote(1, 0, b"x"))
    made.end.send(Told(99, lines.Began(1)))
    made.end.send(Told(2, lines.Began(7)))
    assert made.heard(1) == [lines.Began(7)]
    assert (tmp_path / "out").read_bytes() == b""
