"""Fleet: whoever is lost, late or wrong costs its own part of a round and no more."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

import pytest
import torch
from made_events import Reported
from made_messages import LIKE, made
from torch import Tensor

from methods import Missed
from nodes.fleet import Fleet
from nodes.kinds import ABSENT, HELLO, REFUSED, STOP, WELCOME
from testbed.transport.sockets import Encoded, Unreachable
from testbed.transport.wire import Header, Message, encode_tensors

NAMES = ["a", "b", "c"]
SHORT_S = 0.25
"""A limit that is waited out, long against what a busy machine may take from a test."""
LONG_S = 20.0
"""Nothing waits it out where the code works."""


class FakeServerTransport:
    """In place of a ServerTransport: ``arrive`` says what comes, ``sent`` what went."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, int]] = []
        self.encoded: list[Encoded] = []
        self.details: list[Mapping[str, Any]] = []
        self.unreachable: set[str] = set()
        self.hung_up: list[str] = []
        self._arrivals: asyncio.Queue[Message] = asyncio.Queue()

    def arrive(self, *messages: Message) -> None:
        for message in messages:
            self._arrivals.put_nowait(message)

    async def receive(self) -> Message:
        return await self._arrivals.get()

    async def hang_up(self, clients: Iterable[str]) -> None:
        self.hung_up += clients

    async def send(
        self, peer: str, kind: str, number: int, encoded: Encoded, details: Mapping[str, Any]
    ) -> None:
        await asyncio.sleep(0)
        if peer in self.unreachable:
            raise Unreachable(f"{peer}: no route")
        self.sent.append((peer, kind, number))
        self.encoded.append(encoded)
        self.details.append(details)


