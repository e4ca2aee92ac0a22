"""Measurement of the network between two hosts before their tunnel is used: round trips, the rate
each way, and the clocks' offset. Both ends take part, over the stream that the tunnel gets.
"""

import statistics
import time
from collections import deque
from typing import NamedTuple, TypeVar

from testbed.config_error import in_words
from testbed.links.interface import LinkError
from testbed.links.tunnel import ends, messages
from testbed.links.tunnel.clocks import Contradiction, Offset
from testbed.links.tunnel.messages import Ask, Decoder, Filling, Malformed, Message, Rate, Tell
from testbed.links.tunnel.streams import Stream
from testbed.network.underlay import Path

PINGS = 50
FILLING_S = 0.3
"""For which each way is kept full; the first half, in which TCP finds the rate, does not count."""
LIMIT_S = 20.0
"""Of waiting for the other end's next message."""
MOST_S = 3.0
"""Taken by a pair, where its round trip is some 10 ms at most."""
_READ_BYTES = 1 << 18

Kind = TypeVar("Kind", Ask, Tell, Filling, Rate)


def turns(host: int, count: int) -> list[int]:
    """Whom host number ``host`` of ``count`` measures with, one after the other.

    Where all go by this, as many pairs measure at once as share no host: the rounds of a
    tournament, in which each plays each. No host waits in a circle, since who waits does so for a
    pair of an earlier round.
    """
    # All but the last stand in a circle; without a last one, who would meet it has no turn.
    last = count - 1 if count % 2 == 0 else count
    found = []
    for turn in range(last):
        if host == last:
            other = turn * (last + 1) // 2 % last
        else:
            other = (turn - host) % last
            other = last if other == host else other
        if other < count:
            found.append(other)
    return found


class Measured(NamedTuple):
    """The network between this host and another."""

    offset: Offset
    there: Path
    back: Path


def measure(stream: Stream, host: str, other: str, *, first: bool) -> Measured:
    """Measure it together with the other end, of which one is ``first``; both agree on it before.

    Raises:
        LinkError: the other end is another, went away, or said what it should not.
    """
    talk = _Talk(stream)
    try:
        stream.settimeout(LIMIT_S)
        if first:
            offset, trips_s = talk.ask()
            talk.answer()
            there = talk.fill()
            back = talk.drain()
        else:
            talk.answer()
            offset, trips_s = talk.ask()
            back = talk.drain()
            there = talk.fill()
    except (OSError, Malformed, Contradiction) as error:
        raise LinkError(f"measure the network to host {other}: {in_words(error)}") from error
    finally:
        stream.settimeout(None)
    trips_ms = [1000 * trip for trip in trips_s]
    trips = min(trips_ms), statistics.median(trips_ms), max(trips_ms)
    offset_ms, error_ms = 1000 * offset.seconds, 1000 * offset.error_s(time.monotonic())
    return Measured(
        offset,
        Path(host, other, *trips, there * 8 / 1000, offset_ms, error_ms),
        Path(other, host, *trips, back * 8 / 1000, -offset_ms, error_ms),
    )


class _Talk:
    """A stream with messages in turn."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decoder = Decoder()
        self._come: deque[tuple[Message, float]] = deque()

    def next(self, kind: type[Kind]) -> tuple[Kind, float]:
        """The next message, and when it came."""
        while not self._come:
            data = self._stream.recv(_READ_BYTES)
            if not data:
                raise ConnectionError(ends.CLOSED)
            now = time.monotonic()
            self._come.extend((message, now) for message in self._decoder.feed(data))
        message, came = self._come.popleft()
        if not isinstance(message, kind):
            raise Malformed(f"{type(message).__name__} where {kind.__name__} was to come")
        return message, came

    def ask(self) -> tuple[Offset, list[float]]:
        """The other's clock, and each round trip's seconds."""
        # Not counted: the other end may have to come from another pair's measurement.
        self._stream.sendall(messages.ask(time.monotonic()))
        self.next(Tell)
        offset, trips = Offset(), []
        for _ in range(PINGS):
            self._stream.sendall(messages.ask(time.monotonic()))
            told, came = self.next(Tell)
            offset.learn(told.asked, told.heard, told.answered, came)
            trips.append(max(0.0, came - told.asked - (told.answered - told.heard)))
        return offset, trips

    def answer(self) -> None:
        for _ in range(1 + PINGS):
            question, came = self.next(Ask)
            self._stream.sendall(messages.tell(question.asked, came, time.monotonic()))

    def fill(self) -> float:
        """Keep the way full; the rate in bytes a second as the other end has seen it."""
        block = messages.filling(messages.MOST_FILLING_BYTES)
        until = time.monotonic() + FILLING_S
        while time.monotonic() < until:
            self._stream.sendall(block)
        self._stream.sendall(messages.filling(0))
        return self.next(Rate)[0].bytes_per_s

    def drain(self) -> float:
        """The other side of that."""
        seen: list[tuple[float, int]] = []
        while (taken := self.next(Filling))[0].bytes:
            seen.append((taken[1], taken[0].bytes))
        rate = _rate(seen)
        self._stream.sendall(messages.rate(rate))
        return rate


def _rate(seen: list[tuple[float, int]]) -> float:
    """Bytes a second of the second half of the time in which they came; 0 where none tells."""
    if not seen:
        return 0.0
    began, ended = seen[0][0], seen[-1][0]
    # What comes at a moment has been on its way since the one before.
    since = max((came for came, _ in seen if came < (began + ended) / 2), default=ended)
    took_s = ended - since
    return sum(size for came, size in seen if came > since) / took_s if took_s > 0 else 0.0
