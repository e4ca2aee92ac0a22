"""Fleet: who joins when, and what a hello is taken for."""

from typing import Any

import pytest
from made_fleet import LONG_S, NAMES, SHORT_S, Case, play, until, waiting
from made_messages import LIKE, made

from methods import Missed
from nodes.kinds import HELLO, WELCOME


def test_a_hello_is_answered_and_its_samples_are_the_plans() -> None:
    async def test(case: Case) -> None:
        case.hello(*NAMES)
        await case.fleet.join(LONG_S)
        assert case.fleet.samples == {"a": 10, "b": 10, "c": 10}

    assert play(test).transport.sent == [(name, WELCOME, 0) for name in NAMES]


@pytest.mark.parametrize("samples", [10**12, -3, "12"])
def test_what_a_hello_says_of_its_samples_is_not_believed(samples: Any) -> None:
    async def test(case: Case) -> None:
        case.transport.arrive(made("a", HELLO, 0, {}, samples=samples))
        await until(lambda: "a" in case.fleet.samples)
        assert case.fleet.samples == {"a": 10}

    play(test)


def test_a_second_hello_is_answered_and_changes_nothing() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        case.hello("a")
        await until(lambda: len(case.transport.sent) == 2)
        assert case.fleet.samples == {"a": 10}

    play(test)


def test_a_client_that_leaves_between_its_hello_and_the_welcome_does_not_end_the_server() -> None:
    async def test(case: Case) -> None:
        case.transport.unreachable.add("a")
        case.hello("a", "b", "c")
        await until(lambda: case.fleet.samples.keys() == {"b", "c"})
        case.fleet.lose("a", "gone")
        await case.fleet.join(LONG_S)

    assert play(test).of("dropped") == [("a", "a: no route")]


def test_joining_ends_as_soon_as_the_last_one_is_known_to_be_lost() -> None:
    async def test(case: Case) -> None:
        case.hello("a", "b")
        joining = await waiting(case.fleet.join(LONG_S))
        assert not joining.done()
        case.fleet.lose("c", "died")
        await joining
        case.fleet.begin(1)
        assert case.fleet.clients == ("a", "b")

    play(test)


def test_joining_goes_on_without_those_that_are_late() -> None:
    async def test(case: Case) -> None:
        case.hello("a", "c")
        await until(lambda: len(case.fleet.samples) == 2)
        await case.fleet.join(SHORT_S)
        case.fleet.begin(1)
        assert case.fleet.clients == ("a", "c") and case.fleet.failed == 1

    assert play(test).of("missed") == [("b", 0, "did not connect within 0.25 s")]


def test_joining_with_nobody_there_fails() -> None:
    async def test(case: Case) -> None:
        with pytest.raises(Missed, match=r"no client connected within 0\.25 s"):
            await case.fleet.join(SHORT_S)

    assert sorted(miss[0] for miss in play(test).of("missed")) == NAMES


def test_joining_with_all_lost_fails_at_once() -> None:
    async def test(case: Case) -> None:
        for name in NAMES:
            case.fleet.lose(name, "died")
        with pytest.raises(Missed, match="no client connected"):
            await case.fleet.join(LONG_S)

    play(test)


def test_a_client_joining_late_takes_part_in_the_next_round_and_holds_up_none() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        await case.fleet.broadcast("model", LIKE)
        case.hello("c")
        await until(lambda: "c" in case.fleet.samples)
        assert case.fleet.clients == ("a", "b") and case.fleet.failed == 1
        # It has nothing to answer yet, so this round must not wait for it.
        case.transport.arrive(made("a", "update", 1), made("b", "update", 1))
        assert await case.gathered() == ["a", "b"]
        case.fleet.begin(2)
        assert case.fleet.clients == ("a", "b", "c") and case.fleet.failed == 0
        await case.fleet.broadcast("model", LIKE)
        case.transport.arrive(*(made(name, "update", 2) for name in NAMES))
        assert await case.gathered() == NAMES

    assert play(test).of("missed") == []
