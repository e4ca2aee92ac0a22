"""Standard error of a host's nodes on its way to the run: whole lines by their node, so many bytes.

All write to one socket, whose kernel tells of each piece which process it is from.
"""

import os
import select
import socket
import struct
import time

from testbed.run.hosts.messages import Logged

MOST_BYTES = 1 << 20
"""Of a host's in a run; what is more is left out."""
ENDING_LIMIT_S = 2.0
_READ_BYTES = 1 << 16
_MOST_READS = 64
_MOST_LINE_BYTES = 1 << 13
_WRITER = struct.Struct("3i")
"""A process, its user and its group."""
_NOBODY = 0


class NodesLog:
    """Owns both ends of a connection, one of which its nodes have as their standard error."""

    def __init__(self) -> None:
        self._out, into = socket.socketpair()
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._out.setblocking(False)
        self.into = into.detach()
        self.nodes: dict[int, int] = {}
        """By their processes; what others write is nobody's."""
        self._partial: dict[int, bytes] = {}
        self._left = MOST_BYTES
        self.ended = False
        """Nobody can write any more."""

    def fileno(self) -> int:
        return self._out.fileno()

    def release(self) -> None:
        """Leave the writing to those who have been forked."""
        os.close(self.into)

    def take(self) -> list[Logged]:
        """Lines that are here now, without waiting; last ones as they are, once all has ended."""
        found = []
        for _ in range(_MOST_READS):
            try:
                data, told, _, _ = self._out.recvmsg(_READ_BYTES, socket.CMSG_SPACE(_WRITER.size))
            except BlockingIOError:
                break
            if not data:
                self.ended = True
                break
            pid = _WRITER.unpack(told[0][2])[0] if told else _NOBODY
            whole, newline, rest = (self._partial.pop(pid, b"") + data).rpartition(b"\n")
            if len(rest) > _MOST_LINE_BYTES:
                whole, newline, rest = whole + newline + rest, b"\n", b""
            if rest:
                self._partial[pid] = rest
            found.append((pid, whole + newline))
        if self.ended:
            found += [(pid, rest + b"\n") for pid, rest in self._partial.items()]
            self._partial.clear()
        words = [Logged(self._bounded(lines), self.nodes.get(pid)) for pid, lines in found]
        return [each for each in words if each.text]

    def rest(self) -> list[Logged]:
        """All that is here still, until all have ended who write to it, which is waited for."""
        found, until = [], time.monotonic() + ENDING_LIMIT_S
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
        self._out.close()
