"""Changes of a run at their times: its links' schedules, traces that begin, clients that leave."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from testbed import clock
from testbed.network.direction import Direction, changes
from testbed.network.schedule import State
from testbed.network.topology import Node, Plan
from testbed.record import ideal_rounds
from testbed.record.events import Away, Back, Moment, Shaped

Change = TypeVar("Change", State, "_Presence")


class Shapes(Protocol):
    """A network as far as it changes."""

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        """The same as a ``Network`` has it."""


class Dynamics:
    """Changes that a plan's nodes have ahead, counted from where training begins."""

    def __init__(
        self,
        plan: Plan,
        now: Callable[[], float] = clock.monotonic,
        trained_s: float = 0.0,
        shapes: Callable[[Node], bool] = lambda node: True,
    ) -> None:
        """``trained_s``: how long training has gone on before; each link then begins in the state
        that holds at that moment, a trace at its first line. ``shapes``: whether a node's link is
        changed here.
        """
        self._clock = now
        self.began_s: float | None = None
        """When training did, by the clock; before it was last gone on with, too."""
        self._trained_s = trained_s
        changes: list[tuple[float, Node, State | _Presence]] = []
        for node in plan.nodes:
            own = states(node) if shapes(node) else ()
            changes += [(s.at_s, node, s) for s in _from(own, trained_s)]
            # Who is back is there, as all are at first.
            presences = _from(_presence(node), trained_s)
            changes += [(p.at_s, node, p) for p in presences if not p.there or p.at_s > trained_s]
        self._changes = deque(sorted(changes, key=lambda change: change[0]))

    def begin(self, at_s: float | None = None) -> None:
        """Training begins or goes on, now or as begun ``at_s``; only the first call counts."""
        if self.began_s is None:
            self.began_s = self._clock() - self._trained_s if at_s is None else at_s

    def end(self) -> None:
        """Training is over; nothing changes any more."""
        self._changes.clear()

    @property
    def wait_s(self) -> float:
        """Seconds until something is due; infinity before the beginning and after the end."""
        if self.began_s is None or not self._changes:
            return math.inf
        return max(0.0, self.began_s + self._changes[0][0] - self._clock())

    def apply(self, network: Shapes) -> list[tuple[str, Moment]]:
        """Make the changes that are due; returns an event for each, by node.

        Shaped: its link took a state; Away and Back: the node is not, or again, to be had.
        """
        events: list[tuple[str, Moment]] = []
        while self.wait_s == 0 and self.began_s is not None:
            at_s, node, change = self._changes.popleft()
            if isinstance(change, State):
                network.shape(node, change.up, change.down)
            actual_s = round(self._clock() - self.began_s, 6)
            event: Moment
            if isinstance(change, State):
                up, down = (changes(Direction(), each) for each in (change.up, change.down))
                line = ideal_rounds.access(change.up, change.down)
                event = Shaped(at_s=at_s, actual_s=actual_s, up=up, down=down, line=line)
            elif change.there:
                event = Back(at_s=at_s, actual_s=actual_s)
            else:
                event = Away(at_s=at_s, actual_s=actual_s)
            events.append((node.name, event))
        return events


def states(node: Node) -> tuple[State, ...]:
    """States of a node's link; one with a trace is shaped at 0 s, so that the trace begins."""
    profile = node.profile
    if profile is None:
        return ()
    traced = profile.up.trace is not None or profile.down.trace is not None
    if traced and (not profile.schedule or profile.schedule[0].at_s > 0):
        return (State(0.0, profile.up, profile.down), *profile.schedule)
    return profile.schedule


class _Presence(msgspec.Struct, frozen=True):
    at_s: float
    there: bool


def _presence(node: Node) -> list[_Presence]:
    leaves = [_Presence(begins_s, there=False) for begins_s, _ in node.away]
    comes = [_Presence(ends_s, there=True) for _, ends_s in node.away if ends_s < math.inf]
    return sorted(leaves + comes, key=lambda presence: presence.at_s)


def away_since(node: Node, at_s: float) -> float | None:
    """When a node left that is away ``at_s`` seconds after training began; None where it is not."""
    return next((begins_s for begins_s, ends_s in node.away if begins_s <= at_s < ends_s), None)


def _from(changes: Sequence[Change], at_s: float) -> list[Change]:
    """Those that follow, after the one that holds ``at_s`` seconds after training began."""
    over = [change for change in changes if change.at_s <= at_s]
    if not over or not at_s:
        return list(changes)
    found = [msgspec.structs.replace(over[-1], at_s=at_s)]
    found.extend(changes[len(over) :])
    return found
