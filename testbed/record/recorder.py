"""The recorder of a run: events.jsonl as things happen, and summary.json, whole at any time.

A killed run that goes on appends to its file. ``t``, sent_ns and received_ns are then as if no time
had passed between its last event and the command that resumed it, and
``recovery.ReplayFilter`` tells which events count.
"""

import contextlib
import fcntl
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from testbed import clock, files
from testbed.config_error import ConfigError
from testbed.record.events import Event, Message
from testbed.record.host_clocks import HostClocks
from testbed.record.reading import EVENTS
from testbed.record.recovery import Killed
from testbed.record.run_summary import Summary

SUMMARY_SHARE = 0.05
"""Of a run's time, at most, for writing what its summary is so far."""
FREE_BYTES_NEEDED = 32 * 1024 * 1024


class Recorder:
    """Owns the run's open events.jsonl."""

    def __init__(self, folder: Path, started_s: float, killed: Killed | None = None) -> None:
        """``started_s``: when the command began, on ``time.monotonic``'s clock. ``killed``: the
        run that goes on in this folder, whose lock this takes over; a torn last line is cut off.
        """
        self.folder = folder
        self._started_s = started_s
        self._past_s = 0.0
        """Emulated seconds of the run before it was killed."""
        self._past_origin_ns: int | None = None
        self._lock: BinaryIO | None = None
        self._make: Callable[[], Summary] | None = None
        """Of a summary that waits to be written."""
        self._due_s = 0.0
        """When the next one may be."""
        self.clocks: HostClocks | None = None
        """Of a run on several hosts."""
        if killed is None:
            self._file = files.appended(folder / EVENTS)
            with contextlib.suppress(OSError):  # A file system without locks.
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            self._lock = killed.file
            self._file = files.appended(folder / EVENTS)
            self._file.truncate(killed.size)
            self._past_s = killed.last_t
            self._past_origin_ns = killed.facts.origin_ns or 0

    @property
    def origin_ns(self) -> int:
        """The nodes' clock where an event's ``t`` is 0."""
        return round(1e9 * self._began_s())

    def elapsed_s(self) -> float:
        return clock.monotonic() - self._began_s()

    def _began_s(self) -> float:
        """When ``t`` was 0, on the run's clock."""
        return self._started_s / clock.dilation() - self._past_s

    def write(self, node: str, event: Event) -> None:
        """Append one event, with its time and node in it."""
        event.t, event.node = round(self.elapsed_s(), 6), node
        if self.clocks is not None:
            self.clocks.correct(node, event)
        if isinstance(event, Message):
            shift_ns = 0
            if self._past_origin_ns is not None:
                shift_ns = self._past_origin_ns - self.origin_ns
            event.received_ns += shift_ns
            # Nobody sends what has arrived already, whatever clocks say.
            event.sent_ns = min(event.sent_ns + shift_ns, event.received_ns)
        self._append(msgspec.json.encode(event) + b"\n")

    def _append(self, text: bytes) -> None:
        """Whole or not at all: a full disk takes a part, and says so at the next one."""
        written = 0
        try:
            while written < len(text):
                written += self._file.write(text[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(os.fstat(self._file.fileno()).st_size - written)
            raise

    def write_summary(self, summary: Summary) -> None:
        """Replace summary.json in one step, so that a reader never sees half of it."""
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        files.write(self.folder / "summary.json", text + b"\n")

    def keep_summary(self, make: Callable[[], Summary] | None = None) -> None:
        """Have summary.json be what ``make`` returns, now or before long.

        A summary grows with its run. It is written where that takes a small share of the time
        since the last one: else it waits for a later call, which may be without ``make``.
        """
        self._make = make or self._make
        if self._make is None or self.summary_wait_s > 0:
            return
        began_s = clock.monotonic()
        self.write_summary(self._make())
        self._make = None
        self._due_s = began_s + (clock.monotonic() - began_s) / SUMMARY_SHARE

    @property
    def summary_wait_s(self) -> float:
        """Until a summary that waits may be written; infinite where none does."""
        return math.inf if self._make is None else max(0.0, self._due_s - clock.monotonic())

    def close(self) -> None:
        self._file.close()
        if self._lock is not None:
            self._lock.close()


def create_folder(out: Path, label: str) -> Path:
    """Make the run's own folder under ``out`` and check that results can be written there.

    Raises:
        ConfigError: ``out`` cannot be written, or the disk has no room; the text says which.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        _check_room(out)
        out.mkdir(parents=True, exist_ok=True)
        folder = out / f"{stamp}-{label}"
        try:
            folder.mkdir()
        except FileExistsError:
            folder = out / f"{stamp}-{label}-{secrets.token_hex(3)}"
            folder.mkdir()
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name a folder you can write") from error
    return folder


def _check_room(out: Path) -> None:
    """Raises ConfigError, with nothing made, where the disk that ``out`` is to be on has no room.

    Raises:
        OSError: what there is on the way to it is no folder, or cannot be looked at.
    """
    there = out.absolute()
    while True:
        try:
            free = os.statvfs(there)
            break
        except FileNotFoundError:
            there = there.parent
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < FREE_BYTES_NEEDED:
        raise ConfigError(
            f"--out {out}: {free_bytes / 1e6:.1f} MB free on that disk, a run needs "
            f"{FREE_BYTES_NEEDED / 1e6:.0f} MB; free some or name another folder"
        )
