"""Standard error of a host's nodes on its way to the run: whole lines, and so many bytes."""

import os
import select
import time

MOST_BYTES = 1 << 20
"""Of a host's in a run; what is more is left out."""
ENDING_LIMIT_S = 2.0
_READ_BYTES = 1 << 16
_MOST_LINE_BYTES = 1 << 13


class NodesLog:
    """Owns a pipe, which its nodes have as their standard error."""

    def __init__(self) -> None:
        self._out, self.into = os.pipe()
        os.set_blocking(self._out, False)
        self._partial = b""
        self._left = MOST_BYTES
        self.ended = False
        """Nobody can write any more."""

    def fileno(self) -> int:
        return self._out

    def release(self) -> None:
        """Leave the writing to those who have been forked."""
        os.close(self.into)

    def take(self) -> str:
        """Lines that are here now, without waiting; the last one as it is, once all has ended."""
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return ""
        self.ended = not data
        whole, newline, self._partial = (self._partial + data).rpartition(b"\n")
        if self._partial and (self.ended or len(self._partial) > _MOST_LINE_BYTES):
            whole, newline, self._partial = whole + newline + self._partial, b"\n", b""
        return self._bounded(whole + newline)

    def rest(self) -> str:
        """All that is here still, until all have ended who write to it, which is waited for."""
        found, until = "", time.monotonic() + ENDING_LIMIT_S
        while not self.ended and (left_s := until - time.monotonic()) > 0:
            waiter = select.poll()
            waiter.register(self._out, select.POLLIN)
            waiter.poll(1000 * left_s)
            found += self.take()
        return found

    def _bounded(self, lines: bytes) -> str:
        if self._left <= 0:
            return ""
        self._left -= len(lines)
        text = lines.decode(errors="replace")
        if self._left <= 0:
            text += f"what follows is left out, beyond {MOST_BYTES:,} bytes\n"
        return text

    def close(self) -> None:
        os.close(self._out)
