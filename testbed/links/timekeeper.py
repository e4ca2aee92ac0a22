"""Timekeepers of a link process: the machine's clock, or one that stands still for computing nodes.

An elastic clock is held where a node that computes may be late otherwise: as soon as it could be
done, and before that while more nodes compute than there are cores and no packet is on its way.
TCP has timers of its own, to which a packet that is on its way while the clock stands still takes
as much longer; so computing is done ahead, in the gaps between messages, as far as it is known how
long it takes. Each node then waits for what is left of its device's time.

As many nodes compute at once as there are cores, those first that could be done first.
"""

import time
from pathlib import Path
from typing import Protocol

from testbed import clock
from testbed.processes import cores
from testbed.virtual_time import BESIDE, Computing, Spell, VirtualTime

LENT_S = 0.0005
"""Beyond when its keeper means to look again an elastic clock goes on: what it takes to wake."""
LOOK_S = 0.001
"""How often to look at the nodes while any of them computes."""
IDLE_LOOK_S = 0.003
CHECK_S = 0.5
"""Of holding, after which to look whether those who compute still do."""
MOST_HELD_S = 3600.0
"""Of standing still for the same nodes, after which they are waited for no longer: what computes
for so long without an end has none."""
_AT_WORK = "RSD"
"""States of a process (proc(5)) that will go on by itself."""


class Timekeeper(Protocol):
    """The clock that lines go by."""

    def now(self) -> float:
        """Seconds."""

    def wait_s(self, due: float) -> float:
        """Seconds of the machine's until ``due``, or until ``look`` is wanted before."""

    def look(self, in_flight: bool) -> None:
        """See to the clock. ``in_flight``: whether anything is in the lines."""


class MachineTime:
    """The machine's clock, to which nobody has to see."""

    now = staticmethod(time.monotonic)

    def wait_s(self, due: float) -> float:
        return due - time.monotonic()

    def look(self, in_flight: bool) -> None:
        pass


class ElasticTime:
    """Holds and releases a run's virtual time; of a run there is one."""

    def __init__(self, virtual: VirtualTime, cores: int) -> None:
        self._virtual = virtual
        self._cores = cores
        self._look_at = 0.0
        self._every_s = IDLE_LOOK_S
        self._check_at = 0.0
        self._lends = self._catches_up = False
        self._ignored: set[Spell] = set()
        """Of processes that do not go on."""
        self._given_up: set[Spell] = set()
        self._awaited: set[Spell] = set()
        """Those that are waited for, as long as none of them is over."""
        self._awaited_since = 0.0

    def now(self) -> float:
        return self._virtual.now_ns() / 1e9

    def wait_s(self, due: float) -> float:
        until_look_s = self._look_at - time.monotonic()
        if self._virtual.is_held:
            return until_look_s
        left_s = min(due - self.now(), until_look_s)
        if self._virtual.follows:
            # Where lines have fallen behind, less: a packet is late by as much at most.
            self._virtual.lend(max(0.0, left_s + LENT_S))
            self._lends = True
        elif self._lends:
            self._virtual.give()
            self._lends = False
        return left_s

    def look(self, in_flight: bool) -> None:
        host_s = time.monotonic()
        virtual = self._virtual
        if host_s < self._look_at and not (in_flight and virtual.is_held):
            return
        computing = virtual.computing() if virtual.follows else []
        self._look_at = host_s + (LOOK_S if computing else IDLE_LOOK_S)
        if host_s >= self._check_at:
            self._check_at = host_s + CHECK_S
            self._ignored = self._without_end(computing, host_s)
            self._ignored |= {node.spell for node in computing if not _goes_on(node.pid)}
        if self._ignored:
            computing = [node for node in computing if node.spell not in self._ignored]
        self._give_turns(computing)
        if self._is_late(computing, in_flight):
            virtual.hold()
        else:
            virtual.release()

    def _without_end(self, computing: list[Computing], host_s: float) -> set[Spell]:
        """Spells that have been waited for too long."""
        present = {node.spell for node in computing}
        self._given_up &= present
        awaited = present - self._given_up
        if not awaited or not awaited >= self._awaited or not self._virtual.is_held:
            self._awaited, self._awaited_since = awaited, host_s
        elif host_s - self._awaited_since > MOST_HELD_S:
            self._given_up |= awaited
        return set(self._given_up)

    def _give_turns(self, computing: list[Computing]) -> None:
        """Let as many compute as there are cores."""
        free = self._cores - sum(node.takes_turn for node in computing)
        for node in computing:
            if free <= 0:
                return
            if node.waits:
                self._virtual.give_turn(node)
                free -= 1

    def _is_late(self, computing: list[Computing], in_flight: bool) -> bool:
        """Whether a node could be late if time went on."""
        by_device = [node for node in computing if node.until_ns < BESIDE]
        crowded = len(by_device) > self._cores
        late = bool(by_device) and by_device[0].until_ns <= self._virtual.now_ns()
        # Once packets have to stand still, others are not sent off to do so too.
        self._catches_up = late or (self._catches_up and crowded)
        beside = len(by_device) < len(computing)
        return self._catches_up or (not in_flight and (crowded or beside))


def _goes_on(pid: int) -> bool:
    """Whether a process is neither stopped nor dead."""
    try:
        # Its name, in parentheses, may hold any character.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in _AT_WORK


def of_run() -> Timekeeper:
    """The timekeeper that the present run's clock asks for."""
    virtual = clock.virtual()
    if virtual is None:
        return MachineTime()
    return ElasticTime(virtual, cores.usable())
