"""What nodes write to standard error, as their host sends it on."""

import os
from collections.abc import Iterator

import pytest

from testbed.run.hosts import log
from testbed.run.hosts.log import NodesLog
from testbed.run.hosts.messages import Logged


@pytest.fixture
def nodes_log() -> Iterator[NodesLog]:
    made = NodesLog()
    yield made
    made.close()


def written(nodes_log: NodesLog, text: bytes) -> int:
    """A process that has written this, and ended."""
    pid = os.fork()
    if pid == 0:
        os.write(nodes_log.into, text)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_lines_are_sent_on_whole_and_the_last_one_as_it_ends(nodes_log: NodesLog):
    assert nodes_log.take() == []
    os.write(nodes_log.into, b"one\ntwo\nthr")
    assert nodes_log.take() == [Logged("one\ntwo\n")]
    os.write(nodes_log.into, b"ee\nfo\xffur")
    nodes_log.release()
    assert [each.text for each in nodes_log.rest()] == [
        "three\n",
        "fo\N{REPLACEMENT CHARACTER}ur\n",
    ]
    assert nodes_log.ended


def test_what_is_left_at_the_end_is_sent_whole(nodes_log: NodesLog):
    os.write(nodes_log.into, b"no end of a line")
    assert nodes_log.take() == []
    os.write(nodes_log.into, b" yet")
    nodes_log.release()
    assert nodes_log.rest() == [Logged("no end of a line yet\n")]


def test_each_line_is_of_the_node_that_wrote_it_however_they_took_turns(nodes_log: NodesLog):
    one = written(nodes_log, b"one begins ")
    two = written(nodes_log, b"two\ntwo ends")
    os.write(nodes_log.into, b"the host's own\n")
    nodes_log.nodes |= {one: 4, two: 7}
    nodes_log.release()
    assert sorted((each.node or 0, each.text) for each in nodes_log.rest()) == [
        (0, "the host's own\n"),
        (4, "one begins \n"),
        (7, "two\n"),
        (7, "two ends\n"),
    ]


def test_more_than_a_host_may_write_is_left_out_and_that_is_said(
    nodes_log: NodesLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nodes_log, "_left", 10)
    os.write(nodes_log.into, b"0123456789\n")
    (word,) = nodes_log.take()
    assert word.text.splitlines() == [
        "0123456789",
        f"what follows is left out, beyond {log.MOST_BYTES:,} bytes",
    ]
    os.write(nodes_log.into, b"more\n")
    assert nodes_log.take() == []
