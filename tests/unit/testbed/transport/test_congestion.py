"""Congestion control of a run: what is pinned where nothing is asked for, and what is refused."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import launch
from testbed.config_error import ConfigError
from testbed.machine import doctor
from testbed.run.config import RunConfig
from testbed.transport import congestion

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a choice")
NO_CUBIC = "congestion control: bbr, the host's own: this kernel has no cubic (as root: modprobe"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel without CUBIC, by its files."""
    (tmp_path / "tcp_available_congestion_control").write_text("reno bbr\n")
    (tmp_path / "tcp_congestion_control").write_text("bbr\n")
    monkeypatch.setattr(congestion, "_KERNEL", tmp_path)
    return tmp_path


def test_what_a_connection_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'newest': this kernel has .*modprobe tcp_newest"):
        congestion.check("newest", "userspace")
    with pytest.raises(ConfigError, match="a relay stands in for TCP"):
        congestion.check("reno", "loopback")
    congestion.check("reno", "userspace")


def test_cubic_is_the_default_where_the_kernel_has_it(kernel: Path) -> None:
    (kernel / "tcp_available_congestion_control").write_text("reno bbr cubic\n")
    assert congestion.default() == ("cubic", None)


def test_the_hosts_own_stands_in_for_cubic_and_that_is_said(kernel: Path) -> None:
    name, told = congestion.default()
    assert name == "bbr"
    assert told is not None and told.startswith(NO_CUBIC)
    found = doctor._congestion()
    assert not found.ok and "runs take bbr" in found.found and "modprobe tcp_cubic" in found.cure


@pytest.mark.parametrize(
    ("asked", "flags", "links", "expected"),
    [
        (None, {}, "userspace", ("bbr", "cubic", NO_CUBIC)),
        ("reno", {"congestion": "reno"}, "netem", ("reno", "reno", None)),
        ("reno", {}, "loopback", (None, None, "congestion = 'reno' is left out")),
        (None, {}, "loopback", (None, None, None)),
    ],
)
def test_a_run_pins_what_its_connections_have(
    kernel: Path,
    asked: str | None,
    flags: dict[str, str],
    links: str,
    expected: tuple[str | None, str | None, str | None],
) -> None:
    *found, told = launch._congestion(RunConfig(congestion=asked), flags, links, None)
    assert tuple(found) == expected[:2]
    assert (told or "").startswith(expected[2] or "") and bool(told) == bool(expected[2])


def test_a_run_that_is_resumed_keeps_what_it_had(kernel: Path) -> None:
    killed: Any = object()
    began = RunConfig(congestion="reno")
    assert launch._congestion(began, {}, "userspace", killed) == ("reno", "reno", None)
    # Before it was pinned it was the host's own.
    assert launch._congestion(RunConfig(), {}, "userspace", killed) == (None, None, None)


def test_what_is_asked_for_by_name_is_not_replaced(kernel: Path) -> None:
    for links, why in (("userspace", "this kernel has reno, bbr"), ("loopback", "a relay stands")):
        flags = {"congestion": "cubic"}
        with pytest.raises(ConfigError, match=why):
            launch._congestion(RunConfig(congestion="cubic"), flags, links, None)


def test_connections_of_any_library_are_found_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(type=socket.SOCK_DGRAM):
        before = set(congestion.connections())
        calling = socket.create_connection(listening.getsockname())
        answering, _ = listening.accept()
        with calling, answering:
            found = set(congestion.connections()) - before
            assert found == {calling.fileno(), answering.fileno()}
            congestion.set_on(calling.fileno(), "reno")
            assert congestion.used_by(calling.fileno()) == "reno"
        assert not set(congestion.connections()) - before