class Case:
    """A fleet of a, b and c over a fake transport, its pump running."""

    def __init__(
        self,
        round_timeout_s: float,
        per_round: int | None = None,
        deadline_s: float | None = None,
        peer_to_peer: bool = False,
    ) -> None:
        self.transport = FakeServerTransport()
        self.events = Reported()
        self.fleet = Fleet(
            self.transport,  # type: ignore[arg-type]
            dict.fromkeys(NAMES, 10),
            self.events,
            round_timeout_s,
            per_round,
            deadline_s=deadline_s,
            peer_to_peer=peer_to_peer,
        )

    def hello(self, *names: str) -> None:
        self.transport.arrive(*(made(name, HELLO, 0, {}) for name in names))

    async def joined(self, *names: str) -> None:
        """Let just these join, and begin round 1."""
        self.hello(*names)
        await until(lambda: self.fleet.samples.keys() >= set(names))
        self.fleet.begin(1)

    async def gathered(self, kind: str = "update", like: Mapping[str, Tensor] = LIKE) -> list[str]:
        return [message.sender async for message in self.fleet.gather(kind, like)]

    def told(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Whom the fleet told who is absent."""
        sent = zip(self.transport.sent, self.transport.details, strict=True)
        return [(peer, details) for (peer, kind, _), details in sent if kind == ABSENT]

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """Who, in which round where that is said, and why."""
        return [
            tuple(event[key] for key in ("peer", "round", "reason") if key in event)
            for event in self.events
            if event["event"] == kind
        ]


async def until(true: Callable[[], bool]) -> None:
    """Let the other tasks run until something is so; nothing here waits for a clock."""
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


async def waiting(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Work under way, as far as it gets by itself."""
    task = asyncio.create_task(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


def play(
    test: Callable[[Case], Awaitable[None]],
    round_timeout_s: float = LONG_S,
    per_round: int | None = None,
    deadline_s: float | None = None,
    peer_to_peer: bool = False,
) -> Case:
    """Run ``test`` beside the pump; an error in the pump fails it too."""

    async def run() -> Case:
        case = Case(round_timeout_s, per_round, deadline_s, peer_to_peer)
        pump = asyncio.create_task(case.fleet.pump())
        work = asyncio.ensure_future(test(case))
        done, _ = await asyncio.wait(
            {pump, work}, timeout=LONG_S, return_when=asyncio.FIRST_COMPLETED
        )
        pump.cancel()
        work.cancel()
        assert done, "neither ended"
        for task in done:
            await task
        return case

    return asyncio.run(run())


# Who is absent


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


# Choosing


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


# Gathering


def test_gather_yields_updates_as_they_arrive() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        updates = case.fleet.gather("update", LIKE)
        for name in ("c", "a", "b"):
            case.transport.arrive(made(name, "update", 1))
            assert (await anext(updates)).sender == name
        assert [rest async for rest in updates] == []

    case = play(test)
    assert case.events == [] and case.fleet.failed == 0


def test_an_update_that_came_before_the_gather_is_kept() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.arrive(made("b", "update", 1), made("a", "update", 1))
        await waiting(asyncio.sleep(0))
        assert sorted(await case.gathered()) == ["a", "b"]

    play(test)


def test_a_client_lost_in_the_middle_is_missed_once_and_the_others_come_through() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        gathering = await waiting(case.gathered())
        case.transport.arrive(made("a", "update", 1))
        case.fleet.lose("b", "was killed by SIGKILL")
        case.transport.arrive(made("c", "update", 1))
        assert await gathering == ["a", "c"]
        with pytest.raises(Missed, match="was killed by SIGKILL"):
            await case.fleet.receive("b", "update")
        assert case.fleet.failed == 1

    case = play(test)
    assert case.of("missed") == [("b", 1, "was killed by SIGKILL")]


def test_a_lost_client_is_left_out_of_the_next_round() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.fleet.lose("b", "gone")
        case.fleet.begin(2)
        assert case.fleet.clients == ("a", "c") and case.fleet.failed == 1
        await case.fleet.broadcast("model", LIKE)
        case.transport.arrive(made("a", "update", 2), made("c", "update", 2))
        assert await case.gathered() == ["a", "c"]

    case = play(test)
    assert [sent for sent in case.transport.sent if sent[1] == "model"] == [
        ("a", "model", 2),
        ("c", "model", 2),
    ]
    assert case.of("missed") == []


def test_an_update_that_came_before_its_client_was_lost_counts() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.arrive(made("a", "update", 1))
        await waiting(asyncio.sleep(0))
        case.fleet.lose("a", "gone")
        assert (await case.fleet.receive("a", "update", LIKE)).sender == "a"

    assert play(test).of("missed") == []


def test_a_silent_client_is_missed_when_the_round_is_over() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.transport.arrive(made("a", "update", 1), made("c", "update", 1))
        await waiting(asyncio.sleep(0))
        case.fleet.begin(1)
        assert sorted(await case.gathered()) == ["a", "c"]
        assert case.fleet.failed == 1
        # It is not gone for good.
        case.fleet.begin(2)
        assert case.fleet.clients == ("a", "b", "c") and case.fleet.failed == 0

    case = play(test, round_timeout_s=SHORT_S)
    assert case.of("missed") == [("b", 1, "nothing within round_timeout_s = 0.25")]


def test_wrong_messages_do_not_lengthen_a_round() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")

        async def babble() -> None:
            while True:
                case.transport.arrive(made("a", "noise", 1))
                await asyncio.sleep(SHORT_S / 10)

        babbling = asyncio.create_task(babble())
        assert await case.gathered() == []
        babbling.cancel()

    case = play(test, round_timeout_s=SHORT_S)
    assert len(case.of("dropped")) > 1 and len(case.of("missed")) == 1


def test_a_gather_left_early_leaves_nothing_running() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.transport.arrive(made("b", "update", 1))
        updates = case.fleet.gather("update")
        await anext(updates)
        before = len(asyncio.all_tasks())
        await updates.aclose()  # type: ignore[attr-defined]
        await until(lambda: len(asyncio.all_tasks()) == before - 2)

    play(test)


def test_an_update_that_was_taken_is_not_kept_until_the_others_come() -> None:
    class Kept(dict[str, Tensor]):
        """A dictionary that can be watched."""

    async def test(case: Case) -> None:
        await case.joined("a", "b")
        gathering = case.fleet.gather("update", LIKE)
        message = Message("a", Header("update", 1, 0, {}), Kept(LIKE), 0, 99)
        watched = weakref.ref(message.tensors)
        case.transport.arrive(message)
        del message
        assert (await anext(gathering)).sender == "a"
        other = await waiting(anext(gathering))
        gc.collect()
        assert watched() is None and not other.done()
        case.transport.arrive(made("b", "update", 1))
        assert (await other).sender == "b"

    play(test)


def test_an_error_while_gathering_is_not_waited_out() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        case.transport.arrive(made("a", "update", 1))
        with pytest.raises(AttributeError):
            # What an answer is held against is wrong: the method's own mistake.
            async for _ in case.fleet.gather("update", {name: None for name in LIKE}):  # type: ignore[misc]
                pass

    play(test)


# What is not taken


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (made("a", "update", 0), "belongs to round 0, that of round 1 was expected"),
        (made("a", "update", 2), "belongs to round 2, that of round 1 was expected"),
        (made("a", "logits", 1), "kind 'logits' where 'update' was expected"),
    ],
    ids=["earlier round", "later round", "kind"],
)
def test_a_stray_message_is_dropped_and_the_right_one_still_taken(
    wrong: Message, reason: str
) -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        right = made("a", "update", 1)
        case.transport.arrive(wrong, right)
        assert await case.fleet.receive("a", "update", LIKE) is right

    case = play(test)
    (dropped,) = case.events
    assert (dropped["event"], dropped["peer"], dropped["bytes"]) == ("dropped", "a", 99)
    assert reason in dropped["reason"]


