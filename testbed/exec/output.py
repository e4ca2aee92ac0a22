"""Output of the nodes' programs: read from their files as it comes, a line at a time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from testbed import files

STREAMS = ("stdout", "stderr")
MOST_AT_ONCE = 1 << 18
MOST_BEHIND = 1 << 22
"""Bytes that may wait to be read; of more the first are passed over."""
MOST_LINE_BYTES = 1 << 16
"""A line is shown in parts of no more."""
MOST_SHOWN = 500
"""Lines that are shown of those that have come at once."""


class Line(NamedTuple):
    node: str
    stream: str
    text: str


class Output:
    """Owns the files of one node's two streams, which its program writes to."""

    def __init__(self, node: str, folder: Path) -> None:
        """Raises OSError: they cannot be made in ``folder``."""
        self.node, self._folder = node, folder
        self._files: list[BinaryIO] = [files.created(folder / f"{s}.txt") for s in STREAMS]
        for file in self._files:
            # Else what one process of a program writes would go over what another has written.
            descriptor = file.fileno()
            os.set_blocking(descriptor, True)
            _append(descriptor)
        self._readers = [files.opened(folder / f"{stream}.txt") for stream in STREAMS]
        self._partial = [b""] * len(STREAMS)
        self._passed_over = False
        """Something was written faster than it could be read."""
        self._told = False

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._files[0].fileno(), self._files[1].fileno()

    def lines(self, *, last: bool = False) -> list[Line]:
        """Lines that have come since; ``last``: with what has no end yet."""
        found = []
        for place, stream in enumerate(STREAMS):
            whole, rest = self._read(place)
            parts = [part for line in whole for part in _parts(line)]
            *long, rest = _parts(rest)
            parts += long
            if rest and last:
                parts, rest = [*parts, rest], b""
            self._partial[place] = rest
            found += [Line(self.node, stream, line.decode(errors="replace")) for line in parts]
        return found

    def _read(self, place: int) -> tuple[list[bytes], bytes]:
        """Lines that are whole, and the begin of the next."""
        reader, before = self._readers[place], self._partial[place]
        at = reader.tell()
        behind = os.fstat(reader.fileno()).st_size - at
        if behind > MOST_BEHIND:
            reader.seek(at + behind - MOST_AT_ONCE)
            self._passed_over, before = True, b""
        *whole, rest = (before + reader.read(MOST_AT_ONCE)).split(b"\n")
        return whole, rest

    def shown(self, found: list[Line]) -> list[Line]:
        """Those of ``found``, which ``lines`` gave, that are for people; and once that some are
        missing."""
        shown = found[:MOST_SHOWN]
        if (self._passed_over or len(found) > MOST_SHOWN) and not self._told:
            self._told = True
            rounds = ", nor are rounds looked for in it" if self._passed_over else ""
            text = f"[what comes too fast is not shown{rounds}; all of it is in {self._folder}]"
            shown.append(Line(self.node, STREAMS[0], text))
        return shown

    def pass_on(
        self, say: Callable[[Line], None], look: Callable[[Line], None], *, last: bool = False
    ) -> None:
        """Give what has come since to who shows it, and all of that to who looks for more in it.

        ``last``: all that there is, with what has no end.
        """
        for found in self._all_lines() if last else [self.lines()]:
            for line in self.shown(found):
                say(line)
            for line in found:
                look(line)

    def _all_lines(self) -> Iterator[list[Line]]:
        while found := self.lines():
            yield found
        yield self.lines(last=True)

    def close(self) -> None:
        for file in (*self._files, *self._readers):
            file.close()


def _parts(line: bytes) -> list[bytes]:
    """The line in parts that are not too long; one at least."""
    if len(line) <= MOST_LINE_BYTES:
        return [line]
    return [line[at : at + MOST_LINE_BYTES] for at in range(0, len(line), MOST_LINE_BYTES)]


def _append(descriptor: int) -> None:
    import fcntl

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
