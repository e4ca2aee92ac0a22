"""One direction of a profile with all that is known of it: what was planned, and what was seen."""

import msgspec

from testbed.calibration.gates import Row
from testbed.calibration.observations import Arrived, Seen
from testbed.calibration.probes import Schedule, Stream
from testbed.network.direction import WAYS, Direction
from testbed.probing.probeable import explained, lost_words

BOTH = "both"
NOTHING_CAME = "nothing came through"
NO_PACKETS = "not modelled per packet on these links"


class Side(msgspec.Struct, frozen=True):
    schedule: Schedule
    seen: Seen
    way: str
    """up, down or both."""

    @property
    def direction(self) -> Direction:
        """The direction of ``way``, which is up or down."""
        return self.schedule.profile.up if self.way == "up" else self.schedule.profile.down

    @property
    def back(self) -> Direction:
        """The way of answers."""
        return self.schedule.profile.down if self.way == "up" else self.schedule.profile.up

    @property
    def index(self) -> int:
        return WAYS.index(self.way)

    @property
    def delays_ms(self) -> list[float]:
        """One way, of each ping that was answered."""
        pinged = self.seen.pinged
        return [trip[self.index] / 1e6 for trip in pinged.trips_ns] if pinged else []

    def why_not(self, purpose: str) -> str | None:
        return self.schedule.why_not(purpose, self.way)

    def filled(self, purpose: str, client: int = 0) -> tuple[Stream, Arrived]:
        """A stream that was sent, and what came of it."""
        stream = self.schedule.stream(purpose, client, self.way)
        return stream, self.seen.streams[purpose, client, self.way]

    def gate(
        self,
        name: str,
        expected: float,
        measured: float | None,
        unit: str,
        tolerance: float,
        n: int,
        note: str = "",
    ) -> Row:
        """A figure held against its tolerance; one that is absent has missed it."""
        return Row(
            name=name,
            link=self.schedule.profile.name,
            direction=self.way,
            expected=expected,
            measured=measured,
            unit=unit,
            tolerance=tolerance,
            ok=measured is not None and abs(measured - expected) <= tolerance,
            n=n,
            note=NOTHING_CAME if measured is None else note,
        )

    def why_none(self, sent: int, trips: bool = False, least: int = 1) -> str | None:
        """Which losses explain that of so many packets, or round trips, fewer than ``least`` came.

        Packets with a flipped bit count as those that came, but no round trip does with one.
        """
        profile = self.schedule.profile
        ways = (profile.up, profile.down) if trips else (self.direction,)
        if sent and explained(ways, sent, least, checked=trips):
            return lost_words(ways, checked=trips)
        return None

    def unmeasured(self, name: str, reason: str) -> Row:
        return Row(name=name, link=self.schedule.profile.name, direction=self.way, note=reason)
