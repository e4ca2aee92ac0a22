"""Files of the system's, in which names of any bytes may stand."""

import os
import socket
import sys
from pathlib import Path

import pytest

from testbed import files
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
def test_a_socket_by_a_path_that_is_no_utf_8_is_told_as_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "PRIVATE", ())
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(os.fsencode(tmp_path) + b"/x\xff")
        assert f"{tmp_path}/x\\udcff" in costs._shared_sockets()
