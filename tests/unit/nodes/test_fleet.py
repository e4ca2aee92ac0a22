"""Fleet: whoever is lost, late or wrong costs its own part of a round and no more."""

import asyncio
import gc
import weakref
from collections.abc import Mapping

import pytest
import torch
from made_fleet import NAMES, SHORT_S, Case, play, until, waiting
from made_messages import LIKE, made
from torch import Tensor

from methods import Missed
from nodes.kinds import REFUSED, STOP
from testbed.transport.wire import Header, Message, encode_tensors

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
