"""Peer: what a client takes, waits for and sends in a round, and when its round is over."""

import contextlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_events import Reported
from made_messages import LIKE, made
from torch import Tensor

from methods import Missed
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from nodes import peer as peer_module
from nodes.kinds import ABSENT, EVALUATE, HELLO, REFUSED, STOP, WELCOME
from nodes.peer import Overtaken, Peer, Refused, Stopped
from testbed.transport.sockets import Timeout
from testbed.transport.wire import Message


class FakeClientTransport:
    """In place of a ClientTransport: gives what it is told to; None is a wait in vain."""

    def __init__(self, *arrivals: Message | None) -> None:
        self.arrivals = list(arrivals)
        self.there: list[Message] = []
        """What has arrived by now, unasked for."""
        self.sent: list[tuple[str, int, Mapping[str, Tensor], Mapping[str, Any]]] = []
        self.waits: list[float] = []
        self.hung_up: list[str] = []
        self.now_s = 0.0
        """Messages say that they were sent then."""

    def hang_up(self, neighbour: str) -> None:
        self.hung_up.append(neighbour)

    def send(
        self,
        kind: str,
        number: int,
        tensors: Mapping[str, Tensor],
        details: Mapping[str, Any],
        to: str = "server",
    ) -> None:
        self.sent.append((kind, number, tensors, details))

    def receive(self, timeout_s: float) -> Message:
        if self.there:
            return self.there.pop(0)
        if timeout_s == 0:
            raise Timeout("nothing yet")
        self.waits.append(timeout_s)
        found = self.arrivals.pop(0) if self.arrivals else None
        if found is None:
            self.now_s += timeout_s
            raise Timeout("nothing")
        return found


def from_server(kind: str, number: int, tensors: Mapping[str, Tensor] = LIKE) -> Message:
    return made("server", kind, number, tensors)


class PeerCase:
    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *arrivals: Message | None,
        coder: Coder | None = None,
    ) -> None:
        self.transport = FakeClientTransport(*arrivals)
        self.events = Reported()
        self.peer = Peer(
            self.transport,  # type: ignore[arg-type]
            self.events,
            timeout_s=30,
            between_rounds_s=5000,
            coder=coder,
        )
        clock = SimpleNamespace(monotonic=lambda: self.transport.now_s)
        monkeypatch.setattr(peer_module, "clock", clock)

    def reasons(self) -> list[str]:
        assert all((e["event"], e["peer"]) == ("dropped", "server") for e in self.events)
        return [event["reason"] for event in self.events]


ONES = torch.ones(3)
WELCOMED = from_server(WELCOME, 0, {})


def test_join_says_hello_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, None, None, WELCOMED)
    case.peer.join(60)
    assert case.transport.sent == [(HELLO, 0, {}, {})] * 3
    assert case.transport.waits == [2, 4, 8]


def test_join_gives_up_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch)
    with pytest.raises(Timeout, match="no answer from the server within 5 s"):
        case.peer.join(5)
    assert case.transport.waits == [2, 3]


def test_a_first_round_message_stands_in_for_a_lost_welcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = from_server("model", 3)
    case = PeerCase(monkeypatch, None, first, WELCOMED, from_server("model", 4))
    case.peer.join(60)
    case.peer.await_round()
    assert case.peer.round == 3
    assert case.peer.receive("model", LIKE) is first
    # The welcome that comes after all is no message of a round.
    case.peer.await_round()
    assert case.peer.round == 4 and case.events == []


def test_one_round_follows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, WELCOMED, from_server("model", 1), from_server("model", 2), None)
    case.peer.join(60)
    for number in (1, 2):
        case.peer.await_round()
        assert case.peer.receive("model", LIKE).round == number
        case.peer.send("update", LIKE, loss=0.5)
        assert case.transport.sent[-1] == ("update", number, LIKE, {"loss": 0.5})
    with pytest.raises(Timeout):
        case.peer.await_round()
    assert case.transport.waits[-1] == 5000 and case.events == []


