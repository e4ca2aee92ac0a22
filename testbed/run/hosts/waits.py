"""Waits of a driver for its hosts, and for its own part of a run while a host may be lost."""

import select
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from testbed.links.process import Facts
from testbed.links.tunnel import silence
from testbed.network.underlay import Path
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarHost

UP_LIMIT_S = 30.0
"""For the other hosts' parts of the network, once the driver's own is there."""


class Source(Protocol):
    """Something that can be waited for."""

    def fileno(self) -> int: ...


def for_links(them: Hosts, local: Facts) -> None:
    """Wait until all others' parts are there as the driver's own is, which has said ``local``.

    Raises:
        LinkError: naming the host whose part is not, and why.
    """
    for_all(them, lambda far: far.facts is not None, UP_LIMIT_S, "no links", without=False)
    told = [local["underlay"], *(far.facts["underlay"] for far in them.others if far.facts)]
    ways = [way for each in msgspec.convert(told, list[list[Path]]) for way in each]
    them.paths = list({(way.sender, way.receiver): way for way in ways}.values())


def for_all(
    them: Hosts,
    done: Callable[[FarHost], bool],
    limit_s: float,
    missing: str,
    *,
    without: bool = True,
) -> None:
    """Hear hosts until each is ``done``; one that is not within ``limit_s`` is gone.

    ``without``: the run goes on without one that is; else LinkError names it, at once.
    """
    until = time.monotonic() + limit_s
    while waits := [far for far in them.there if not done(far)]:
        if not without:
            them.refuse_gone()
        if time.monotonic() >= until:
            for far in waits:
                them.lose(far, f"{missing} within {limit_s:g} s")
            break
        for_words(them, until)
    if not without:
        them.refuse_gone()


def for_own(them: Hosts, own: Source, limit_s: float) -> bool:
    """Hear hosts until ``own``, the driver's, can be read; whether it can within ``limit_s``.

    Raises:
        LinkError: a host is gone, without which no run begins.
    """
    until = time.monotonic() + limit_s
    waiter = select.poll()
    waiter.register(own, select.POLLIN)
    while not (can := bool(waiter.poll(0))) and time.monotonic() < until:
        them.refuse_gone()
        for_words(them, until, own)
    return can


def for_words(them: Hosts, until_s: float, *more: Source) -> None:
    """Wait a while for what hosts say, or until ``more`` do, and take what hosts have said."""
    waiter = select.poll()
    # One that has told of its end closes its line, which stays to be read.
    lines = (far.line for far in them.there if far.closing is None)
    for each in (*lines, *more):
        waiter.register(each, select.POLLIN)
    # By what they say of a host that is cut off its line need not be waited for.
    if them.links is not None and them.links.failure() is None:
        waiter.register(them.links, select.POLLIN)
    left_s = max(0.0, until_s - time.monotonic())
    waiter.poll(1000 * min(left_s, silence.LOOK_S))
    them.pump()
    them.hear_links()
