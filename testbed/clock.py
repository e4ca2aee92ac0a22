"""Emulated time: the machine's monotonic clock, slower.

Either it is ``dilation`` times slower throughout: with a dilation of 10 a second of the emulated
network and its devices takes ten of the machine's, so that few cores have time for what many
devices do. Or it is elastic: it goes as the machine's and stands still while there are not cores
enough (``virtual_time``). All that a run says and all of its limits are seconds of this clock.

What works on real packets, the link backends and their probes, knows the machine's alone, and is
given links that are as much slower (``dilation``); backends whose queue is ours go by an elastic
clock themselves.

Which it is is set before a run's processes are forked, and is the same in all of them. On several
hosts it is the driver's, as far as that is known to each when the run begins (``ahead``).
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from testbed.virtual_time import BESIDE, VirtualTime

Result = TypeVar("Result")

MAX_DILATION = 10_000.0
MOST_S = 1e6
"""A poll takes at most 2**31 ms; who waits longer looks again in between."""
SHORT_S = 0.005
"""A node that computes for no longer waits for no turn."""
LOOK_S = 0.001
"""How often an event loop looks whether a clock that stands still goes on."""

_dilation = 1.0
_ahead_ns = 0
"""Nanoseconds that the driver's monotonic clock is ahead of this machine's."""
_virtual: VirtualTime | None = None


@contextlib.contextmanager
def dilated(dilation: float) -> Iterator[None]:
    """Within, a second of this clock takes ``dilation`` of the machine's."""
    global _dilation
    before, _dilation = _dilation, dilation
    try:
        yield
    finally:
        _dilation = before


@contextlib.contextmanager
def ahead(seconds: float) -> Iterator[None]:
    """Within, this clock is that of another machine, whose own is so far ahead of this one's."""
    global _ahead_ns
    before, _ahead_ns = _ahead_ns, round(1e9 * seconds)
    try:
        yield
    finally:
        _ahead_ns = before


@contextlib.contextmanager
def elastic(nodes: int) -> Iterator[None]:
    """Within, the clock can stand still, for a run of so many nodes."""
    global _virtual
    with contextlib.closing(VirtualTime(nodes)) as _virtual:
        try:
            yield
        finally:
            _virtual = None


def emulated(dilation: float | str, nodes: int) -> contextlib.AbstractContextManager[None]:
    """The clock of a run of so many nodes: "elastic", or so many times slower throughout."""
    return elastic(nodes) if isinstance(dilation, str) else dilated(dilation)


def dilation() -> float:
    return _dilation


def virtual() -> VirtualTime | None:
    """Time that an elastic clock goes by; None: there is none such."""
    return _virtual


def held_s() -> float:
    """Seconds of the machine's that the clock has stood still so far."""
    return _virtual.held_s if _virtual else 0.0


def monotonic() -> float:
    """Seconds, the same in all processes of a run."""
    if _virtual:
        return _virtual.now_ns() / 1e9
    return (time.monotonic() + _ahead_ns / 1e9) / _dilation


def monotonic_ns() -> int:
    """The same in whole nanoseconds."""
    if _virtual:
        return _virtual.now_ns()
    host_ns = time.monotonic_ns() + _ahead_ns
    return host_ns if _dilation == 1 else round(host_ns / _dilation)


def of_links() -> float:
    """Seconds of the clock that links go by, the machine's own unless ours is elastic."""
    return of_links_ns() / 1e9


def of_links_ns() -> int:
    """The same in whole nanoseconds."""
    return _virtual.now_ns() if _virtual else time.monotonic_ns()


def sleep(seconds: float) -> None:
    if not _virtual:
        time.sleep(seconds * _dilation)
        return
    until_s = monotonic() + seconds
    with waiting():
        while (left_s := until_s - monotonic()) > 0:
            if _virtual.is_held:
                _virtual.wait_released(1.0)
            else:
                time.sleep(left_s)


def host_s(seconds: float) -> float:
    """How long that takes on this machine: for a system call that waits, and none takes more than
    MOST_S. After it who waits looks at this clock again, which may have stood still."""
    return min(seconds * _dilation, MOST_S)


class _Node:
    """Node of a run that this process is: it computes, unless it waits."""

    def __init__(self, virtual: VirtualTime, node: int, woken: Callable[[], float]) -> None:
        self._virtual, self._node, self._woken = virtual, node, woken
        virtual.take_place(node)

    def waits(self) -> None:
        self._virtual.waits(self._node)

    def wait_turn(self) -> None:
        self._virtual.wait_turn(self._node)

    def does_beside(self) -> None:
        self._virtual.computes(self._node, BESIDE)

    def goes_on(self) -> None:
        expected_s = self._woken()
        until_ns = self._virtual.now_ns() + round(1e9 * expected_s)
        self._virtual.computes(self._node, until_ns, in_turn=expected_s > SHORT_S)


_node: _Node | None = None


def take_place(node: int, woken: Callable[[], float]) -> None:
    """Have an elastic clock wait for this process, which is that of ``node``, while it computes.

    ``woken`` is called whenever its waiting is over, and returns seconds that it will compute for
    at least, as far as it knows.
    """
    global _node
    if _virtual:
        _node = _Node(_virtual, node, woken)
        _node.goes_on()


def wait_turn() -> None:
    """Return when this process may compute, which may be a matter of who is done first."""
    if _node is not None:
        _node.wait_turn()


def follow(wanted: bool) -> None:
    """Have an elastic clock wait for nodes from now on, or no longer."""
    if _virtual:
        _virtual.follows = wanted


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Within, this node waits and does not compute."""
    if _node is None:
        yield
        return
    _node.waits()
    try:
        yield
    finally:
        _node.goes_on()


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """Within, this node does what its device would not, such as keeping its state.

    An elastic clock stands still for it, but not while packets are on their way.
    """
    if _node is None:
        yield
        return
    _node.does_beside()
    try:
        yield
    finally:
        _node.goes_on()


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, with every sleep and limit within in seconds of this clock."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        if timeout is not None:
            timeout = host_s(timeout)
            if _virtual and _virtual.is_held:
                timeout = max(timeout, LOOK_S)
        with waiting():
            return super().select(timeout)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector())

    def time(self) -> float:
        return monotonic()
