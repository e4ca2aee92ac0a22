"""A fleet that keeps its clients busy: a step waits for none of those still at work."""

import asyncio

from made_fleet import NAMES, SHORT_S, Case, play, until, waiting
from made_messages import LIKE, made


class Busy:
    """Rounds of a fleet that keeps its clients busy; each takes so many answers."""

    def __init__(self, case: Case) -> None:
        self.case = case

    async def take(self, count: int) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        async for message in self.case.fleet.keep_busy("model", LIKE, LIKE):
            found.append((message.sender, message.round))
            if len(found) == count:
                break
        return found

    def asked(self) -> list[tuple[str, int]]:
        """Sorted by round, since whom a round asks first is drawn."""
        sent = [
            (peer, number) for peer, kind, number in self.case.transport.sent if kind == "model"
        ]
        return sorted(sent, key=lambda one: (one[1], one[0]))

    def answer(self, *whose: tuple[str, int]) -> None:
        self.case.transport.arrive(*(made(name, "model", number) for name, number in whose))


def test_a_step_does_not_wait_for_those_still_at_work() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        busy = Busy(case)
        busy.answer(("b", 1))
        assert await busy.take(1) == [("b", 1)]
        assert (case.fleet.succeeded, case.fleet.failed) == (1, 0)
        assert busy.asked() == [("a", 1), ("b", 1), ("c", 1)]
        # Only b is free; a's answer to round 1 enters round 2.
        case.fleet.begin(2)
        busy.answer(("a", 1), ("b", 2))
        assert sorted(await busy.take(2)) == [("a", 1), ("b", 2)]
        assert busy.asked()[3:] == [("a", 2), ("b", 2)] or busy.asked()[3:] == [("b", 2)]
        await case.fleet.stop()

    assert play(test).of("missed") == []


def test_nobody_is_asked_twice_in_a_round_and_it_ends_when_all_have_answered() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        busy = Busy(case)
        busy.answer(("a", 1), ("b", 1))
        assert sorted(await busy.take(5)) == [("a", 1), ("b", 1)]
        assert busy.asked() == [("a", 1), ("b", 1)]

    play(test)


def test_at_most_so_many_are_at_work_as_a_round_takes() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        busy = Busy(case)
        task = await waiting(busy.take(3))
        (first,) = busy.asked()
        busy.answer(first)
        await until(lambda: len(busy.asked()) == 2)
        (second,) = set(busy.asked()) - {first}
        busy.answer(second)
        await until(lambda: len(busy.asked()) == 3)
        (third,) = set(busy.asked()) - {first, second}
        busy.answer(third)
        assert await task == [first, second, third]
        assert {name for name, _ in (first, second, third)} == set(NAMES)

    play(test, per_round=1)


def test_an_answer_that_is_there_when_the_round_ends_is_the_next_ones() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        busy = Busy(case)
        busy.answer(("a", 1), ("b", 1))
        (first,) = await busy.take(1)
        case.fleet.begin(2)
        (second,) = await busy.take(1)
        assert {first, second} == {("a", 1), ("b", 1)}
        await case.fleet.stop()

    play(test)


def test_a_busy_client_that_is_lost_or_wrong_costs_its_own_answer() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        busy = Busy(case)
        task = await waiting(busy.take(3))
        case.fleet.lose("a", "killed")
        case.transport.arrive(made("b", "model", 1, {}))
        busy.answer(("c", 1))
        assert await task == [("c", 1)]
        assert (case.fleet.succeeded, case.fleet.failed) == (1, 2)

    assert {name for name, *_ in play(test).of("missed")} == {"a", "b"}


def test_the_deadline_ends_a_step_and_leaves_clients_at_work() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        busy = Busy(case)
        assert await busy.take(1) == []
        case.fleet.begin(2)
        busy.answer(("a", 1))
        assert await busy.take(1) == [("a", 1)]
        await case.fleet.stop()

    assert play(test, deadline_s=SHORT_S).of("missed") == []


def test_one_that_works_for_too_long_is_missed_and_asked_again() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        busy = Busy(case)
        task = await waiting(busy.take(1))
        while busy.asked() == [("a", 1)]:
            if task.done():
                # The round's own limit, which began a little earlier, was over first.
                case.fleet.begin(2)
                task = await waiting(busy.take(1))
            await asyncio.sleep(0.005)
        busy.answer(("a", 1), ("a", 2))
        assert await task == [("a", 2)]

    case = play(test, round_timeout_s=SHORT_S)
    ((client, _, reason),) = case.of("missed")
    assert (client, reason) == ("a", f"nothing within round_timeout_s = {SHORT_S}")
    assert case.of("dropped") == [("a", "belongs to round 1, that of round 2 was expected")]
