"""What nodes write to standard error, as their host sends it on."""

import os
from collections.abc import Iterator

import pytest

from testbed.run.hosts import log
from testbed.run.hosts.log import NodesLog


@pytest.fixture
def nodes_log() -> Iterator[NodesLog]:
    made = NodesLog()
    yield made
    made.close()


def test_lines_are_sent_on_whole_and_the_last_one_as_it_ends(nodes_log: NodesLog):
    assert nodes_log.take() == ""
    os.write(nodes_log.into, b"one\ntwo\nthr")
    assert nodes_log.take() == "one\ntwo\n"
    os.write(nodes_log.into, b"ee\nfo\xffur")
    nodes_log.release()
    assert nodes_log.rest() == "three\nfo\N{REPLACEMENT CHARACTER}ur\n"
    assert nodes_log.ended


def test_what_is_left_at_the_end_is_sent_whole(nodes_log: NodesLog):
    os.write(nodes_log.into, b"no end of a line")
    assert nodes_log.take() == ""
    os.write(nodes_log.into, b" yet")
    nodes_log.release()
    assert nodes_log.rest() == "no end of a line yet\n"


def test_more_than_a_host_may_write_is_left_out_and_that_is_said(
    nodes_log: NodesLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nodes_log, "_left", 10)
    os.write(nodes_log.into, b"0123456789\n")
    assert nodes_log.take().splitlines() == [
        "0123456789",
        f"what follows is left out, beyond {log.MOST_BYTES:,} bytes",
    ]
    os.write(nodes_log.into, b"more\n")
    assert nodes_log.take() == ""
