"""Virtual time, which a run's processes share: the machine's, less what it has stood still.

It stands still while more nodes compute than there are cores for, so that computing takes a node
as many seconds of it as its device needs and not as many as the machine was busy with all of them.
What waits for it, packets in our lines among that, waits on; what computes goes on.

One process keeps it, the one that carries the packets (``testbed.links.timekeeper``). It holds and
releases it, and lends it ahead: time goes on no further than that process will look at its lines
again, and so none of its own waiting for a core makes packets late. Each node says here since when
it computes; for a long spell it waits for its turn, for processes that share few cores hinder one
another. All is in memory that they share, made before they are forked, in words of 64 bits, which
are read and written whole. Time goes back for nobody: its keeper says so before it changes how it
goes, and who reads it waits that moment.
"""

import contextlib
import mmap
import os
import select
import signal
import time
from typing import NamedTuple

_STATE, _LENT, _FOLLOWS, _LAST_STATE, _NODES = 0, 1, 2, 3, 4
"""Words: see ``now_ns``, ``follows`` and ``_change``; from the last one on there are three of each
node."""
_WITHOUT_END = 2**63 - 1
_CHANGES = -(2**63)
"""In place of the state, while its keeper changes that."""
_WAITS = 0
BESIDE = 2**62
"""In place of when a node will not be done before: it does what its device would not do."""
_NO_TURN, _TURN, _NEEDS_NONE = range(3)
_TURN_SIGNAL = signal.SIGURG
"""Says that it is a node's turn. Ignored by default, should it come to another thread."""
_LOOK_S = 1.0
_CHANGED_S = 1.0
"""Who has changed time for longer has died meanwhile."""


Spell = tuple[int, int]
"""A node's computing: which node, and before when it will not be done."""


class Computing(NamedTuple):
    """A node that computes, or would."""

    until_ns: int
    """It will not be done before; BESIDE: see there."""
    node: int
    pid: int
    waits: bool
    """For its turn."""
    takes_turn: bool
    """It is its turn, which ends with its spell."""

    @property
    def spell(self) -> Spell:
        return self.node, self.until_ns


class VirtualTime:
    """Nanoseconds that are the same in all processes; owns the memory and a pipe."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._words = memoryview(mmap.mmap(-1, 8 * (_NODES + 3 * nodes))).cast("q")
        self._words[_LENT] = _WITHOUT_END
        self._open, self._opens = os.pipe()
        """Readable while time goes on."""
        for end in (self._open, self._opens):
            os.set_blocking(end, False)
        os.write(self._opens, b"\0")
        self._gate = select.poll()
        self._gate.register(self._open, select.POLLIN)

    @property
    def gate(self) -> int:
        """The descriptor of the pipe's end that nodes wait at."""
        return self._open

    def now_ns(self) -> int:
        words = self._words
        while True:
            # Below 0 it stands still, and is that; else it is as many behind the machine's.
            state: int = words[_STATE]
            if state == _CHANGES:
                self._wait_changed()
                continue
            if state < 0:
                return -state
            now_ns, lent_ns = time.monotonic_ns() - state, words[_LENT]
            if words[_STATE] == state:
                return now_ns if now_ns < lent_ns else lent_ns

    @property
    def is_held(self) -> bool:
        state: int = self._words[_STATE]
        return (self._words[_LAST_STATE] if state == _CHANGES else state) < 0

    @property
    def held_s(self) -> float:
        """Seconds of the machine's that it has stood still."""
        return (time.monotonic_ns() - self.now_ns()) / 1e9

    @property
    def follows(self) -> bool:
        """Whether it may be held: while rounds go on."""
        return bool(self._words[_FOLLOWS])

    @follows.setter
    def follows(self, wanted: bool) -> None:
        self._words[_FOLLOWS] = wanted

    def lend(self, ahead_s: float) -> None:
        """Let it go on for ``ahead_s`` from where it is; its keeper lends again before."""
        state, now_ns = self._change()
        self._words[_LENT], lent_ns = now_ns + int(1e9 * ahead_s), self._words[_LENT]
        ran_out = state >= 0 and now_ns == lent_ns
        self._words[_STATE] = time.monotonic_ns() - now_ns if ran_out else state

    def give(self) -> None:
        """Let it go on without end."""
        self.lend(0.0)
        self._words[_LENT] = _WITHOUT_END

    def hold(self) -> None:
        """Have it stand still."""
        if not self.is_held:
            self._words[_STATE] = -self._change()[1]
            with contextlib.suppress(BlockingIOError):
                os.read(self._open, 2)

    def release(self) -> None:
        """Have it go on from where it stands."""
        if self.is_held:
            self._words[_STATE] += time.monotonic_ns()
            os.write(self._opens, b"\0")

    def wait_released(self, most_s: float) -> None:
        """Return when it goes on, or after ``most_s`` seconds of the machine's."""
        self._gate.poll(1000 * most_s)

    def take_place(self, node: int) -> None:
        """This process is that of ``node``."""
        self._words[_NODES + self.nodes + node] = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {_TURN_SIGNAL})

    def computes(self, node: int, until_ns: int, *, in_turn: bool = False) -> None:
        """``node`` computes from now on, and will not be done before ``until_ns``.

        ``in_turn``: it calls ``wait_turn`` before it has much to do.
        """
        self._words[_NODES + 2 * self.nodes + node] = _NO_TURN if in_turn else _NEEDS_NONE
        self._words[_NODES + node] = until_ns

    def wait_turn(self, node: int) -> None:
        """Return when it is the turn of ``node``, if it needs one."""
        words, turn = self._words, _NODES + 2 * self.nodes + node
        while words[turn] == _NO_TURN and self.follows:
            if hasattr(signal, "sigtimedwait"):
                signal.sigtimedwait({_TURN_SIGNAL}, _LOOK_S)
            else:
                time.sleep(0.001)

    def waits(self, node: int) -> None:
        """``node`` waits from now on."""
        self._words[_NODES + node] = _WAITS

    def computing(self) -> list[Computing]:
        """Nodes that compute or wait for a turn, those first that could be done first."""
        count = self.nodes
        words = self._words[_NODES:].tolist()
        found = [
            Computing(until, node, words[count + node], turn == _NO_TURN, turn == _TURN)
            for node, until in enumerate(words[:count])
            if until
            for turn in (words[2 * count + node],)
        ]
        return sorted(found)

    def give_turn(self, computing: Computing) -> None:
        """It is that node's turn."""
        self._words[_NODES + 2 * self.nodes + computing.node] = _TURN
        with contextlib.suppress(ProcessLookupError):
            os.kill(computing.pid, _TURN_SIGNAL)

    def close(self) -> None:
        os.close(self._open)
        os.close(self._opens)

    def _change(self) -> tuple[int, int]:
        """The state and what time it is, which nobody reads from now on until the next state.

        Who has read it before has read no later one.
        """
        words = self._words
        state: int = words[_STATE]
        words[_LAST_STATE] = state
        words[_STATE] = _CHANGES
        return state, -state if state < 0 else min(time.monotonic_ns() - state, words[_LENT])

    def _wait_changed(self) -> None:
        """Return when there is a state again: by its keeper, or the last one if that has died."""
        until_s = time.perf_counter() + _CHANGED_S
        while self._words[_STATE] == _CHANGES:
            if time.perf_counter() > until_s:
                self._words[_STATE] = self._words[_LAST_STATE]
                return
            time.sleep(0.00001)
