"""Links of several hosts that change at their times, each by its own host."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from testbed import clock
from testbed.network.direction import Direction
from testbed.network.hosts import Host, of_host, placed
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.topology import Node, plan
from testbed.record.events import Away, Shaped
from testbed.run.hosts.messages import Trained, Trains
from testbed.run.hosts.timing import HostsDynamics, Slower, of_part

SLOW = Direction(rate_kbit=100, delay_ms=5)
LINK = LinkProfile(name="p", schedule=(State(2.0, SLOW, SLOW), State(9.0, SLOW, SLOW)))
HOSTS = [Host("a", 1, 0), Host("b", 1, 0)]
BARE = placed(plan([LINK, LINK]), HOSTS, place="server=a,client-1=a,client-2=b")
LAYOUT = msgspec.structs.replace(
    BARE,
    nodes=(*BARE.nodes[:2], msgspec.structs.replace(BARE.nodes[2], away=((3.0, 4.0),))),
)


class Notes:
    """Takes down what it is told to do."""

    def __init__(self) -> None:
        self.shaped: list[tuple[str, Direction]] = []
        self.said: list[Any] = []
        self.others = [SimpleNamespace(name="b")]

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        self.shaped.append((node.name, up))

    def of(self, node: Node) -> Any:
        return self.others[0] if node.host == "b" else None

    def say(self, far: Any, order: Any) -> None:
        assert far is self.others[0]
        self.said.append(order)


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The run's clock."""
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    return moment


def test_the_driver_changes_its_own_nodes_links_and_says_who_is_away(now_s: list[float]):
    notes = Notes()
    dynamics = HostsDynamics(notes, LAYOUT)  # type: ignore[arg-type]
    dynamics._clock = clock.monotonic
    dynamics.begin()
    dynamics.begin()
    assert notes.said == [Trains(1000.0, 0.0)]
    now_s[0] = 1003.5
    found = [(name, type(event)) for name, event in dynamics.apply(notes)]
    assert found == [("client-1", Shaped), ("client-2", Away)]
    assert notes.shaped == [("client-1", SLOW)]
    dynamics.end()
    now_s[0] = 2000.0
    assert dynamics.apply(notes) == [] and isinstance(notes.said[-1], Trained)


def test_an_agent_changes_its_nodes_links_at_their_times_whenever_it_was_told(now_s: list[float]):
    notes, said = Notes(), Notes()
    driver = HostsDynamics(said, LAYOUT, trained_s=1.0)  # type: ignore[arg-type]
    driver._clock = clock.monotonic
    driver.begin()
    now_s[0] = 1000.25
    dynamics = of_part(of_host(LAYOUT, "b"), said.said[0])
    dynamics._clock = clock.monotonic
    assert dynamics.wait_s == 0.75 and dynamics.apply(notes) == []
    now_s[0] = 1001.0
    ((name, event),) = dynamics.apply(notes)
    assert (name, event.at_s, event.actual_s) == ("client-2", 2.0, 2.0)
    assert notes.shaped == [("client-2", SLOW)]
    assert dynamics.wait_s == 7.0


def test_links_are_as_much_slower_as_the_runs_clock():
    notes = Notes()
    with clock.dilated(4):
        Slower(notes).shape(LAYOUT.nodes[2], SLOW, SLOW)  # type: ignore[arg-type]
    ((_, up),) = notes.shaped
    assert (up.rate_kbit, up.delay_ms) == (25, 20)
