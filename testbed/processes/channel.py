"""JSON lines between two processes of one run, with descriptors alongside where asked.

The supervisor speaks to its zygote, its link process and every node over one of these. It is a
socket pair that only the run's own processes hold; nothing from the network comes this way.
"""

import contextlib
import math
import os
import select
import socket
from collections import deque
from typing import Any

import msgspec

from testbed.config_error import in_words

MAX_FDS_PER_LINE = 200
"""The kernel passes at most 253 descriptors with one message (SCM_MAX_FD)."""


class ChannelClosed(ConnectionError):
    """The process at the other end is gone."""


class Garbled(ValueError):
    """A line is none that the channel has; the text says what is wrong with it."""


class Channel:
    """One end. Sends block; receives have a limit."""

    def __init__(self, sock: socket.socket, reads: Any = Any, other: str = "the other end") -> None:
        """``reads``: what lines are decoded as, a union of tagged structs; ``other`` sends them."""
        self._socket = sock
        self._other = other
        self._decoder = msgspec.json.Decoder(reads)
        self._partial = b""
        self._lines: deque[Any] = deque()
        self._garbled: Exception | None = None
        self.descriptors: deque[int] = deque()
        """Descriptors received and not yet taken, in the order they were sent."""
        self.closed = False
        """Every line has been read and the other end is gone or garbled, or this one is closed."""

    @staticmethod
    def pair(
        reads: Any = Any, others: Any = Any, name: str = "the other end"
    ) -> tuple["Channel", "Channel"]:
        """The owner's end, which decodes lines as ``reads``, and that of the process ``name``."""
        ours, theirs = socket.socketpair()
        return Channel(ours, reads, name), Channel(theirs, others, "the owner")

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, line: msgspec.Struct, descriptors: tuple[int, ...] = ()) -> None:
        """Write one line.

        Raises:
            ChannelClosed: nobody reads any more.
        """
        data = msgspec.json.encode(line) + b"\n"
        try:
            if descriptors:
                sent = socket.send_fds(self._socket, [data], list(descriptors))
                data = data[sent:]
            self._socket.sendall(data)
        except OSError as error:
            raise ChannelClosed(in_words(error)) from error

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next line.

        Raises:
            TimeoutError: none came within ``timeout_s``.
            ChannelClosed: the other end is gone.
            Garbled: it is none of this channel's.
        """
        while not self._lines:
            self._raise_garbled()
            if self.closed:
                raise ChannelClosed("the other end has closed")
            if not self._readable(timeout_s):
                raise TimeoutError(f"no answer within {timeout_s} s")
            self._read()
        return self._lines.popleft()

    def drain(self) -> list[Any]:
        """Every line that is here now, without waiting; sets ``closed`` at the end.

        Raises:
            Garbled: one is none of this channel's. Those before it are had by the next call.
        """
        while not self.closed and self._readable(0):
            self._read()
        self._raise_garbled()
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def _readable(self, timeout_s: float | None) -> bool:
        # select would refuse a descriptor above 1023, which a run of 500 nodes has.
        waiter = select.poll()
        waiter.register(self._socket, select.POLLIN)
        return bool(waiter.poll(None if timeout_s is None else math.ceil(1000 * timeout_s)))

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, MAX_FDS_PER_LINE)
        except ConnectionError:
            data, fds = b"", []
        self.descriptors.extend(fds)
        if not data:
            self.closed = True
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                self._lines.append(self._decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                # What follows cannot be trusted either.
                self._garbled, self.closed = error, True
                return

    def _raise_garbled(self) -> None:
        """Once, of what was read last."""
        error, self._garbled = self._garbled, None
        if error is not None:
            raise Garbled(f"{self._other} sent what cannot be read: {error}") from error

    def close(self) -> None:
        """Close this end and every descriptor received and not taken."""
        self._socket.close()
        self.closed = True
        while self.descriptors:
            with contextlib.suppress(OSError):
                os.close(self.descriptors.popleft())
