"""Fleet: who is absent, away or late, who is told so, and whom a round takes."""

import asyncio

import pytest
from made_fleet import NAMES, SHORT_S, Case, play, waiting
from made_messages import LIKE, made

from methods import Missed
from nodes.kinds import ABSENT


@pytest.mark.parametrize("peer_to_peer", [False, True])
def test_clients_that_speak_to_one_another_are_told_who_is_lost(peer_to_peer: bool) -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        await case.fleet.broadcast("go", {})
        assert case.told() == []
        case.fleet.lose("b", "killed")
        await waiting(asyncio.sleep(0))
        # At once, while they may be waiting for it, and never again.
        news = {"b": "lost: killed"}
        assert case.told() == ([("a", news), ("c", news)] if peer_to_peer else [])
        case.fleet.begin(2)
        await case.fleet.broadcast("go", {})
        await case.fleet.send("a", "more", {})
        assert len(case.told()) == 2 * peer_to_peer

    play(test, peer_to_peer=peer_to_peer)


def test_clients_are_told_who_is_away_and_back_before_a_rounds_messages() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.fleet.members.leave("b", "3 s")
        case.transport.unreachable.add("c")
        case.fleet.begin(2)
        await case.fleet.broadcast("go", {})
        assert case.told() == [("a", {"b": "away since 3 s"})]
        assert [kind for _, kind, _ in case.transport.sent][-2:] == [ABSENT, "go"]
        case.transport.unreachable.clear()
        case.fleet.begin(3)
        await case.fleet.broadcast("go", {})
        assert case.told()[1:] == [("c", {"b": "away since 3 s"})]
        case.fleet.members.come_back("b")
        case.fleet.begin(4)
        await case.fleet.broadcast("go", {})
        assert case.told()[2:] == [("a", {"b": ""}), ("c", {"b": ""})]

    play(test, peer_to_peer=True)


def test_a_round_takes_as_many_clients_as_asked_and_not_always_the_same() -> None:
    chosen: list[tuple[str, ...]] = []

    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        for number in range(1, 31):
            case.fleet.begin(number)
            chosen.append(case.fleet.clients)
            assert case.fleet.failed == 2 - len(case.fleet.clients) == 0

    play(test, per_round=2)
    first = list(chosen)
    chosen.clear()
    play(test, per_round=2)
    assert chosen == first and set(first) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_a_chosen_client_that_fails_counts_and_one_that_was_not_chosen_does_not() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        one, other = case.fleet.clients
        (third,) = set(NAMES) - {one, other}
        case.fleet.lose(third, "gone")
        assert (case.fleet.failed, case.fleet.succeeded) == (0, 2)
        case.fleet.lose(one, "gone")
        assert (case.fleet.failed, case.fleet.succeeded) == (1, 1)
        case.fleet.begin(2)
        assert case.fleet.clients == (other,) and case.fleet.failed == 1

    play(test, per_round=2)


def test_everyone_may_be_asked_whom_a_round_does_not_take() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        (other,) = set(NAMES) - {*case.fleet.clients}
        asked = case.fleet.everyone
        assert set(asked) == set(NAMES)
        await case.fleet.broadcast("asked", {}, clients=asked)
        assert {peer for peer, kind, _ in case.transport.sent if kind == "asked"} == set(NAMES)
        case.transport.arrive(*(made(name, "told", 1) for name in NAMES))
        told = [m.sender async for m in case.fleet.gather("told", LIKE, clients=asked)]
        assert sorted(told) == sorted(NAMES)
        # Its state is another now, and a run that is resumed needs it.
        assert case.fleet.took_part == dict.fromkeys(NAMES, 1)
        assert (case.fleet.failed, case.fleet.succeeded) == (0, 2)
        case.fleet.members.leave(other, "3 s")
        case.transport.unreachable.add(case.fleet.clients[0])
        await case.fleet.broadcast("more", {}, clients=case.fleet.everyone)
        assert case.fleet.everyone == (case.fleet.clients[1],)

    play(test, per_round=2)


def test_what_comes_after_the_deadline_is_missed_with_that_reason() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.arrive(made("a", "update", 1))
        assert await case.gathered() == ["a"]
        assert case.fleet.succeeded == 1
        # It comes in the next round, which has its own.
        case.fleet.begin(2)
        case.transport.arrive(
            made("b", "update", 1), made("b", "update", 2), made("a", "update", 2)
        )
        assert sorted(await case.gathered()) == ["a", "b"]

    case = play(test, deadline_s=SHORT_S)
    assert case.of("missed")[0] == ("b", 1, f"nothing by the deadline of {SHORT_S} s")
    assert case.of("dropped") == [("b", "belongs to round 1, that of round 2 was expected")]


def test_metrics_have_a_limit_of_their_own_after_the_deadline() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        with pytest.raises(Missed, match="deadline"):
            await case.fleet.receive("a", "update")
        case.fleet.begin(2)
        case.fleet.conclude()
        task = await waiting(case.fleet.receive("a", "metrics"))
        await asyncio.sleep(2 * SHORT_S)
        case.transport.arrive(made("a", "metrics", 2))
        assert (await task).kind == "metrics"

    play(test, deadline_s=SHORT_S)


def test_who_is_away_is_not_chosen_until_it_is_back() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.fleet.members.leave("b", "3 s")
        case.fleet.begin(2)
        assert case.fleet.clients == ("a", "c") and case.fleet.failed == 1
        case.fleet.members.come_back("b")
        assert case.fleet.clients == ("a", "c")
        case.fleet.begin(3)
        assert case.fleet.clients == ("a", "b", "c") and case.fleet.failed == 0

    assert play(test).of("missed") == [("b", 2, "away since 3 s")]


def test_a_round_that_draws_its_clients_draws_from_those_who_are_there() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.fleet.members.leave("b", "3 s")
        for number in range(2, 12):
            case.fleet.begin(number)
            assert set(case.fleet.clients) == {"a", "c"} and case.fleet.failed == 0

    assert play(test, per_round=2).of("missed") == []


def test_one_that_leaves_in_a_round_may_still_answer_when_it_is_back() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        task = await waiting(case.gathered())
        case.fleet.members.leave("a", "3 s")
        case.fleet.members.come_back("a")
        case.transport.arrive(made("a", "update", 1))
        assert await task == ["a"]

    assert play(test).of("missed") == []


def test_one_that_is_away_at_the_limit_is_missed_with_both_reasons() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        case.fleet.members.leave("a", "3 s")
        assert await case.gathered() == []

    reason = f"nothing by the deadline of {SHORT_S} s; away since 3 s"
    assert play(test, deadline_s=SHORT_S).of("missed") == [("a", 1, reason)]


def test_a_round_waits_for_somebody_to_be_there() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        await case.fleet.attended()
        for name in ("a", "b"):
            case.fleet.members.leave(name, "3 s")
        task = await waiting(case.fleet.attended())
        assert not task.done()
        case.fleet.members.come_back("b")
        await task
        case.fleet.begin(2)
        assert case.fleet.clients == ("b",)

    play(test)


def test_a_run_whose_clients_all_stay_away_ends() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        case.fleet.members.leave("a", "3 s")
        with pytest.raises(Missed, match="every client was away for longer than round_timeout_s"):
            await case.fleet.attended()

    play(test, round_timeout_s=SHORT_S)
