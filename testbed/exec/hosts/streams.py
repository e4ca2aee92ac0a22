"""Output of a host's programs on its way to the run's folder: what has come, so many bytes a node.

By pipes: nothing of it is on the host's disk, and who writes faster than is read waits.
"""

import os

from testbed.exec.hosts.messages import Wrote
from testbed.exec.output import STREAMS

MOST_BYTES = 16 << 20
"""Of a node's in a run; what is more is left out."""
_READ_BYTES = 1 << 16


class Streams:
    """Owns the ends of one node's pipes from which its output is read."""

    def __init__(self, node: int) -> None:
        """``node``: its index. Raises OSError: there are no more descriptors."""
        self._node = node
        pipes = [os.pipe() for _ in STREAMS]
        self.descriptors = [reading for reading, _ in pipes]
        self.into = (pipes[0][1], pipes[1][1])
        """The other ends, until they are released."""
        for reading in self.descriptors:
            os.set_blocking(reading, False)
        self._left = MOST_BYTES

    def release(self) -> None:
        """Leave the writing to those who have been forked."""
        for writing in self.into:
            os.close(writing)

    def take(self, stream: int) -> list[Wrote]:
        """The next bytes of one of them, as far as one reading has them; without waiting."""
        try:
            data = os.read(self.descriptors[stream], _READ_BYTES)
        except BlockingIOError:
            return []
        if not data or self._left <= 0:
            return []
        self._left -= len(data)
        if self._left <= 0:
            data += f"\n[what follows is left out, beyond {MOST_BYTES:,} bytes]\n".encode()
        return [Wrote(self._node, stream, data)]

    def rest(self) -> list[Wrote]:
        """All that is there now."""
        return [each for stream in range(len(STREAMS)) for each in self._all(stream)]

    def _all(self, stream: int) -> list[Wrote]:
        found: list[Wrote] = []
        while self._left > 0 and (more := self.take(stream)):
            found += more
        return found

    def close(self) -> None:
        for reading in self.descriptors:
            os.close(reading)
