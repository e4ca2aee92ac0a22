"""Captures of a run on several hosts: each takes its own nodes', and they come to the driver."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from testbed import files
from testbed.config_error import ConfigError
from testbed.links.interface import Network
from testbed.metering.capture import START_LIMIT_S, Capture, Captured, in_folder, unused
from testbed.network import hosts
from testbed.network.topology import SERVER, Plan
from testbed.record.recorder import FREE_BYTES_NEEDED
from testbed.run.hosts import waits
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.messages import CaptureEnded, CapturePiece, EndCapture, StartCapture

_CURE = "free some there, or start that agent with another folder as its TMPDIR"
PIECE_BYTES = 1 << 20
PIECE_LIMIT_S = 20.0
"""For a host to end its capture, and for each next piece of it."""


def refuse_full_disk() -> None:
    """Raise ConfigError where this host has no room for its clients' captures."""
    try:
        folder = tempfile.gettempdir()
        there = os.statvfs(folder)
        free_bytes = there.f_bavail * there.f_frsize
    except OSError as error:
        raise ConfigError(f"pcap = true: {error.strerror}; {_CURE}") from error
    if free_bytes < FREE_BYTES_NEEDED:
        raise ConfigError(
            f"pcap = true: {folder}: {free_bytes / 1e6:.1f} MB free on that disk, captures need "
            f"{FREE_BYTES_NEEDED / 1e6:.0f} MB until the run ends; {_CURE}"
        )


class PartCapture:
    """A host's capture, in files without a name: nothing is left of them, however it ends."""

    def __init__(
        self, plan: Plan, host: str, network: Network, wall_s: float, *, server: bool = False
    ) -> None:
        """Capture from now on.

        ``wall_s``: the driver's time since 1970 less its monotonic clock as it is known here.
        ``server``: of the server, too, where that is here.

        Raises:
            LinkError: it cannot be.
        """
        mine = hosts.of_host(plan, host)
        self._nodes = [node for node in mine if server or node.name != SERVER]
        with contextlib.ExitStack() as owned:
            made: list[BinaryIO] = [
                owned.enter_context(tempfile.TemporaryFile()) for _ in self._nodes
            ]
            own_s = time.time() - time.monotonic()
            shift_ns = round(1e9 * (wall_s - own_s))
            self._capture = Capture(self._nodes, network, lambda nodes: made, shift_ns)
            owned.callback(self._capture.close)
            self._capture.start()
            self._files, self._owned = made, owned.pop_all()

    def stop(self) -> Iterator[CapturePiece | CaptureEnded]:
        """Everything that was seen, in pieces, and last of all what there is to say of it."""
        captured = self._capture.stop()
        for node, file in zip(self._nodes, self._files, strict=True):
            at = 0
            while data := os.pread(file.fileno(), PIECE_BYTES, at):
                yield CapturePiece(node.index, data)
                at += len(data)
        yield CaptureEnded(captured.packets, captured.dropped, captured.failure)

    def close(self) -> None:
        self._owned.close()


class HostsCapture:
    """The captures of all hosts, in one folder; owns the driver's own."""

    def __init__(
        self,
        all_hosts: Hosts,
        plan: Plan,
        network: Network,
        folder: Path,
        *,
        server: bool = False,
    ) -> None:
        """``folder``: the run's; ``server``: of the server, too. Forks, as ``Capture`` does."""
        self._hosts, self._server = all_hosts, server
        self._nodes = plan.nodes if server else plan.clients
        self._folder = unused(folder)
        self._own_nodes = [node for node in self._nodes if all_hosts.of(node) is None]
        self._own = Capture(self._own_nodes, network, in_folder(self._folder))
        self._files: dict[int, BinaryIO] = {}
        self._failure: str | None = None

    def start(self) -> None:
        """Capture on all hosts from now on.

        Raises:
            LinkError: one of them cannot.
        """
        self._own.start()
        wall_s = time.time() - time.monotonic()
        for far in self._hosts.others:
            self._hosts.say(far, StartCapture(wall_s + far.ahead_s, self._server))
        told = START_LIMIT_S, "no capture"
        waits.for_all(self._hosts, lambda far: far.captures, *told, without=False)

    def stop(self) -> Captured:
        """Have all that was seen be in the folder; each host's pieces are waited for."""
        found = self._own.stop()
        rows = dict(zip([node.index for node in self._own_nodes], _rows(found), strict=False))
        self._failure = found.failure
        try:
            for node in self._nodes:
                if self._hosts.of(node) is not None:
                    self._files[node.index] = files.created(self._folder / f"{node.name}.pcap")
        except OSError as error:
            self._fail(error)
        self._hosts.captured = self._take
        for far in self._hosts.others:
            self._hosts.say(far, EndCapture())
        self._await()
        for far in self._hosts.others:
            if (ended := far.captured) is None:
                self._failure = self._failure or f"host {far.name} is gone with what it captured"
                continue
            nodes = [n.index for n in self._nodes if n.host == far.name]
            rows |= zip(nodes, _rows(ended), strict=False)
            if ended.failure is not None:
                self._failure = self._failure or f"host {far.name}: {ended.failure}"
        everyone = [rows.get(node.index, (0, 0)) for node in self._nodes]
        self._close_files()
        return Captured([row[0] for row in everyone], [row[1] for row in everyone], self._failure)

    def _await(self) -> None:
        """Wait for each host as long as more comes of it."""
        while left := [
            far for far in self._hosts.others if far.captured is None and far.gone is None
        ]:
            before = {far.name: far.pieces for far in left}
            waits.for_all(
                self._hosts,
                lambda far, was=before: far.captured is not None or far.pieces != was.get(far.name),  # type: ignore[misc]
                PIECE_LIMIT_S,
                "nothing of its capture",
            )

    def _take(self, piece: CapturePiece) -> None:
        if (file := self._files.get(piece.node)) is not None and self._failure is None:
            try:
                file.write(piece.data)
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failure = self._failure or f"write {self._folder.name}: {error.strerror}"

    def _close_files(self) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self._fail(error)
        self._files.clear()

    def close(self) -> None:
        """Idempotent."""
        self._own.close()
        self._close_files()


def _rows(of: Captured | CaptureEnded) -> list[tuple[int, int]]:
    """Packets that were written, and dropped, a node."""
    return list(zip(of.packets, of.dropped, strict=False))
