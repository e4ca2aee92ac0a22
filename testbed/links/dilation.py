"""Dilation of links: as much slower as the run's clock, so that they look as asked.

Rates are divided, times multiplied; what counts packets or chances stays. A queue then holds as
many packets, a delay as many bits, and TCP the same window: a run under dilation differs from one
without in what follows a clock of the kernel's, such as TCP's timers.
"""

import msgspec

from testbed.links.interface import Backend, Endpoint, LinkCounters, Network
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.topology import Node, Plan

_TIMES = ("delay_ms", "jitter_ms", "queue_ms")


def direction(line: Direction, dilation: float) -> Direction:
    """The line whose packets take ``dilation`` times as long."""
    changed: dict[str, object] = {field: getattr(line, field) * dilation for field in _TIMES}
    if line.rate_kbit is not None:
        changed["rate_kbit"] = line.rate_kbit / dilation
    if line.trace is not None:
        changed["trace_stretch"] = line.trace_stretch * dilation
    return msgspec.structs.replace(line, **changed)


def profile(link: LinkProfile, dilation: float) -> LinkProfile:
    """Both directions, and the schedule with its times."""
    states = tuple(
        State(
            state.at_s * dilation,
            direction(state.up, dilation),
            direction(state.down, dilation),
        )
        for state in link.schedule
    )
    up, down = (direction(line, dilation) for line in (link.up, link.down))
    return msgspec.structs.replace(link, up=up, down=down, schedule=states)


def plan(layout: Plan, dilation: float) -> Plan:
    """The same nodes behind slower links."""
    # Many clients share a profile, and a station's may have thousands of states.
    made: dict[int, LinkProfile] = {}
    nodes = []
    for node in layout.nodes:
        if node.profile is not None and id(node.profile) not in made:
            made[id(node.profile)] = profile(node.profile, dilation)
        slower = None if node.profile is None else made[id(node.profile)]
        nodes.append(msgspec.structs.replace(node, profile=slower))
    return msgspec.structs.replace(layout, nodes=tuple(nodes))


def up(backend: Backend, layout: Plan, dilation: float) -> Network:
    """The network of ``layout``, with slower links where there is a dilation.

    Raises:
        LinkError: naming the step that failed.
    """
    return backend.up(layout) if dilation == 1 else Dilated(backend, layout, dilation)


class Dilated:
    """A network whose links are slower than it is told; owns it."""

    def __init__(self, backend: Backend, layout: Plan, dilation: float) -> None:
        """Build the network of ``layout``.

        Raises:
            LinkError: naming the step that failed.
        """
        self._dilation = dilation
        self._inner: Network = backend.up(plan(layout, dilation))
        self.facts, self.record = self._inner.facts, self._inner.record

    def endpoint(self, node: Node) -> Endpoint:
        return self._inner.endpoint(node)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        slower = (direction(line, self._dilation) for line in (up, down))
        self._inner.shape(node, *slower)

    def counters(self) -> list[LinkCounters]:
        return self._inner.counters()

    def fileno(self) -> int:
        return self._inner.fileno()

    def failure(self) -> str | None:
        return self._inner.failure()

    def halted(self) -> str | None:
        return self._inner.halted()

    def down(self) -> dict[str, object]:
        """Closing facts with lateness in emulated time."""
        facts = self._inner.down()
        return {name: self._emulated(name, value) for name, value in facts.items()}

    def _emulated(self, name: str, value: object) -> object:
        is_time = name.startswith("lateness") and name.endswith("_ms")
        return value / self._dilation if is_time and isinstance(value, int | float) else value
