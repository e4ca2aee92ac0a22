"""Probes as data: what is sent over a link to measure it, and how long it takes. Pure."""

from collections.abc import Iterator

import msgspec

from testbed.network.profiles import LinkProfile

STEP_S = 0.2
"""Starting and ending the processes of a step."""


class Pings(msgspec.Struct, frozen=True, kw_only=True):
    """UDP round trips: the time of each direction, its spread, and their sum."""

    client: int = 0
    """Which of the profile's two clients."""
    count: int
    gap_s: float
    """Least time between two."""
    settle_s: float
    """How long after the last one its answer may come."""

    @property
    def seconds(self) -> float:
        return self.count * self.gap_s + self.settle_s


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """UDP one way: ``fill`` packets at once, then ``paced`` ones."""

    purpose: str
    """rate, shares or together."""
    client: int
    way: str
    packet_bytes: int
    """Of the IP packet."""
    fill: int = 0
    paced: int
    per_second: float
    unchecked: bool = False
    """UDP's own checksum is off, so that packets with a flipped bit arrive and can be counted."""
    settle_s: float
    """How long after the last packet the line may still hold one."""

    @property
    def count(self) -> int:
        return self.fill + self.paced

    @property
    def seconds(self) -> float:
        return self.paced / self.per_second + self.settle_s


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """TCP one way: payload counted in the last ``window_s`` before its sender stops."""

    purpose: str
    """goodput or together."""
    client: int
    way: str
    pace_kbit: float | None
    """Of payload, by Reno; None: as fast as TCP likes, by the congestion control of runs."""
    lead_s: float
    """For slow start, before the window."""
    window_s: float
    settle_s: float

    @property
    def seconds(self) -> float:
        return self.lead_s + self.window_s + self.settle_s


class Trips(msgspec.Struct, frozen=True, kw_only=True):
    """Round trips of one byte over TCP, each sent when the one before is back."""

    client: int = 0
    count: int
    seconds: float
    """Most that they may take."""


Probe = Pings | Stream | Transfer | Trips


class Step(msgspec.Struct, frozen=True):
    """Probes that run at the same time."""

    stage: str
    """One of STAGES."""
    probes: tuple[Probe, ...]

    @property
    def seconds(self) -> float:
        return STEP_S + max(probe.seconds for probe in self.probes)


PURPOSES = ("delay", "rate", "shares", "goodput", "together")
STAGES = tuple(f"{purpose}{way}" for purpose in PURPOSES for way in ("", " up", " down"))
"""In this order. Profiles that are measured side by side take the same stage together."""


class Schedule(msgspec.Struct, frozen=True):
    """The probes of one profile, and those that are left out."""

    profile: LinkProfile
    streams: bool
    """The links carry TCP streams and no packets."""
    steps: tuple[Step, ...]
    left_out: dict[str, str]
    """Why a purpose is left out; "rate up" is one direction's."""

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def tcp_stages(self) -> set[str]:
        """Those of which the link counts acknowledgements and retransmissions as well."""
        return {
            step.stage
            for step in self.steps
            if any(isinstance(probe, Transfer | Trips) for probe in step.probes)
        }

    def probes(self) -> Iterator[Probe]:
        for step in self.steps:
            yield from step.probes

    def stream(self, purpose: str, client: int, way: str) -> Stream:
        """Raises KeyError where it is left out."""
        found = (one for one in self.probes() if isinstance(one, Stream))
        return {(one.purpose, one.client, one.way): one for one in found}[purpose, client, way]

    def transfer(self, purpose: str, client: int, way: str) -> Transfer:
        """Raises KeyError where it is left out."""
        found = (one for one in self.probes() if isinstance(one, Transfer))
        return {(one.purpose, one.client, one.way): one for one in found}[purpose, client, way]

    def why_not(self, purpose: str, way: str) -> str | None:
        return self.left_out.get(purpose) or self.left_out.get(f"{purpose} {way}")
