"""Statistics of arrivals: a line's rate, its packets' gaps, its queue, goodput, order. Pure."""

import math
from typing import NamedTuple

from testbed.calibration.observations import Arrived, Moved
from testbed.calibration.probes import Stream, Transfer
from testbed.network.direction import FRAME_BYTES, Direction
from testbed.probing.probeable import payload_share

FULL_SHARE = 0.99
"""Of a full line's packets wait no longer than what is taken for the queue's length: the last one
tells of the host."""
MOSTLY = 0.5
_FRAME_BITS = 8 * FRAME_BYTES
_HALF_MS_NS = 500_000


class Gaps(NamedTuple):
    """Times between full frames that followed each other out of a line, in ns."""

    busy: list[int]
    """Those for which the next packet surely stood ready."""
    all: list[int]

    @property
    def kept_full(self) -> bool:
        """Whether the line was mostly busy; if not, its sender or its rate was too far off."""
        return len(self.busy) >= MOSTLY * len(self.all)

    @property
    def telling(self) -> list[int]:
        return self.busy if self.kept_full else self.all


def gaps(direction: Direction, seen: Arrived) -> Gaps:
    """Gaps between the packets that the line served.

    A packet stands ready when its delay and all that jitter may add have passed, so that no gap
    shows jitter or a sender's pause. Lost packets take no time on the line. Packets that skipped it
    are left out, where such were asked for; and, since packets with a flipped bit take their time
    and cannot be told apart, gaps that may hide one.
    """
    skipped = _skipped(direction, seen)
    ready_ns = 1e6 * (direction.delay_ms + direction.jitter_ms)
    found = Gaps([], [])
    before_ns: int | None = None
    last = 0
    for number, delay_ns, arrived_ns in zip(
        seen.numbers, seen.delays_ns, seen.arrived_ns, strict=True
    ):
        if number in skipped:
            continue
        hides = direction.corrupt_percent > 0 and not 0 <= number - last <= 1
        last = number
        if before_ns is not None and not hides:
            found.all.append(arrived_ns - before_ns)
            if arrived_ns - delay_ns + ready_ns <= before_ns:
                found.busy.append(arrived_ns - before_ns)
        before_ns = arrived_ns
    return found


def rate_kbit(spent: list[int]) -> float | None:
    """Rate in frames of a line that took those times, in ns, for a frame each."""
    return len(spent) * _FRAME_BITS * 1e6 / sum(spent) if sum(spent) > 0 else None


def trace_rate_kbit(
    direction: Direction, stream: Stream, seen: Arrived
) -> tuple[float | None, int]:
    """Mean rate over whole periods of a trace, wherever in one the first packet came, and how many
    packets tell it; None where they do not fill those periods. Packets with a flipped bit are not
    told apart, but took their chances too."""
    assert direction.chances is not None
    period_ns = direction.chances.period_ms * 1_000_000
    periods = round(stream.paced / stream.per_second * 1e9 / period_ns)
    skipped = _skipped(direction, seen)
    times = [
        arrived_ns
        for number, arrived_ns in zip(seen.numbers, seen.arrived_ns, strict=True)
        if number not in skipped
    ]
    # Chances are whole milliseconds apart: so the window ends between two.
    ends_ns = times[0] + periods * period_ns - _HALF_MS_NS if times else 0
    inside = sum(arrived_ns < ends_ns for arrived_ns in times)
    if not inside or times[-1] < ends_ns:
        return None, inside
    flipped = seen.corrupt / payload_share(stream.packet_bytes) / len(seen.numbers)
    return (1 + flipped) * inside * _FRAME_BITS * 1e6 / (periods * period_ns), inside


def _skipped(direction: Direction, seen: Arrived) -> set[int]:
    """Numbers of packets that did not wait their turn, where such were asked for."""
    return set(overtaking(seen.numbers)) if direction.reorder_percent else set()


def full_delay_ms(seen: Arrived, idle_ms: float) -> float | None:
    """The time of a packet through the full line, in ms, itself included.

    Counted from when the line is busy for good, ``idle_ms`` after the first packet was sent: until
    then it takes in more packets than it does under a steady load, since the packet limit is for
    the delay and the queue together.
    """
    if not seen.arrived_ns:
        return None
    busy_ns = seen.arrived_ns[0] - seen.delays_ns[0] + 1e6 * idle_ms
    waits = [
        arrived_ns - max(arrived_ns - delay_ns, busy_ns)
        for delay_ns, arrived_ns in zip(seen.delays_ns, seen.arrived_ns, strict=True)
    ]
    return quantile(waits, FULL_SHARE) / 1e6


def quantile(values: list[float], share: float) -> float:
    """The least value that this share of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def goodput_kbit(transfer: Transfer, moved: Moved) -> tuple[float | None, int]:
    """Payload that arrived in the transfer's window, from its first note to its last; its bytes."""
    begins_ns = moved.ended_ns - 1e9 * transfer.window_s
    inside = [note for note in moved.notes if begins_ns <= note[0] <= moved.ended_ns]
    if len(inside) < 2:
        return None, 0
    (first_ns, before), (last_ns, after) = inside[0], inside[-1]
    return (after - before) * 8e6 / (last_ns - first_ns), after - before


def overtaking(numbers: list[int]) -> list[int]:
    """Packets that arrived before one that was sent earlier; a second copy counts for nothing."""
    found = []
    least = math.inf
    for number in reversed(list(dict.fromkeys(numbers))):
        if number > least:
            found.append(number)
        least = min(least, number)
    return found
