"""Nodes as a zygote makes them, in their namespaces: what is left to what runs there."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed.links.interface import Endpoint
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Node, Plan, plan
from testbed.processes import landlock
from testbed.processes.channel import Channel
from testbed.processes.confinement import Reach
from testbed.record import events
from testbed.run.zygote import Zygote

LIMIT_S = 30.0


class Trying:
    """A program whose node tries ``attempts`` and says in an event what came of each."""

    peer_to_peer = False

    def __init__(self, folder: Path, attempts: list[Callable[[], Any]]) -> None:
        self._folder, self._attempts = folder, attempts

    def prepare(self) -> None:
        return None

    def reach(self, node: Node, port: int) -> Reach:
        return Reach(folder=self._folder, listens=(), calls=(port,))

    def run_node(self, node: Node, channel: Channel) -> None:
        found = []
        for attempt in self._attempts:
            try:
                found.append(str(attempt()))
            except OSError as error:
                found.append(os.strerror(error.errno or 0))
        channel.send(events.Failed(traceback="\n".join(found)))


def said(layout: Plan, endpoint: Endpoint, program: Trying) -> tuple[events.Confined, list[str]]:
    """What a client's node says of itself, and what came of its attempts."""
    with contextlib.ExitStack() as owned:
        zygote = Zygote(layout, program, sys.stderr.fileno(), secure=False)
        owned.callback(zygote.down)
        zygote.wait_ready(LIMIT_S)
        channel = zygote.spawn(layout.clients[0], endpoint)
        owned.callback(channel.close)
        held, told = (channel.receive(LIMIT_S) for _ in range(2))
    assert isinstance(held, events.Confined) and isinstance(told, events.Failed)
    return held, told.traceback.splitlines()


def status(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


@pytest.fixture(params=["namespaces", "none"])
def place(request: pytest.FixtureRequest) -> tuple[Plan, Endpoint]:
    """A client's place in a namespace, and one over loopback links."""
    profile = LinkProfile(name="test")
    if request.param == "none":
        layout = plan([profile])
        return layout, Endpoint((), "127.0.0.1", 9)
    layout, network = request.getfixturevalue("build")(profile)
    return layout, network.endpoint(layout.clients[0])


def test_a_node_reads_of_itself_that_it_has_no_rights(
    place: tuple[Plan, Endpoint], tmp_path: Path
) -> None:
    names = ("CapEff", "CapPrm", "CapInh", "CapAmb")
    attempts = [lambda name=name: int(status(name), 16) for name in names]
    attempts += [lambda: status("NoNewPrivs"), lambda: status("Seccomp")]
    held, found = said(*place, Trying(tmp_path, attempts))
    assert found == ["0", "0", "0", "0", "1", "2" if held.seccomp else "0"]
    assert (held.capabilities, held.no_new_privileges) == (0, True)
    assert held.landlock is not None or held.missing


def test_a_node_writes_to_its_folder_alone(place: tuple[Plan, Endpoint], tmp_path: Path) -> None:
    try:
        landlock.version()
    except landlock.Unavailable as error:
        pytest.skip(str(error))
    own = tmp_path / "own"
    own.mkdir()
    attempts = [
        lambda: Path("state").write_text("kept"),
        lambda: (tmp_path / "other").write_text("x"),
        lambda: Path("/proc/sys/kernel/hostname").write_text("x"),
        lambda: os.kill(os.getppid(), 0),
    ]
    held, found = said(*place, Trying(own, attempts))
    refused = "Operation not permitted" if held.landlock >= 6 else "None"
    assert found == ["4", "Permission denied", "Permission denied", refused]
    assert (own / "state").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [own]


def test_a_node_holds_nothing_that_is_its_parents(
    place: tuple[Plan, Endpoint], tmp_path: Path
) -> None:
    """Its channel and its output: not the zygote's requests, nor the run's record."""
    with (tmp_path / "record").open("w") as record:
        link = f"/proc/self/fd/{record.fileno()}"
        kept = [lambda: os.readlink(link), lambda: len(sockets())]
        _, found = said(*place, Trying(tmp_path, kept))
    assert found == ["/dev/null", "1"]


def sockets() -> list[str]:
    found = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{each}"))
    return [name for name in found if name.startswith("socket:")]


def test_a_kernel_without_landlock_is_named_and_its_nodes_run(
    place: tuple[Plan, Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "_call", lambda *arguments: -1)
    monkeypatch.setattr(landlock, "_reason", lambda: "this kernel has none")
    held, found = said(*place, Trying(tmp_path, [lambda: status("NoNewPrivs")]))
    assert found == ["1"]
    assert held.landlock is None
    assert msgspec.to_builtins(held)["missing"] == ["landlock: this kernel has none"]
