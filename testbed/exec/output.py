"""Output of the nodes' programs: read from their files as it comes, a line at a time."""

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from testbed import files

STREAMS = ("stdout", "stderr")
MOST_AT_ONCE = 1 << 20
MOST_LINE_BYTES = 1 << 16
"""A line is shown in parts of no more."""


class Line(NamedTuple):
    node: str
    stream: str
    text: str


class Output:
    """Owns the files of one node's two streams, which its program writes to."""

    def __init__(self, node: str, folder: Path) -> None:
        """Raises OSError: they cannot be made in ``folder``."""
        self.node = node
        self._files: list[BinaryIO] = [files.created(folder / f"{s}.txt") for s in STREAMS]
        for file in self._files:
            # Else what one process of a program writes would go over what another has written.
            descriptor = file.fileno()
            os.set_blocking(descriptor, True)
            _append(descriptor)
        self._readers = [files.opened(folder / f"{stream}.txt") for stream in STREAMS]
        self._partial = [b""] * len(STREAMS)

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._files[0].fileno(), self._files[1].fileno()

    def lines(self, *, last: bool = False) -> list[Line]:
        """Lines that have come since; ``last``: with what has no end yet."""
        found = []
        for place, stream in enumerate(STREAMS):
            data = self._readers[place].read(MOST_AT_ONCE)
            *whole, rest = (self._partial[place] + data).split(b"\n")
            if rest and (last or len(rest) > MOST_LINE_BYTES):
                whole, rest = [*whole, rest], b""
            self._partial[place] = rest
            found += [Line(self.node, stream, line.decode(errors="replace")) for line in whole]
        return found

    def close(self) -> None:
        for file in (*self._files, *self._readers):
            file.close()


def _append(descriptor: int) -> None:
    import fcntl

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
