"""A client's memory: what is allowed, and what it says where it wants more."""

import contextlib
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from nodes import memory
from testbed.metering import meter
from testbed.processes.channel import Channel
from testbed.processes.worker import NoAnswer, Result, Worker
from testbed.record.events import Failed, Known

MB = 1_000_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")


def of_a_limited_child(
    limit_mb: float | None, body: Callable[[], Any]
) -> tuple[list[Any], str | None, int]:
    """Events of a process with that limit after the limit's own, its result and wait status."""
    heard, told = Channel.pair(Known)

    def run(channel: Channel) -> str:
        with memory.limited(limit_mb, "phone's", told):
            body()
        return "done"

    done = None
    with contextlib.closing(heard), contextlib.closing(Worker("limited", run)) as worker:
        with contextlib.suppress(NoAnswer):
            done = worker.receive(Result, 30).value
        worker.child.wait(10)
        lines = heard.drain()
    told.close()
    if limit_mb is not None:
        limited = lines.pop(0)
        assert (limited.memory_mb, limited.whose) == (limit_mb, "phone's")
    assert worker.child.exit_status is not None
    return lines, done, worker.child.exit_status


WANTS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.empty(100 * MB // 4),
    "numpy": lambda: np.zeros(100 * MB // 8),
    "python": lambda: bytearray(100 * MB),
    # What this process has freed and not given back is used up first.
    "little by little": lambda: [bytearray(10_000) for _ in range(200_000)],
}


@pytest.mark.parametrize("what", WANTS)
def test_who_wants_more_ends_and_says_so(what: str) -> None:
    (line,), done, status = of_a_limited_child(30.0, WANTS[what])
    assert isinstance(line, Failed)
    assert ("RuntimeError" if what == "torch" else "MemoryError") in line.traceback
    assert str(line.reason).startswith("out of memory: ")
    assert " of the phone's 30 MB were taken when it asked for " in str(line.reason)
    assert (done, status) == (None, 1 << 8)


def test_how_much_was_asked_for_is_told() -> None:
    (line,), _, _ = of_a_limited_child(30.0, WANTS["torch"])
    assert line.reason.endswith("asked for 100000000 bytes")


@pytest.mark.parametrize("limit_mb", [None, 110.0])
def test_what_fits_is_given(limit_mb: float | None) -> None:
    lines, done, status = of_a_limited_child(limit_mb, WANTS["torch"])
    assert (lines, done, status) == ([], "done", 0)


def test_stacks_of_the_sockets_threads_do_not_count() -> None:
    """ZeroMQ's and pyzmq's, as a client has them that sends without a copy."""

    def body() -> None:
        context = zmq.Context()
        one, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        one.bind("inproc://here")
        other.connect("inproc://here")
        one.send(np.ones(MB // 8), copy=False)
        other.recv()
        np.ones(25 * MB // 8)

    lines, done, status = of_a_limited_child(30.0, body)
    assert (lines, done, status) == ([], "done", 0)


def test_the_limit_ends_with_the_block() -> None:
    def twice() -> None:
        _ours, theirs = Channel.pair()
        with memory.limited(30.0, "phone's", theirs):
            pass
        torch.empty(100 * MB // 4)

    lines, done, status = of_a_limited_child(None, twice)
    assert (lines, done, status) == ([], "done", 0)


def test_other_errors_are_none_of_memory() -> None:
    def fail() -> None:
        raise RuntimeError("the shapes differ")

    lines, done, status = of_a_limited_child(30.0, fail)
    assert (lines, done, status) == ([], None, 1 << 8)


def test_the_limit_counts_what_is_taken_after_the_fork() -> None:
    inherited = np.ones(60 * MB // 8)
    lines, done, _ = of_a_limited_child(30.0, lambda: np.ones(20 * MB // 8))
    assert (lines, done) == ([], "done")
    assert inherited.nbytes == 60 * MB


def test_the_peak_is_what_was_given_back_and_what_was_not() -> None:
    def body(channel: Channel) -> dict[str, Any]:
        meter.usage()
        kept = np.ones(10 * MB // 8)
        # Not of the heap, which may keep what is freed.
        with mmap.mmap(-1, 40 * MB) as gone:
            np.frombuffer(gone, np.uint8).fill(1)
        first, second = meter.usage(), meter.usage()
        return {"first": first, "second": second, "kept": kept.nbytes}

    with contextlib.closing(Worker("peak", body)) as worker:
        found = worker.receive(Result, 30).value
    first, second = found["first"], found["second"]
    assert first["peak_private_mb"] - first["private_mb"] == pytest.approx(40, abs=2)
    # The next one begins anew.
    assert second["peak_private_mb"] - second["private_mb"] == pytest.approx(0, abs=2)