@pytest.mark.parametrize("newer", [("model", 2), (STOP, 1)], ids=["round", "stop"])
def test_what_nobody_waits_for_any_more_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, newer: tuple[str, int]
) -> None:
    case = PeerCase(monkeypatch, WELCOMED, from_server("model", 1))
    case.peer.join(60)
    case.peer.await_round()
    case.peer.receive("model", LIKE)
    case.transport.there = [from_server(*newer)]
    with pytest.raises(Overtaken, match="round 1 is over"):
        case.peer.send("update", LIKE)
    assert [kind for kind, *_ in case.transport.sent] == ["hello"]
    if newer[0] == STOP:
        with pytest.raises(Stopped):
            case.peer.await_round()
    else:
        case.peer.await_round()
        assert case.peer.receive("model", LIKE).round == 2


@pytest.mark.parametrize("newer", [None, ("model", 2)], ids=["sent", "round over"])
def test_a_residual_is_remembered_once_its_message_is_sent(
    monkeypatch: pytest.MonkeyPatch, newer: tuple[str, int] | None
) -> None:
    """What a stage left out of an update that nobody was sent is no part of the next one."""
    coder = Coder(Chain(["topk:k=0.1,feedback=true"]), Chain([]), 1)
    case = PeerCase(monkeypatch, WELCOMED, from_server("model", 1), coder=coder)
    case.peer.join(60)
    case.peer.await_round()
    start = case.peer.receive("model", LIKE).tensors
    case.transport.there = [] if newer is None else [from_server(*newer)]
    update = {name: each + 1 for name, each in start.items()}
    with pytest.raises(Overtaken) if newer else contextlib.nullcontext():
        case.peer.send("model", update, base=start)
    assert ("model" in coder.lasting.memory) == (newer is None)


