"""Recovery of a killed run's record: whether it can go on, and what of it then still counts.

A run goes on in the same events.jsonl, after a "resumed" event that names the last round that
counts. What the killed part did beyond that round stays in the file, and is left out by whoever
reads the run from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from testbed import files
from testbed.config_error import ConfigError, in_words
from testbed.record import reading
from testbed.record.events import (
    Captured,
    Closed,
    Event,
    Message,
    Redone,
    Resumed,
    RoundStarted,
    Run,
    UpDown,
    Wire,
)
from testbed.record.reading import EVENTS, Damaged

LOCK_LIMIT_S = 2.0
"""How long a killed run's last processes may take to end."""
LOCK_POLL_S = 0.02


class ReplayFilter:
    """Tells the events that count from those of rounds that a resumed run has done again."""

    def __init__(self, resumed_from: Iterable[int]) -> None:
        """``resumed_from``: the round of each "resumed" event that follows, in order."""
        self._later = deque(resumed_from)
        self._until = min(self._later, default=math.inf)
        self._is_beyond = False
        self._asynchronous = False

    def keeps(self, event: Event) -> bool:
        """Whether it counts; to be asked of every event in turn."""
        if isinstance(event, Run):
            self._asynchronous = event.asynchronous
            return True
        if isinstance(event, Resumed):
            self._later.popleft()
            self._until = min(self._later, default=math.inf)
            self._is_beyond = False
            return True
        number: int | None = getattr(event, "round", None)
        if number:
            if isinstance(event, RoundStarted):
                self._is_beyond = number > self._until
            # An answer to an earlier round counts in the one in which it came.
            late = self._asynchronous and self._is_beyond
            return bool(number <= self._until) and not late
        if isinstance(event, Closed | Captured | Wire):
            # Of the whole run's end, which was none.
            return not self._later
        # Of no round, as what a node says of itself and the hellos of round 0 are.
        return not self._is_beyond


def resumed_from(lines: Iterable[bytes]) -> list[int]:
    """The rounds that "resumed" events name."""
    found = []
    for line in lines:
        if b'"resumed"' in line:
            # What is wrong with one is for its reader to say.
            with contextlib.suppress(Damaged):
                event = reading.decoded(line)
                found += [event.round] if isinstance(event, Resumed) else []
    return found


def counted(file: BinaryIO) -> Iterator[Event]:
    """The events of a whole record that count.

    Raises:
        Damaged: it is not as this version writes it.
    """
    for event in sifted(file):
        if event is None:
            raise Damaged("a line is torn")
        yield event


def sifted(file: BinaryIO) -> Iterator[Event | None]:
    """The events of a record that count, and None for each torn line.

    Raises:
        Damaged: it is not as this version writes it.
    """
    sift = ReplayFilter(resumed_from(reading.lines(file)))
    file.seek(0)
    for event in reading.read(reading.lines(file)):
        if event is None or sift.keeps(event):
            yield event


class Killed:
    """A run that nobody carries out any more, and nobody else can while this is open.

    A run's processes share the lock on its events.jsonl, and the kernel frees it when the last of
    them has ended.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError: it is no run's folder, or the run goes on, or is over."""
        self.folder = folder
        try:
            self.file = files.updated(folder / EVENTS)
        except OSError as error:
            raise self._refusal(f"cannot read {EVENTS} ({error.strerror})") from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self.file.close()
            raise

    @property
    def config_file(self) -> Path:
        """Raises ConfigError: it is none that can be read."""
        path = self.folder / files.CONFIG
        try:
            files.read(path, files.CONFIG_BYTES)
        except OSError as error:
            raise self._refusal(f"cannot read {files.CONFIG} ({error.strerror})") from error
        return path

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._refusal("the run still goes on in another process") from None
            except OSError as error:
                raise self._refusal(f"cannot lock {EVENTS} ({error.strerror})") from error
            time.sleep(LOCK_POLL_S)

    def _read(self) -> None:
        self.size = 0
        """Bytes of whole lines."""
        self.last_t = 0.0
        """Of the last event."""
        self.rounds = 0
        """How many are over and count."""
        status: str | None = None
        first: Event | None = None
        resumed_from: list[int] = []
        try:
            for line, event in self._events():
                self.size += len(line)
                self.last_t = event.t
                first = first or event
                if not isinstance(first, Run):
                    break
                if isinstance(event, Closed):
                    status = event.status
                elif isinstance(event, Resumed):
                    resumed_from.append(event.round)
                    self.rounds, status = event.round, None
                elif isinstance(event, Wire) and event.round:
                    self.rounds = event.round
        except (OSError, Damaged) as error:
            raise self._refusal(
                f"{EVENTS} is not as this version writes it ({in_words(error)})"
            ) from error
        if not isinstance(first, Run):
            raise self._refusal("it had not begun; start it again")
        if first.programs:
            raise self._refusal("programs do not go on; `exec -f` on its config.toml repeats them")
        if status == "ok":
            raise self._refusal("the run is over; `launch --config` on its config.toml repeats it")
        self.facts = first
        """The "run" event."""
        self.resumed_from = resumed_from
        """Of each time that it was resumed, the last round that counted."""

    def events(self, after: int) -> Iterator[Event]:
        """Events that count where the run goes on after round ``after``."""
        return (event for event, counts in self._sifted(after) if counts)

    def lost(self, after: int) -> Redone:
        """The part that is done again: its seconds, and payload and message bytes that arrived."""
        lost = Redone(payload=UpDown(0, 0), message=UpDown(0, 0), seconds=0.0)
        clients = set(self.facts.client_names)
        counted_t = self.facts.t
        for event, counts in self._sifted(after):
            if counts:
                if isinstance(event, Wire | Resumed):
                    counted_t = event.t
            elif isinstance(event, Message):
                for way, end in (("up", event.peer), ("down", event.node)):
                    if end in clients:
                        lost.payload.add(way, event.payload_bytes)
                        lost.message.add(way, event.message_bytes)
        lost.seconds = round(self.last_t - counted_t, 6)
        return lost

    def _sifted(self, after: int) -> Iterator[tuple[Event, bool]]:
        """Events that counted so far, and whether each still does."""
        before, now = ReplayFilter(self.resumed_from), ReplayFilter([*self.resumed_from, after])
        for _, event in self._events():
            counted, counts = before.keeps(event), now.keeps(event)
            if counted:
                yield event, counts

    def _events(self) -> Iterator[tuple[bytes, Event]]:
        """Every whole line and its event."""
        self.file.seek(0)
        whole, again = itertools.tee(
            itertools.takewhile(lambda line: line.endswith(b"\n"), reading.lines(self.file))
        )
        for line, event in zip(whole, reading.read(again), strict=True):
            if event is None:
                raise Damaged("a line is torn, and others follow")
            yield line, event

    def close(self) -> None:
        self.file.close()

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"--resume {self.folder}: {why}")
