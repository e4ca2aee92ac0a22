"""Links change at their times, on a clock of the test's own and a network that takes notes."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_events import told

from testbed.links.interface import Network
from testbed.network.direction import Direction, GilbertElliott
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.topology import Node, Plan, plan
from testbed.record import ideal_rounds
from testbed.run.dynamics import Dynamics, away_since

SLOW, FAST = Direction(rate_kbit=100), Direction(rate_kbit=900)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Notes:
    """A network that does nothing but remember; each shape takes ``seconds``."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self.shaped: list[tuple[str, Direction, Direction]] = []

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        self._clock.now_s += self._seconds
        self.shaped.append((node.name, up, down))


def profile(*states: tuple[float, Direction, Direction], **fields: Any) -> LinkProfile:
    return LinkProfile(name="p", schedule=tuple(State(*state) for state in states), **fields)


def applied(layout: Plan, *moments_s: float) -> list[list[tuple[str, float]]]:
    """What is applied at each of these seconds after training began: node and its time."""
    clock = Clock()
    dynamics = Dynamics(layout, clock)
    network: Network = Notes(clock)  # type: ignore[assignment]
    dynamics.begin()
    found = []
    for moment_s in moments_s:
        clock.now_s = 1000 + moment_s
        found.append([(name, event.at_s) for name, event in dynamics.apply(network)])
    return found


def test_every_node_takes_its_states_in_the_order_of_time() -> None:
    layout = plan(
        [profile((1, SLOW, FAST), (3, FAST, FAST)), profile((2, SLOW, SLOW))],
        profile((2.5, FAST, SLOW)),
    )
    assert applied(layout, 0, 0.9, 1, 2.4, 2.6, 9, 10) == [
        [],
        [],
        [("client-1", 1)],
        [("client-2", 2)],
        [("server", 2.5)],
        [("client-1", 3)],
        [],
    ]


def test_what_came_due_in_one_wait_is_all_applied() -> None:
    layout = plan([profile((1, SLOW, FAST), (3, FAST, FAST)), profile((2, SLOW, SLOW))])
    assert applied(layout, 5) == [[("client-1", 1), ("client-2", 2), ("client-1", 3)]]


def test_a_link_becomes_what_its_state_says() -> None:
    clock = Clock()
    network = Notes(clock)
    dynamics = Dynamics(plan([profile((0, SLOW, FAST), up=FAST, down=FAST)]), clock)
    dynamics.begin()
    dynamics.apply(network)  # type: ignore[arg-type]
    assert network.shaped == [("client-1", SLOW, FAST)]


def test_the_wait_is_until_the_next_state() -> None:
    clock = Clock()
    dynamics = Dynamics(plan([profile((3, SLOW, SLOW), (5, FAST, FAST))]), clock)
    assert dynamics.wait_s == math.inf  # Training has not begun.
    dynamics.begin()
    clock.now_s += 1
    dynamics.begin()  # A later round begins nothing.
    assert dynamics.wait_s == pytest.approx(2)
    clock.now_s += 3
    assert dynamics.wait_s == 0
    dynamics.apply(Notes(clock))  # type: ignore[arg-type]
    assert dynamics.wait_s == pytest.approx(1)
    clock.now_s += 1
    dynamics.apply(Notes(clock))  # type: ignore[arg-type]
    assert dynamics.wait_s == math.inf


def test_nothing_is_applied_before_training_begins() -> None:
    clock = Clock()
    dynamics = Dynamics(plan([profile((0, SLOW, SLOW))]), clock)
    clock.now_s += 50
    assert dynamics.apply(Notes(clock)) == []  # type: ignore[arg-type]


def test_links_without_a_schedule_wait_for_nothing() -> None:
    dynamics = Dynamics(plan([profile(up=SLOW)]), Clock())
    dynamics.begin()
    assert dynamics.wait_s == math.inf


