"""Changes of a run's links at their times: a plan's schedules, and traces that begin."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from testbed.direction import Direction
from testbed.links import Network
from testbed.schedule import State
from testbed.topology import Node, Plan


class Dynamics:
    """The states that a plan's links have yet to take, counted from where training begins."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s: float | None = None
        changes = [(state, node) for node in plan.nodes for state in states(node)]
        self._changes = deque(sorted(changes, key=lambda change: change[0].at_s))

    def begin(self) -> None:
        """Training begins; only the first call counts."""
        if self._began_s is None:
            self._began_s = self._clock()

    @property
    def wait_s(self) -> float:
        """Seconds until something is due; infinity before the beginning and after the end."""
        if self._began_s is None or not self._changes:
            return math.inf
        return max(0.0, self._began_s + self._changes[0][0].at_s - self._clock())

    def apply(self, network: Network) -> list[tuple[str, dict[str, Any]]]:
        """Give links the states that are due; returns a "shaped" event for each, by node."""
        events = []
        while self.wait_s == 0 and self._began_s is not None:
            state, node = self._changes.popleft()
            network.shape(node, state.up, state.down)
            event = {
                "event": "shaped",
                "at_s": state.at_s,
                "actual_s": round(self._clock() - self._began_s, 6),
                "up": _told(state.up),
                "down": _told(state.down),
            }
            events.append((node.name, event))
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


def _told(direction: Direction) -> dict[str, Any]:
    """The fields that are not at their default."""
    default = Direction()
    told = {
        field: msgspec.to_builtins(value)
        for field in Direction.__struct_fields__
        if (value := getattr(direction, field)) != getattr(default, field)
    }
    return told
