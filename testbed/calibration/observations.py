"""Observations of a profile's probes, as data."""

from typing import NamedTuple

import msgspec

from testbed.links.interface import LinkCounters


class Arrived(NamedTuple):
    """Packets that a stream put in, and those that came out, in the order of arrival."""

    sent: int
    numbers: list[int]
    delays_ns: list[int]
    arrived_ns: list[int]
    corrupt: int = 0
    """Packets that came with a flipped bit; they are in none of the lists."""
    overflowed: int = 0
    """Packets that arrived when the receiver's socket had no room: not the link's doing."""


class Pinged(NamedTuple):
    sent: int
    came: int
    """Answers, duplicates included."""
    trips_ns: list[tuple[int, int]]
    """Up and down, of each that was answered."""


class Moved(NamedTuple):
    """Payload of a transfer: how many bytes had arrived by when, on the monotonic clock."""

    ended_ns: int
    """When the caller stopped."""
    notes: list[tuple[int, int]]
    """Time in ns, and bytes."""
    congestion: str | None
    """TCP's congestion control; None where the system does not tell."""


class Seen(msgspec.Struct):
    """All that was seen of one profile; what was tried and gave nothing is empty, not absent."""

    pinged: Pinged | None = None
    trips_ns: list[int] | None = None
    streams: dict[tuple[str, int, str], Arrived] = {}
    """By purpose, client and way."""
    moved: dict[tuple[str, int, str], Moved] = {}
    """By purpose, client and way."""
    counted: dict[str, LinkCounters] = {}
    """What the first client's link counted in each stage of datagrams."""
