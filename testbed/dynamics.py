"""Changes of a run at their times: its links' schedules, traces that begin, clients that leave."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from testbed.direction import Direction
from testbed.links import Network
from testbed.schedule import State
from testbed.topology import Node, Plan


class Dynamics:
    """What a plan's nodes have yet to become, counted from where training begins."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s: float | None = None
        changes: list[tuple[float, Node, State | _Presence]] = []
        for node in plan.nodes:
            changes += [(state.at_s, node, state) for state in states(node)]
            changes += [(presence.at_s, node, presence) for presence in _presence(node)]
        self._changes = deque(sorted(changes, key=lambda change: change[0]))

    def begin(self) -> None:
        """Training begins; only the first call counts."""
        if self._began_s is None:
            self._began_s = self._clock()

    @property
    def wait_s(self) -> float:
        """Seconds until something is due; infinity before the beginning and after the end."""
        if self._began_s is None or not self._changes:
            return math.inf
        return max(0.0, self._began_s + self._changes[0][0] - self._clock())

    def apply(self, network: Network) -> list[tuple[str, dict[str, Any]]]:
        """Make the changes that are due; returns an event for each, by node.

        "shaped": its link took a state; "away" and "back": the node is not, or again, to be had.
        """
        events = []
        while self.wait_s == 0 and self._began_s is not None:
            at_s, node, change = self._changes.popleft()
            event: dict[str, Any]
            if isinstance(change, State):
                network.shape(node, change.up, change.down)
                event = {"event": "shaped", "up": _told(change.up), "down": _told(change.down)}
            else:
                event = {"event": "back" if change.there else "away"}
            actual_s = round(self._clock() - self._began_s, 6)
            events.append((node.name, {**event, "at_s": at_s, "actual_s": actual_s}))
        return events


def states(node: Node) -> tuple[State, ...]:
    """What a node's link becomes; one with a trace is shaped at 0 s, so that the trace begins."""
    profile = node.profile
    if profile is None:
        return ()
    traced = profile.up.trace is not None or profile.down.trace is not None
    if traced and (not profile.schedule or profile.schedule[0].at_s > 0):
        return (State(0.0, profile.up, profile.down), *profile.schedule)
    return profile.schedule


class _Presence(NamedTuple):
    at_s: float
    there: bool


def _presence(node: Node) -> list[_Presence]:
    leaves = [_Presence(begins_s, there=False) for begins_s, _ in node.away]
    comes = [_Presence(ends_s, there=True) for _, ends_s in node.away if ends_s < math.inf]
    return leaves + comes


def _told(direction: Direction) -> dict[str, Any]:
    """The fields that are not at their default."""
    default = Direction()
    told = {
        field: msgspec.to_builtins(value)
        for field in Direction.__struct_fields__
        if (value := getattr(direction, field)) != getattr(default, field)
    }
    return told
