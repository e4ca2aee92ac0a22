"""JSON lines between two processes: order, limits, descriptors, and the end of the other side."""

import contextlib
import fcntl
import os
import resource
import socket

import pytest

from testbed.processes.channel import MAX_FDS_PER_LINE, Channel, ChannelClosed, Garbled


@pytest.fixture
def pair():
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


def test_lines_go_both_ways_in_order(pair):
    one, other = pair
    for number in range(100):
        one.send({"number": number, "text": "zwei\nZeilen ✓"})
    other.send({"answer": None})
    assert [other.receive(1)["number"] for _ in range(100)] == list(range(100))
    assert one.receive(1) == {"answer": None}


def test_a_line_in_pieces_and_two_in_one_piece():
    raw, theirs = socket.socketpair()
    with raw, contextlib.closing(Channel(theirs)) as channel:
        raw.sendall(b'{"a"')
        assert channel.drain() == []
        raw.sendall(b':1}\n{"b":2}\n{"c"')
        assert channel.receive(1) == {"a": 1}
        assert channel.drain() == [{"b": 2}]
        raw.sendall(b":3}\n")
        assert channel.receive(1) == {"c": 3}


def test_a_line_that_cannot_be_read_ends_what_is_heard_and_those_before_it_are_had():
    raw, theirs = socket.socketpair()
    with raw, contextlib.closing(Channel(theirs, dict[str, int], "the peer")) as channel:
        raw.sendall(b'{"a":1}\n{"b":"x"}\n{"c":3}\n')
        with pytest.raises(Garbled, match=r"^the peer sent what cannot be read: Expected `int`"):
            channel.drain()
        assert channel.closed
        assert channel.drain() == [{"a": 1}]
        with pytest.raises(ChannelClosed):
            channel.receive(1)


@pytest.mark.parametrize(
    "line", [b'{"host":"\xff"}\n', b'{"host":"\xed\xa0\x80"}\n', b"[" * 60_000 + b"\n"]
)
def test_a_line_that_is_no_text_or_has_no_end_is_garbled(line):
    ours, theirs = socket.socketpair()
    with ours, contextlib.closing(Channel(theirs, other="the peer")) as channel:
        ours.sendall(line)
        with pytest.raises(Garbled, match=r"^the peer sent what cannot be read: "):
            channel.receive(1)


def test_a_line_longer_than_one_read(pair):
    one, other = pair
    line = {"text": "x" * 100_000}
    one.send(line)
    assert other.receive(1) == line


def test_drain_takes_what_is_here_and_does_not_wait(pair):
    one, other = pair
    assert other.drain() == []
    one.send({"a": 1})
    one.send({"b": 2})
    assert other.drain() == [{"a": 1}, {"b": 2}]
    assert other.drain() == []
    assert not other.closed


def test_receive_has_a_limit(pair):
    with pytest.raises(TimeoutError, match="no answer within"):
        pair[0].receive(0.01)


def test_the_end_comes_after_the_last_line(pair):
    one, other = pair
    one.send({"last": 1})
    one.close()
    assert other.receive(1) == {"last": 1}
    assert not other.closed
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            other.receive(1)
    assert other.closed
    assert other.drain() == []


def test_drain_notices_the_end(pair):
    one, other = pair
    one.send({"last": 1})
    one.close()
    assert other.drain() == [{"last": 1}]
    assert other.closed


def test_an_end_that_left_lines_unread_is_an_end_too(pair):
    one, other = pair
    other.send({"unread": 1})
    one.close()
    with pytest.raises(ChannelClosed):
        other.receive(1)


def test_sending_to_nobody_is_refused(pair):
    one, other = pair
    other.close()
    with pytest.raises(ChannelClosed):
        one.send({"a": 1})
    one.close()
    with pytest.raises(ChannelClosed):
        one.send({"a": 1})


def test_descriptors_come_in_the_order_sent(pair):
    one, other = pair
    pipes = [os.pipe() for _ in range(3)]
    writers = [writer for _, writer in pipes]
    one.send({"number": 0}, tuple(writers[:2]))
    one.send({"number": 1}, tuple(writers[2:]))
    for writer in writers:
        os.close(writer)
    assert [other.receive(1)["number"] for _ in range(2)] == [0, 1]
    assert len(other.descriptors) == 3
    for reader, _ in pipes:
        received = other.descriptors.popleft()
        os.write(received, b"through")
        os.close(received)
        assert os.read(reader, 10) == b"through"
        assert os.read(reader, 10) == b""
        os.close(reader)


def test_the_most_descriptors_of_a_line_come_through(pair):
    one, other = pair
    reader, writer = os.pipe()
    one.send({"many": True}, (writer,) * MAX_FDS_PER_LINE)
    os.close(writer)
    other.receive(1)
    assert len(other.descriptors) == MAX_FDS_PER_LINE
    other.close()
    # Every copy is closed, or the pipe would have no end.
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_select_can_wait_for_a_channel(pair):
    one, other = pair
    assert other.fileno() >= 0
    one.close()
    assert one.fileno() == -1


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    except ValueError:
        pytest.skip("not enough open files allowed")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_descriptor_that_select_would_refuse(many_descriptors):
    raw, theirs = socket.socketpair()
    with raw, theirs:
        high = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 1024))
        with contextlib.closing(Channel(high)) as channel:
            assert channel.fileno() >= 1024
            assert channel.drain() == []
            raw.sendall(b'{"a":1}\n')
            assert channel.receive(1) == {"a": 1}
            with pytest.raises(TimeoutError):
                channel.receive(0.01)