@pytest.mark.parametrize(
    ("misfit", "reason"),
    [
        (made("a", "update", 1, {}), "tensors differ in 'b' and 1 more names"),
        (made("a", "update", 1, {"w": LIKE["w"]}), "tensors differ in 'b' and 0 more names"),
        (made("a", "update", 1, {**LIKE, "x": LIKE["b"]}), "tensors differ in 'x' and 0 more"),
        (
            made("a", "update", 1, {**LIKE, "w": torch.zeros(3, 2)}),
            "w is torch.float32[3, 2], expected torch.float32[2, 3]",
        ),
        (
            made("a", "update", 1, {**LIKE, "b": torch.zeros(3, dtype=torch.float64)}),
            "b is torch.float64[3], expected torch.float32[3]",
        ),
        (
            made("a", "update", 1, {**LIKE, "b": torch.tensor([0, torch.nan, 0])}),
            "b holds values that are not finite",
        ),
        (
            made("a", "update", 1, {**LIKE, "b": torch.tensor([0, -torch.inf, 0])}),
            "b holds values that are not finite",
        ),
    ],
    ids=["no tensors", "name missing", "name too many", "shape", "dtype", "nan", "infinity"],
)
def test_an_answer_that_does_not_fit_is_missed_at_once(misfit: Message, reason: str) -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.arrive(misfit, made("b", "update", 1))
        assert await case.gathered() == ["b"]
        await until(lambda: ("a", REFUSED, 1) in case.transport.sent)
        assert ("b", REFUSED, 1) not in case.transport.sent

    case = play(test)
    dropped, missed = case.events
    assert (dropped["event"], missed["event"]) == ("dropped", "missed")
    assert dropped["peer"] == missed["peer"] == "a"
    assert reason in dropped["reason"] and reason in missed["reason"]


def test_a_client_that_refused_what_it_was_sent_is_missed_at_once() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b", "c")
        case.transport.arrive(
            made("a", REFUSED, 1, {}, reason="w is odd"),
            # What was refused of an earlier round says nothing of this one.
            made("b", REFUSED, 0, {}, reason="old"),
            made("b", "update", 1),
            made("c", "update", 1),
        )
        assert sorted(await case.gathered()) == ["b", "c"]

    assert play(test).of("missed") == [("a", 1, "it refused: w is odd")]


def test_without_a_like_any_tensors_are_taken() -> None:
    async def test(case: Case) -> None:
        await case.joined("a")
        case.transport.arrive(made("a", "mask", 1, {"m": torch.tensor([torch.nan])}))
        assert (await case.fleet.receive("a", "mask")).kind == "mask"

    assert play(test).events == []


