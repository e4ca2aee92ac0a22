"""Files as they are read: the system's, in which names of any bytes may stand, and anybody's."""

import os
import socket
import sys
import tracemalloc
from pathlib import Path

import pytest

from testbed import files, outside
from testbed.exec import costs


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"/\xff\x0b\xc2\x85 x\n", ["/\udcff\x0b\x85 x"]),
    ],
)
def test_lines_end_at_line_feeds_alone(content: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "maps").write_bytes(content)
    assert files.system_lines(tmp_path / "maps") == lines


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")
def test_a_socket_by_a_path_that_is_no_utf_8_is_told_as_any(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(os.fsencode(tmp_path) + b"/x\xff")
        assert f"{tmp_path}/x\\udcff" in costs._sockets()


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"12345678")
    tracemalloc.start()
    try:
        assert files.read(tmp_path / "small", files.SUMMARY_BYTES) == b"12345678"
        assert outside.data(tmp_path / "small", "a file") == b"12345678"
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < 4 * files.MEGABYTE


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "large").write_bytes(content)
    with files.opened(tmp_path / "large") as file:
        assert files.contents(file, 1_100_001) == content[:1_100_001]
        assert files.contents(file, 2 * len(content)) == content[1_100_001:]
