"""A tunnel to another host: frames out and in, the two clocks, and whether the other is there.

A frame goes out as soon as its line has given it its release, and comes with that by the sender's
clock; here it is told by ours. Clocks are asked each second, which tells too that the other host is
gone: nothing has come of it for three.
"""

import contextlib
import math
from collections.abc import Callable, Sequence

from testbed.links.queueing.lateness import Lateness
from testbed.links.tunnel import ends, messages
from testbed.links.tunnel.clocks import Contradiction, Offset
from testbed.links.tunnel.messages import Ask, Decoder, Filling, Frame, Leave, Malformed, Rate, Tell
from testbed.links.tunnel.streams import Stream

ASK_S = 1.0
SILENT_S = 3 * ASK_S
"""Without a word, after which a host is gone."""
MOST_QUEUED_BYTES = 64 << 20
"""On their way out; frames beyond it are dropped and counted."""
LATE = ("p50", "p95", "p99", "p99.9", "max")
"""What is told of how long after their release frames came."""
_READ_BYTES = 1 << 18
_MOST_READS = 16
"""In one turn, so that others have theirs."""

Buffers = Sequence[bytes | bytearray | memoryview]


class Gone(Exception):
    """The other host is; the text says how that is known."""


class Tunnel:
    """One end of a pair's stream, which it owns."""

    def __init__(self, host: str, stream: Stream, offset: Offset, now: float) -> None:
        """``host`` is the other, whose clock is known by ``offset`` already."""
        self.host = host
        self.offset = offset
        self._stream = stream
        stream.settimeout(0)
        self._decoder = Decoder()
        self._out = bytearray()
        self._heard_at: float | None = None
        """Unknown until the first word: a host that has more nodes is longer in making them."""
        self.ask_at = now
        self.has_left = False
        """The other end has said that it ends, which is no failure of its host."""
        self._sent = self._came = self._dropped = 0
        self._most_queued_bytes = 0
        self._late = Lateness()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def has_more(self) -> bool:
        """Whether something waits until the connection takes it."""
        return bool(self._out) or self._stream.has_more

    def send(self, release: float, step: float, buffers: Buffers, count: int) -> None:
        """Queue a frame, or ``count`` of them that are one burst; ``flush`` sends it."""
        size = sum(map(len, buffers))
        out = self._out
        if len(out) + size > MOST_QUEUED_BYTES:
            self._dropped += count
            return
        self._sent += count
        out += messages.frame(release, step, size)
        for each in buffers:
            out += each

    def flush(self) -> None:
        """Send what the connection takes now.

        Raises:
            Gone: it is broken.
        """
        out, stream = self._out, self._stream
        if len(out) > self._most_queued_bytes:
            self._most_queued_bytes = len(out)
        while out or stream.has_more:
            try:
                sent = stream.send(out)
            except BlockingIOError:
                return
            except OSError as error:
                raise Gone(ends.why(error)) from error
            del out[:sent]

    def read(self, clock: Callable[[], float]) -> list[Frame]:
        """The frames that have come, their releases by our clock, which ``clock()`` tells.

        Raises:
            Gone: the other end has closed, or has sent what is no message.
        """
        frames: list[Frame] = []
        for _ in range(_MOST_READS):
            try:
                data = self._stream.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                raise Gone(ends.why(error)) from error
            if not data:
                raise Gone(ends.CLOSED)
            self._take(data, clock, frames)
            if len(data) < _READ_BYTES and not self._stream.is_broken:
                break
        return frames

    def _take(self, data: bytes, clock: Callable[[], float], frames: list[Frame]) -> None:
        now = self._heard_at = clock()
        ahead_s = self.offset.seconds
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, Frame):
                    frames.append(message._replace(release=message.release - ahead_s))
                elif isinstance(message, Ask):
                    self._out += messages.tell(message.asked, now, clock())
                elif isinstance(message, Tell):
                    self.offset.learn(*message, now)
                    ahead_s = self.offset.seconds
                elif isinstance(message, Leave):
                    self.has_left = True
                elif isinstance(message, Filling | Rate):
                    raise Malformed("a measurement, after they have ended")
        except (Malformed, Contradiction) as error:
            raise Gone(f"it sent what cannot be: {error}") from error

    def count(self, late_s: float, count: int, step_s: float) -> None:
        """Count ``count`` frames that came ``late_s`` after their release, if above 0."""
        self._came += count
        self._late.add(max(0.0, late_s), count, step_s if late_s > 0 else 0.0)

    def tend(self, now: float) -> float:
        """Ask for the other's clock where it is time to; when to come again.

        Raises:
            Gone: nothing has come from it for too long.
        """
        gone_at = math.inf if self._heard_at is None else self._heard_at + SILENT_S
        if now >= gone_at:
            raise Gone(f"no word from it for {SILENT_S:g} s")
        if now >= self.ask_at:
            self._out += messages.ask(now)
            self.ask_at = now + ASK_S
        return min(self.ask_at, gone_at)

    def leave(self) -> None:
        """Say that this end does, as far as the connection takes it now."""
        self._out += messages.leave()
        with contextlib.suppress(Gone):
            self.flush()

    def facts(self, now: float) -> dict[str, float | int]:
        """Figures for the closing facts of a run."""
        late = self._late.facts()
        return {
            "frames_sent": self._sent,
            "frames_dropped": self._dropped,
            "frames_received": self._came,
            "late_frames": late["late_releases"],
            **{f"late_{each}_ms": late[f"lateness_{each}_ms"] for each in LATE},
            "most_queued_bytes": self._most_queued_bytes,
            "offset_ms": 1000 * self.offset.seconds,
            "offset_error_ms": 1000 * self.offset.error_s(now),
            "clock_exchanges": self.offset.exchanges,
            "clock_steps": self.offset.steps,
        }

    def close(self) -> None:
        self._stream.close()