def test_an_event_says_when_and_what() -> None:
    clock = Clock()
    bursts = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=25)
    cut = Direction(rate_kbit=100, delay_ms=5, outage=True)
    dynamics = Dynamics(plan([profile((2, cut, Direction(gilbert_elliott=bursts)))]), clock)
    dynamics.begin()
    clock.now_s += 2.25
    ((name, event),) = dynamics.apply(Notes(clock, seconds=0.5))  # type: ignore[arg-type]
    assert name == "client-1"
    assert told(event) == {
        "event": "shaped",
        "at_s": 2,
        "actual_s": 2.75,
        "up": {"rate_kbit": 100, "delay_ms": 5, "outage": True},
        "down": {"gilbert_elliott": msgspec.to_builtins(bursts)},
        "line": msgspec.to_builtins(ideal_rounds.access(cut, Direction(gilbert_elliott=bursts))),
    }


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_trace_begins_with_training(tmp_path: Path, way: str) -> None:
    path = tmp_path / "x.up"
    path.write_text("10\n")
    traced = Direction(trace=str(path))
    directions: dict[str, Any] = {way: traced}
    assert applied(plan([profile(**directions)]), 0) == [[("client-1", 0)]]
    later = profile((4, SLOW, SLOW), **directions)
    assert applied(plan([later]), 9) == [[("client-1", 0), ("client-1", 4)]]
    # A schedule that begins at 0 s says itself what the link is then.
    at_once = profile((0, SLOW, SLOW), **directions)
    assert applied(plan([at_once]), 9) == [[("client-1", 0)]]


def test_a_node_leaves_and_comes_back_beside_what_its_link_becomes() -> None:
    clock = Clock()
    layout = plan([profile(up=FAST, down=FAST)], away=[((2, 5), (9, math.inf))])
    dynamics = Dynamics(layout, clock)
    network = Notes(clock)
    dynamics.begin()
    clock.now_s = 1000 + 20
    events = [
        (name, event.event, event.at_s, event.actual_s)
        for name, event in dynamics.apply(network)  # type: ignore[arg-type]
    ]
    assert sorted(events, key=lambda event: event[2]) == events
    assert [event for event in events if event[1] != "shaped"] == [
        ("client-1", "away", 2, 20),
        ("client-1", "back", 5, 20),
        ("client-1", "away", 9, 20),
    ]
    assert [up.outage for _, up, _ in network.shaped] == [True, False, True]


BEFORE, FIRST, SECOND = None, (SLOW, FAST), (FAST, FAST)


@pytest.mark.parametrize(
    ("trained_s", "at_once", "later"),
    [
        (0.0, BEFORE, [1.0, 3.0]),
        (0.5, BEFORE, [1.0, 3.0]),
        (1.0, FIRST, [3.0]),
        (2.0, FIRST, [3.0]),
        (5.0, SECOND, []),
    ],
)
def test_training_that_goes_on_begins_in_the_state_that_holds(
    trained_s: float, at_once: tuple[Direction, Direction] | None, later: list[float]
) -> None:
    clock = Clock()
    layout = plan([profile((1, *FIRST), (3, *SECOND))])
    dynamics, network = Dynamics(layout, clock, trained_s), Notes(clock)
    dynamics.begin()
    first = [event.at_s for _, event in dynamics.apply(network)]  # type: ignore[arg-type]
    assert first == ([] if at_once is None else [trained_s])
    assert [(up, down) for _, up, down in network.shaped] == ([at_once] if at_once else [])
    found = []
    while dynamics.wait_s < math.inf:
        clock.now_s += dynamics.wait_s
        found += [event for _, event in dynamics.apply(network)]  # type: ignore[arg-type]
    assert [event.at_s for event in found] == later
    assert [event.actual_s for event in found] == later
    assert clock.now_s == 1000 + max(0, *later, trained_s) - trained_s


@pytest.mark.parametrize(
    ("trained_s", "expected"),
    [
        (0.0, [("away", 2), ("back", 5), ("away", 9)]),
        (1.0, [("away", 2), ("back", 5), ("away", 9)]),
        (3.0, [("away", 3), ("back", 5), ("away", 9)]),
        (5.0, [("away", 9)]),
        (20.0, [("away", 20)]),
    ],
)
def test_a_node_that_was_away_where_training_goes_on_is_away(
    trained_s: float, expected: list[tuple[str, float]]
) -> None:
    clock = Clock()
    layout = plan([profile(up=FAST, down=FAST)], away=[((2, 5), (9, math.inf))])
    dynamics, network = Dynamics(layout, clock, trained_s), Notes(clock)
    dynamics.begin()
    clock.now_s += 100
    events = [event for _, event in dynamics.apply(network)]  # type: ignore[arg-type]
    told = [(event.event, event.at_s) for event in events if event.event != "shaped"]
    assert told == expected
    since = {0.0: None, 1.0: None, 3.0: 2, 5.0: None, 20.0: 9}
    assert away_since(layout.clients[0], trained_s) == since[trained_s]
