"""What arrives at a ZeroMQ socket is heard in an event loop, whatever else the socket does."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from testbed.transport import zmq_receive
from testbed.transport.zmq_receive import MessageReceiver, read

Pair = tuple[zmq.Socket[Any], zmq.Socket[Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends within the process: what one sends is there for the other at once."""
    context = zmq.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://pair")
    theirs.connect("inproc://pair")
    yield ours, theirs
    ours.close(linger=0)
    theirs.close(linger=0)
    context.term()


def data(frames: list[zmq.Frame]) -> list[bytes]:
    return [frame.bytes for frame in frames]


async def waiting(arrivals: MessageReceiver) -> asyncio.Task[list[zmq.Frame]]:
    """A task that has found nothing, and waits."""
    task = asyncio.create_task(arrivals.receive())
    await asyncio.sleep(0)
    assert not task.done()
    return task


def test_all_frames_of_a_message_come_together(pair: Pair) -> None:
    ours, theirs = pair
    theirs.send_multipart([b"1", b"", b"3"])
    theirs.send(b"next")
    assert data(read(ours)) == [b"1", b"", b"3"]
    assert data(read(ours)) == [b"next"]
    with pytest.raises(zmq.Again):
        read(ours, zmq.DONTWAIT)


def test_of_a_message_with_too_many_frames_the_first_are_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    monkeypatch.setattr(zmq_receive, "MOST_FRAMES", 3)
    theirs.send_multipart([b"1", b"2", b"3", b"4", b"5"])
    theirs.send(b"next")
    assert data(read(ours)) == [b"1", b"2", b"3"]
    assert data(read(ours)) == [b"next"]


def test_one_that_waits_hears_what_comes(pair: Pair) -> None:
    async def main() -> None:
        ours, theirs = pair
        arrivals = MessageReceiver(ours)
        for word in (b"one", b"two"):
            task = await waiting(arrivals)
            theirs.send(word)
            assert data(await asyncio.wait_for(task, 10)) == [word]

    asyncio.run(main())


def test_a_sending_that_takes_the_sign_away_leaves_nobody_waiting(pair: Pair) -> None:
    async def main() -> None:
        ours, theirs = pair
        arrivals = MessageReceiver(ours)
        task = await waiting(arrivals)
        theirs.send(b"question")
        # The socket hears of the question here, and its descriptor says no more of it.
        ours.send(b"other")
        arrivals.look()
        assert data(await asyncio.wait_for(task, 10)) == [b"question"]

    asyncio.run(main())


def test_one_that_is_cancelled_watches_no_more(pair: Pair) -> None:
    async def main() -> None:
        ours, _ = pair
        task = await waiting(MessageReceiver(ours))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # With a descriptor that stays readable the loop would turn and turn.
        assert not asyncio.get_running_loop().remove_reader(ours.getsockopt(zmq.FD))

    asyncio.run(main())
