"""The link process and its owner: what each says that the other cannot read."""

import os
import select
import sys

import pytest

from testbed.links.interface import LinkError
from testbed.links.process import Handed, LinkProcess, Shape, say_up
from testbed.network.direction import Direction
from testbed.processes.worker import Stop

LIMIT_S = 30.0


def until_told(channel, counters):
    """Say that links are up, and do what the owner says; how often what was shaped."""
    say_up(channel, {"backend": "none"})
    shaped = 0
    while not isinstance(order := channel.receive(), Stop):
        assert order == Shape(1, Direction(rate_kbit=5.0), Direction())
        shaped += 1
    return {"shaped": shaped}


def test_a_shape_reaches_it_whole() -> None:
    process = LinkProcess(2, until_told, LIMIT_S)
    held = process.facts.pop("privileges")
    assert process.facts == {"backend": "none"}
    if sys.platform == "linux":
        assert held.startswith("no capability, no new privileges")
    for _ in range(2):
        process.shape(1, Direction(rate_kbit=5.0), Direction())
    assert process.down(LIMIT_S) == {"shaped": 2}


def test_links_whose_process_says_what_it_cannot_have_failed() -> None:
    def garble(channel, counters):
        say_up(channel, {})
        channel.receive()
        os.write(channel.fileno(), b'{"type":"shaped"}\n')
        channel.receive()

    process = LinkProcess(1, garble, LIMIT_S)
    process.shape(0, Direction(), Direction())
    assert select.select([process.channel], [], [], LIMIT_S)[0]
    for _ in range(2):
        assert process.failure() == (
            "the link process sent what cannot be read: Invalid value 'shaped' - at `$.type`"
        )
    assert process.down(LIMIT_S) == {}


def test_links_whose_process_is_told_what_it_cannot_have_failed() -> None:
    process = LinkProcess(1, until_told, LIMIT_S)
    process.channel.send(Handed())
    assert select.select([process.channel], [], [], LIMIT_S)[0]
    assert str(process.failure()).startswith("the owner sent what cannot be read: ")
    process.down(LIMIT_S)


def test_a_process_that_begins_with_something_else_is_not_up() -> None:
    def hand(channel, counters):
        channel.send(Handed())
        channel.receive()

    with pytest.raises(LinkError, match=r"start the link process: .* said 'handed' and not 'up'"):
        LinkProcess(1, hand, LIMIT_S)