def test_what_coding_takes_is_time_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is encoded before its node settles what it computed, and sent after."""
    case = PeerCase(monkeypatch, WELCOMED, from_server("model", 1))
    case.peer.join(60)
    case.peer.await_round()
    order: list[str] = []

    def note(name: str, real: Any) -> Any:
        def called(*args: Any) -> Any:
            order.append(name)
            return real(*args)

        return called

    coder, compute = case.peer._coder, case.peer._compute
    monkeypatch.setattr(coder, "encode", note("encode", coder.encode))
    monkeypatch.setattr(compute, "settle", note("settle", compute.settle))
    monkeypatch.setattr(case.transport, "send", note("send", case.transport.send))
    monkeypatch.setattr(coder, "remember", note("remember", coder.remember))
    case.peer.send("update", LIKE)
    assert order == ["encode", "settle", "send", "remember"]


def test_of_several_rounds_that_came_the_newest_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1))
    case.transport.there = [
        from_server("model", 1),
        from_server("model", 2),
        from_server("model", 4),
    ]
    case.peer.await_round()
    assert case.peer.round == 4 and case.peer.receive("model", LIKE).round == 4
    assert case.reasons() == [f"belongs to round {n}, which is over" for n in (1, 2)]


def test_a_stop_behind_a_round_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch)
    case.transport.there = [from_server("model", 3), from_server(STOP, 3, {})]
    with pytest.raises(Stopped):
        case.peer.await_round()


def test_a_late_welcome_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1))
    case.peer.await_round()
    case.transport.there = [WELCOMED]
    case.peer.send("update", LIKE)
    assert [kind for kind, *_ in case.transport.sent] == ["update"] and case.events == []


def test_many_messages_make_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server("smashed", 1), from_server("gradient", 1))
    case.peer.await_round()
    case.peer.receive("smashed")
    assert case.peer.receive("gradient").kind == "gradient"


def test_a_stop_between_rounds_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server(STOP, 5, {}))
    with pytest.raises(Stopped):
        case.peer.await_round()


def test_a_stop_inside_a_round_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1), from_server(STOP, 1, {}))
    case.peer.await_round()
    case.peer.receive("model")
    with pytest.raises(Stopped):
        case.peer.receive("gradient")


def test_a_stop_in_place_of_a_welcome_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server(STOP, 5, {}))
    case.peer.join(60)
    with pytest.raises(Stopped):
        case.peer.await_round()


def test_messages_of_a_round_that_is_over_begin_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = [from_server("model", 2), from_server("mask", 1)]
    case = PeerCase(monkeypatch, from_server("model", 2), *stale, from_server("model", 3))
    case.peer.await_round()
    case.peer.receive("model")
    case.peer.await_round()
    assert case.peer.round == 3
    assert case.reasons() == [
        "belongs to round 2, which is over",
        "belongs to round 1, which is over",
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (from_server("model", 1), "'model' of round 1, expected 'model' of round 2"),
        (from_server("mask", 2), "'mask' of round 2, expected 'model' of round 2"),
    ],
    ids=["stale", "kind"],
)
def test_inside_a_round_a_wrong_message_is_dropped(
    monkeypatch: pytest.MonkeyPatch, wrong: Message, reason: str
) -> None:
    case = PeerCase(monkeypatch, from_server("start", 2), wrong, from_server("model", 2))
    case.peer.await_round()
    case.peer.receive("start")
    assert case.peer.receive("model", LIKE).round == 2
    assert case.reasons() == [reason]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "tensors differ in 'b' and 1 more names"),
        ({**LIKE, "b": torch.full((3,), torch.nan)}, "b holds values that are not finite"),
    ],
    ids=["names", "nan"],
)
def test_a_client_that_cannot_take_its_answer_says_so_and_is_free_for_the_next_round(
    monkeypatch: pytest.MonkeyPatch, wrong: Mapping[str, Tensor], reason: str
) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1, wrong), from_server("model", 2))
    case.peer.await_round()
    with pytest.raises(Refused, match=reason):
        case.peer.receive("model", LIKE)
    assert case.transport.sent == [(REFUSED, 1, {}, {"reason": reason})]
    assert case.reasons() == [reason]
    case.peer.await_round()
    assert case.peer.receive("model", LIKE).round == 2


@pytest.mark.parametrize("sends", [True, False])
def test_a_client_whose_message_was_refused_waits_for_no_answer(
    monkeypatch: pytest.MonkeyPatch, sends: bool
) -> None:
    refused = made("server", REFUSED, 1, {}, reason="w is odd")
    case = PeerCase(monkeypatch, from_server("model", 1), from_server("model", 2))
    case.peer.await_round()
    case.peer.receive("model", LIKE)
    case.transport.arrivals.insert(0, refused)
    if sends:
        case.transport.there.append(case.transport.arrivals.pop(0))
    with pytest.raises(Refused, match="w is odd"):
        case.peer.send("smashed", LIKE) if sends else case.peer.receive("gradient")
    case.peer.await_round()
    assert case.peer.round == 2 and case.events == []


def test_a_refusal_of_all_that_a_client_had_to_send_is_no_message_of_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = made("server", REFUSED, 1, {}, reason="w is odd")
    case = PeerCase(monkeypatch, from_server("model", 1), refused, from_server("model", 2))
    case.peer.await_round()
    case.peer.receive("model", LIKE)
    case.peer.await_round()
    assert case.peer.round == 2 and case.events == []


def test_a_neighbours_answer_that_does_not_fit_is_missed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = PeerCase(monkeypatch, from_server("go", 1), made("b", "model", 1, {}))
    case.peer.await_round()
    case.peer.receive("go")
    with pytest.raises(Missed, match="b: tensors differ"):
        case.peer.receive("model", LIKE, sender="b")
    assert [event["event"] for event in case.events] == ["dropped", "missed"]
    assert case.transport.sent == []


def test_neighbours_are_waited_for_until_so_long_after_the_rounds_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = PeerCase(monkeypatch, from_server("go", 1))
    case.peer.await_round()
    case.peer.receive("go")
    case.transport.now_s = 5.0
    for neighbour in ("b", "c"):
        with pytest.raises(Missed, match=f"{neighbour}: nothing within 24 s of the round's"):
            case.peer.receive("model", LIKE, sender=neighbour)
    # One after the other, both are over before the server's 30 s are.
    assert case.transport.waits[1:] == [19]
    assert case.transport.now_s == 24


def test_who_the_server_says_is_absent_is_not_waited_for_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made("b", "model", 1)
    lost = made("server", ABSENT, 1, {}, b="lost: killed by SIGKILL", c="away since 3 s")
    back = made("server", ABSENT, 2, {}, c="")
    later = [back, from_server("go", 2), made("c", "model", 2)]
    case = PeerCase(monkeypatch, from_server("go", 1), model, lost, *later)
    case.peer.await_round()
    case.peer.receive("go")
    # What it had sent before its end still counts.
    case.peer.receive("model", LIKE, sender="b")
    for neighbour, why in (("b", "lost: killed by SIGKILL"), ("c", "away since 3 s")):
        with pytest.raises(Missed, match=why):
            case.peer.receive("model", LIKE, sender=neighbour)
        case.peer.send("model", LIKE, to=neighbour)
    assert (case.transport.hung_up, case.transport.sent) == (["b", "c"], [])
    assert case.transport.now_s == 0
    case.peer.await_round()
    case.peer.receive("go")
    assert case.peer.receive("model", LIKE, sender="c").round == 2
    case.peer.send("model", LIKE, to="c")
    assert len(case.transport.sent) == 1


def test_a_client_left_behind_abandons_its_round_and_enters_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1), from_server("model", 2))
    case.peer.await_round()
    case.peer.receive("model")
    with pytest.raises(Overtaken, match="round 2 began during round 1"):
        case.peer.receive("gradient")
    case.peer.await_round()
    assert case.peer.receive("model").round == 2
    assert case.reasons() == []


def test_a_silent_server_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch)
    with pytest.raises(Timeout):
        case.peer.receive("model")
    assert case.transport.waits == [30]


def test_a_client_that_no_round_chooses_waits_for_the_whole_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = PeerCase(monkeypatch)
    with pytest.raises(Timeout):
        case.peer.await_round()
    assert case.transport.waits == [5000]


def test_metrics_are_wanted_after_the_present_round_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, now = from_server(EVALUATE, 1, {}), from_server(EVALUATE, 2, {})
    case = PeerCase(monkeypatch, from_server("model", 2), late, now)
    assert case.peer.await_round()
    case.peer.receive("model")
    assert not case.peer.await_round()
    assert case.reasons() == ["belongs to round 1, which is over"]


def test_metrics_are_not_wanted_once_the_next_round_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1))
    case.peer.await_round()
    case.peer.receive("model")
    case.transport.arrivals = [from_server(EVALUATE, 1, {})]
    case.transport.there = []
    monkeypatch.setattr(case.peer, "_look", lambda: case.peer._sort(from_server("model", 2)))
    assert case.peer.await_round()
    assert case.peer.round == 2
    assert case.reasons() == ["belongs to round 1, which is over"]


# What a method asks of a message


def none_below_one(tensors: Mapping[str, Tensor]) -> None:
    if any(bool((each < 1).any()) for each in tensors.values()):
        raise ValueError("values below 1")


def test_what_a_method_does_not_accept_ends_its_round_and_the_server_knows_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1), from_server("model", 2, {"k": ONES}))
    case.peer.await_round()
    with pytest.raises(Refused, match="values below 1"):
        case.peer.receive("model", accept=none_below_one)
    assert case.transport.sent == [(REFUSED, 1, {}, {"reason": "values below 1"})]
    assert case.reasons() == ["values below 1"]
    case.peer.await_round()
    assert case.peer.receive("model", accept=none_below_one).tensors == {"k": ONES}


def test_a_method_refuses_what_only_it_can_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PeerCase(monkeypatch, from_server("model", 1))
    case.peer.await_round()
    case.peer.receive("model")
    assert isinstance(case.peer.refuse("16 codes of 8"), Refused)
    assert case.transport.sent == [(REFUSED, 1, {}, {"reason": "16 codes of 8"})]
    assert isinstance(case.peer.refuse("no mask", sender="client-2"), Missed)
    assert len(case.transport.sent) == 1
    assert case.events[-1]["peer"] == "client-2" and case.events[-1]["reason"] == "no mask"
