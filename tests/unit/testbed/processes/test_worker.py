"""A process and its owner: ready or why not, asked, silent, stopped, and gone before either."""

import os
import signal
import time

import msgspec
import pytest

from testbed.processes.worker import Answer, Go, NoAnswer, Ready, Refused, Stop, Worker

LIMIT_S = 30.0
SOON_S = 0.2


class Lines(msgspec.Struct, tag="lines"):
    """How many lines a process has heard."""

    count: int


class CannotError(Exception):
    """What a body refuses with."""


@pytest.fixture
def start():
    started = []

    def make(body, *refusals) -> Worker:
        started.append(Worker("test", body, *refusals, answers=Answer | Lines))
        return started[-1]

    yield make
    for worker in started:
        worker.close()


def count(channel) -> int:
    """Answer each line with how many there were, until told to stop."""
    channel.send(Ready())
    lines = 0
    while not isinstance(channel.receive(), Stop):
        lines += 1
        channel.send(Lines(lines))
    return lines


def ignore(channel) -> None:
    channel.send(Ready())
    while True:
        signal.pause()


def die(channel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(channel) -> None:
    raise CannotError("no room for it")


def test_it_is_ready_asked_and_stopped_and_its_result_comes_last(start):
    worker = start(count)
    worker.receive(Ready, LIMIT_S)
    assert [worker.ask(Go(), Lines, LIMIT_S).count for _ in range(3)] == [1, 2, 3]
    worker.tell(Go())
    # The answer to the former is still there, and passed over.
    assert worker.stop(LIMIT_S) == 4
    assert worker.child.ended() == "exited with 0"


def test_a_refusal_comes_with_its_reason(start):
    worker = start(refuse, CannotError)
    with pytest.raises(Refused, match=r"^no room for it$"):
        worker.receive(Ready, LIMIT_S)
    assert worker.child.ended(LIMIT_S) == "exited with 0"


def test_a_refusal_is_heard_in_place_of_a_result(start):
    def later(channel):
        channel.receive()
        refuse(channel)

    with pytest.raises(Refused, match="no room"):
        start(later, CannotError).stop(LIMIT_S)


def test_another_error_is_no_answer_and_says_so_where_errors_go(start, capfd):
    worker = start(refuse, OSError)
    with pytest.raises(NoAnswer, match="closed") as silent:
        worker.receive(Ready, LIMIT_S)
    assert not isinstance(silent.value, Refused)
    assert worker.child.ended(LIMIT_S) == "exited with 1"
    assert "no room for it" in capfd.readouterr().err


def test_who_dies_before_it_is_ready_is_no_answer(start):
    worker = start(die)
    with pytest.raises(NoAnswer, match="closed"):
        worker.receive(Ready, LIMIT_S)
    assert worker.child.ended(LIMIT_S) == "killed by SIGKILL"
    assert worker.child.condition() == "was killed by SIGKILL"
    with pytest.raises(NoAnswer):
        worker.ask(Go(), Lines, LIMIT_S)
    worker.tell(Go())
    with pytest.raises(NoAnswer):
        worker.stop(LIMIT_S)


def test_no_answer_within_the_limit(start):
    worker = start(ignore)
    worker.receive(Ready, LIMIT_S)
    with pytest.raises(NoAnswer, match=rf"no answer within {SOON_S} s"):
        worker.ask(Go(), Lines, SOON_S)
    assert worker.child.ended() is None


def test_who_is_held_by_a_signal_is_named(start):
    worker = start(ignore)
    worker.receive(Ready, LIMIT_S)
    os.kill(worker.child.pid, signal.SIGSTOP)
    with pytest.raises(NoAnswer):
        worker.ask(Go(), Lines, SOON_S)
    assert worker.child.condition().startswith(f"is stopped (process {worker.child.pid};")


def test_to_stop_twice_or_to_stop_and_close(start):
    worker = start(count)
    worker.receive(Ready, LIMIT_S)
    assert worker.stop(LIMIT_S) == 0
    with pytest.raises(NoAnswer):
        worker.stop(LIMIT_S)
    worker.close()
    worker.close()


@pytest.mark.parametrize("held", [False, True])
def test_who_ignores_that_it_shall_stop_is_killed(start, held):
    worker = start(ignore)
    worker.receive(Ready, LIMIT_S)
    if held:
        os.kill(worker.child.pid, signal.SIGSTOP)
    began_s = time.monotonic()
    with pytest.raises(NoAnswer, match="within"):
        worker.stop(SOON_S)
    assert worker.child.ended() == "killed by SIGKILL"
    assert time.monotonic() - began_s < LIMIT_S


def test_who_answers_and_does_not_end_is_killed_and_has_answered(start, monkeypatch):
    monkeypatch.setattr("testbed.processes.child.run_as_child", lambda body, _: (body(), ignore_()))

    def ignore_() -> None:
        while True:
            signal.pause()

    worker = start(lambda channel: channel.receive())
    assert worker.stop(SOON_S) == {"type": "stop"}
    assert worker.child.ended() == "killed by SIGKILL"


def test_it_ends_without_complaint_when_its_owner_is_gone(start, capfd):
    worker = start(count)
    worker.receive(Ready, LIMIT_S)
    worker.channel.close()
    assert worker.child.ended(LIMIT_S) == "exited with 0"
    assert capfd.readouterr().err == ""


def test_a_line_of_another_kind_is_no_answer_and_is_named(start):
    worker = start(count)
    with pytest.raises(NoAnswer, match=r"^the test said 'ready' and not 'lines'$"):
        worker.receive(Lines, LIMIT_S)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `type`"),
        (b'{"type":"nonsense"}', "Invalid value 'nonsense'"),
        (b'{"type":"lines"}', "missing required field `count`"),
        (b'{"type":"lines","count":"2"}', "Expected `int`"),
    ],
)
def test_a_process_that_says_what_it_cannot_is_no_answer_and_is_named(start, line, why):
    def garble(channel):
        os.write(channel.fileno(), line + b"\n")
        ignore(channel)

    worker = start(garble)
    with pytest.raises(NoAnswer, match=rf"^the test sent what cannot be read: .*{why}"):
        worker.receive(Ready, LIMIT_S)
    # It is not heard again, whatever it says.
    with pytest.raises(NoAnswer, match="closed"):
        worker.receive(Ready, LIMIT_S)


def test_a_process_that_is_told_what_it_cannot_be_refuses(start):
    worker = start(count)
    worker.receive(Ready, LIMIT_S)
    with pytest.raises(Refused, match=r"^the owner sent what cannot be read: .* 'lines'"):
        worker.ask(Lines(1), Lines, LIMIT_S)
    assert worker.child.ended(LIMIT_S) == "exited with 0"