def test_one_that_ends_after_its_answer_has_done_its_part() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.arrive(made("a", "update", 1))
        task = await waiting(case.gathered())
        case.fleet.lose("a", "killed")
        case.transport.arrive(made("b", "update", 1))
        assert await task == ["a", "b"]
        assert (case.fleet.succeeded, case.fleet.failed) == (2, 1)

    assert play(test).of("missed") == []


def test_one_that_ends_before_it_is_asked_is_missed_with_its_reason() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.fleet.lose("a", "killed")
        await case.fleet.broadcast("model", LIKE)
        case.transport.arrive(made("b", "update", 1))
        assert await case.gathered() == ["b"]
        assert (case.fleet.succeeded, case.fleet.failed) == (1, 2)

    assert play(test).of("missed") == [("a", 1, "killed")]


# Deadlines


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


# Away


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


# Kept busy


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


# Sending


def test_a_broadcast_encodes_once_and_skips_whom_it_cannot_reach() -> None:
    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        case.transport.sent.clear()
        case.transport.encoded.clear()
        case.transport.unreachable.add("b")
        await case.fleet.broadcast("model", LIKE)
        case.transport.arrive(made("a", "update", 1), made("c", "update", 1))
        assert await case.gathered() == ["a", "c"]

    case = play(test)
    assert case.transport.sent == [("a", "model", 1), ("c", "model", 1)]
    assert case.transport.encoded[0] is case.transport.encoded[1]
    assert case.of("missed") == [("b", 1, "b: no route")]


def test_sending_to_one_that_cannot_be_reached_is_missed() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.unreachable.add("b")
        with pytest.raises(Missed, match="no route"):
            await case.fleet.send("b", "smashed", LIKE)
        await case.fleet.send("a", "smashed", LIKE)
        assert case.transport.encoded[-1][0] == encode_tensors(LIKE)[0]

    assert play(test).of("missed") == [("b", 1, "b: no route")]


def test_stop_goes_to_everybody_who_is_left() -> None:
    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.hello("c")
        await until(lambda: "c" in case.fleet.samples)
        case.fleet.lose("a", "gone")
        case.transport.unreachable.add("b")
        case.transport.sent.clear()
        await case.fleet.stop()

    transport = play(test).transport
    assert transport.sent == [("c", STOP, 1)] and transport.hung_up == ["a"]


# Joining


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


# What a method asks of a message


def few(tensors: Mapping[str, Tensor]) -> None:
    if len(tensors) > 1:
        raise ValueError(f"{len(tensors)} tensors, at most 1 is of use")


def test_lengths_that_depend_on_values_are_the_methods_to_judge() -> None:
    one = {"w": torch.ones(5)}
    two = one | {"v": torch.ones(2)}
    odd = {"w": torch.full((2,), torch.nan)}

    async def test(case: Case) -> None:
        await case.joined(*NAMES)
        sent = dict(zip(NAMES, (one, two, odd), strict=True))
        case.transport.arrive(*(made(name, "update", 1, what) for name, what in sent.items()))
        found = [message.sender async for message in case.fleet.gather("update", accept=few)]
        assert found == ["a"]
        # The two whose answers cannot be taken are told so.
        assert [(peer, kind) for peer, kind, _ in case.transport.sent if kind == REFUSED] == [
            ("b", REFUSED),
            ("c", REFUSED),
        ]

    case = play(test)
    assert case.of("dropped") == [
        ("b", "2 tensors, at most 1 is of use"),
        ("c", "w holds values that are not finite"),
    ]
    assert [who for who, *_ in case.of("missed")] == ["b", "c"]


def test_a_message_is_first_like_what_it_should_be_and_then_to_be_accepted() -> None:
    def never(tensors: Mapping[str, Tensor]) -> None:
        assert tensors.keys() == LIKE.keys()
        raise ValueError("its values are out of bounds")

    async def test(case: Case) -> None:
        await case.joined("a", "b")
        case.transport.arrive(made("a", "update", 1), made("b", "update", 1, {"w": LIKE["w"]}))
        for name in ("a", "b"):
            with pytest.raises(Missed):
                await case.fleet.receive(name, "update", LIKE, accept=never)

    reasons = dict(play(test).of("dropped"))
    assert reasons["a"] == "its values are out of bounds"
    assert reasons["b"].startswith("tensors differ in 'b'")
