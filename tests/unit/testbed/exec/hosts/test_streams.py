"""Output of a host's programs on its way: whole, in order, and of a node no more than so much."""

import os
from collections.abc import Iterator

import pytest

from testbed.exec.hosts import streams
from testbed.exec.hosts.messages import Wrote
from testbed.exec.hosts.streams import Streams


@pytest.fixture
def node() -> Iterator[Streams]:
    made = Streams(3)
    yield made
    made.close()


def test_what_is_written_comes_by_its_stream(node: Streams) -> None:
    out, err = node.into
    os.write(out, b"one\ntw")
    os.write(err, b"\xff\0")
    assert node.take(0) == [Wrote(3, 0, b"one\ntw")]
    assert node.take(0) == []
    assert node.take(1) == [Wrote(3, 1, b"\xff\0")]
    node.release()
    # Nobody can write any more.
    assert node.take(0) == []


def test_the_rest_is_all_that_was_written_before_an_end(node: Streams) -> None:
    text = os.urandom(1 << 15)
    os.write(node.into[0], text)
    os.write(node.into[1], text[::-1])
    found = node.rest()
    for stream, expected in enumerate((text, text[::-1])):
        assert b"".join(each.data for each in found if each.stream == stream) == expected
    assert node.rest() == []
    node.release()


def test_beyond_its_bound_a_program_writes_on_and_nothing_is_sent(
    node: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    node._left = 10
    out, _ = node.into
    os.write(out, b"0123456789ab")
    (last,) = node.take(0)
    assert last.data.startswith(b"0123456789ab\n[what follows is left out, beyond ")
    assert f"{streams.MOST_BYTES:,}".encode() in last.data
    for _ in range(100):
        # A pipe that nobody reads would take no more.
        os.write(out, bytes(1 << 12))
        assert node.take(0) == []
    assert node.rest() == []
    node.release()
