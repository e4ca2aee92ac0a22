"""One direction of an access link: rate or trace, delay, queue, and impairments of packets."""

import math
import sys
from typing import Any, TypeGuard

import msgspec

from testbed.config_error import ConfigError
from testbed.network import traces

WAYS = ("up", "down")
"""Directions of a link, in the order in which both are told."""
MTU_BYTES = 1500
"""Greatest IP packet."""
FRAME_OVERHEAD_BYTES = 14
"""Ethernet header, which the rate counts; preamble, checksum and gap are not counted."""
FRAME_BYTES = MTU_BYTES + FRAME_OVERHEAD_BYTES
SEGMENT_BYTES = 1448
"""TCP payload of a full packet: 1500 less 20 (IP), 20 (TCP) and 12 (timestamps)."""

MIN_KBIT, MAX_KBIT = 0.001, 1e9
"""A bit a second to a terabit."""
MAX_MS = 1e9
"""Of a delay, a jitter or a queue: as long as a run may last."""
MAX_PACKETS = 10**9
MIN_LIMIT_PACKETS = 4
"""With fewer in flight TCP never sees three duplicate ACKs, and each loss waits for a timeout."""


class GilbertElliott(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Loss in bursts: a chain of a good and a bad state that steps once a packet.

    The parameters are those of tc's ``loss gemodel p r 1-h 1-k`` (Gilbert 1960, Elliott 1963).
    """

    good_to_bad_percent: float
    """p: chance, at each packet, to go from the good state to the bad one; above 0, to 100."""
    bad_to_good_percent: float
    """r: chance to go back; above 0, to 100. The bad state lasts 100/r packets on average."""
    bad_loss_percent: float = 100.0
    """1-h: chance that a packet is lost in the bad state; above 0, to 100."""
    good_loss_percent: float = 0.0
    """1-k: chance that a packet is lost in the good state; from 0 to below 100."""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if not is_number(value) or not 0 <= value <= 100:
                raise ConfigError(f"{field} = {value!r}: must be from 0 to 100 %")
            if field != "good_loss_percent" and value == 0:
                raise ConfigError(f"{field} = {value!r}: must be above 0 %")
        if self.good_loss_percent == 100:
            raise ConfigError("good_loss_percent = 100: must be below 100 %")

    @property
    def mean_loss_percent(self) -> float:
        """Share of packets lost in the long run."""
        p, r = self.good_to_bad_percent, self.bad_to_good_percent
        return (p * self.bad_loss_percent + r * self.good_loss_percent) / (p + r)


class Direction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One direction of an access link.

    Raises:
        ConfigError: a value that no link can have; the text names the field and what is right.
    """

    rate_kbit: float | None = None
    """Line rate in kbit/s (1000 bit/s), above 0; None is unlimited, or as ``trace`` says."""
    trace: str | None = None
    """Path of a Mahimahi trace, instead of a rate."""
    trace_stretch: float = 1.0
    """Its chances come as many times later: a dilated run's, no profile has it."""
    delay_ms: float = 0.0
    """One-way delay, at least 0."""
    jitter_ms: float = 0.0
    """Each packet's delay is uniform in delay ± jitter, as netem's default; at most the delay."""
    loss_percent: float = 0.0
    """Chance that a packet is lost, independent of the others: 0 <= loss < 100."""
    gilbert_elliott: GilbertElliott | None = None
    """Loss in bursts, instead of ``loss_percent``."""
    duplicate_percent: float = 0.0
    """Chance that a packet comes twice: 0 to 100."""
    reorder_percent: float = 0.0
    """Chance that a packet skips the delay and the queue, as netem's: 0 to 100; needs a delay."""
    corrupt_percent: float = 0.0
    """Chance that one bit of a packet is flipped: 0 to 100."""
    queue_ms: float = 200.0
    """What the buffer holds, as the time the line needs to send it; above 0."""
    max_packets: int | None = None
    """Most packets in the delay line and the queue together, instead of ``queue_ms``: netem's
    ``limit``."""
    outage: bool = False
    """Nothing passes: whatever is sent is lost."""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            problem = _problem(field, getattr(self, field))
            if problem:
                raise ConfigError(f"{field} = {getattr(self, field)!r}: {problem}")
        if self.jitter_ms > self.delay_ms:
            raise ConfigError(
                f"jitter_ms = {self.jitter_ms!r}: must be at most delay_ms = {self.delay_ms!r}, "
                "for no packet arrives before it is sent"
            )
        if self.reorder_percent and not self.delay_ms:
            raise ConfigError(
                f"reorder_percent = {self.reorder_percent!r}: needs delay_ms above 0, "
                "for a packet overtakes by skipping the delay"
            )
        if self.trace is not None:
            if self.rate_kbit is not None:
                raise ConfigError(
                    f"rate_kbit = {self.rate_kbit!r}: leave it out where there is a trace"
                )
            traces.stretched(self.trace, self.trace_stretch)
        if self.gilbert_elliott is not None and self.loss_percent:
            raise ConfigError(
                f"loss_percent = {self.loss_percent!r}: leave it out where there is gilbert_elliott"
            )

    @property
    def chances(self) -> traces.Trace | None:
        """Those of its trace; None where there is none."""
        return None if self.trace is None else traces.stretched(self.trace, self.trace_stretch)

    @property
    def line_kbit(self) -> float | None:
        """The line's rate, a trace's mean rate in frames, or None where there is no limit."""
        chances = self.chances
        return self.rate_kbit if chances is None else chances.mean_kbit * FRAME_BYTES / MTU_BYTES

    @property
    def peak_kbit(self) -> float | None:
        """The line's rate, of a trace the greatest in a tenth of a second."""
        if self.trace is None:
            return self.rate_kbit
        return traces.peak_kbit(self.trace, self.trace_stretch) * FRAME_BYTES / MTU_BYTES

    @property
    def mean_loss_percent(self) -> float:
        """Share of packets lost in the long run."""
        if self.outage:
            return 100.0
        if self.gilbert_elliott is not None:
            return self.gilbert_elliott.mean_loss_percent
        return self.loss_percent

    @property
    def limit_packets(self) -> int | None:
        """Packets that delay line and queue hold together (netem's ``limit``).

        ``max_packets``, or ``ceil(rate*(delay+jitter)/frame) + ceil(rate*queue/frame)`` in full
        frames and MIN_LIMIT_PACKETS at least; None where the rate is unlimited, for then nothing
        queues.
        """
        if self.max_packets is not None:
            return self.max_packets
        rate_kbit = self.line_kbit
        if rate_kbit is None:
            return None
        flying = _frames(rate_kbit, self.delay_ms + self.jitter_ms)
        return max(flying + _frames(rate_kbit, self.queue_ms), MIN_LIMIT_PACKETS)

    @property
    def carried_kbit(self) -> float | None:
        """Most that the line carries in the long run, in kbit/s of full frames; None: no limit.

        Its rate, or as many frames as its packet limit holds in the time that each is held: the
        delay and, where there is a rate, its own time on the line.
        """
        rate_kbit, limit = self.line_kbit, self.limit_packets
        held_ms = self.delay_ms
        if self.rate_kbit is not None:
            held_ms += 8 * FRAME_BYTES / self.rate_kbit
        if limit is None or not held_ms:
            return rate_kbit
        held_kbit = 8 * FRAME_BYTES * limit / held_ms
        # round: a limit that is as large as the delay needs must not make it a little less
        if rate_kbit is not None and round(held_kbit / rate_kbit, 9) >= 1:
            return rate_kbit
        return held_kbit

    @property
    def ideal_goodput_kbit(self) -> float | None:
        """Most that TCP can deliver, in kbit/s of payload; None where nothing limits it.

        Copies take a line's time, and packets with a flipped bit are thrown away behind it.
        """
        carried_kbit = self.carried_kbit
        if carried_kbit is None:
            return None
        kept = 1 - self.corrupt_percent / 100
        copies = self.duplicate_percent / 100
        # Of a packet and its copy one may be lost, or thrown away.
        if copies and (self.mean_loss_percent or self.corrupt_percent):
            kept, copies = 1.0, 0.0
        return carried_kbit * SEGMENT_BYTES / FRAME_BYTES * kept / (1 + copies)


def _frames(rate_kbit: float, time_ms: float) -> int:
    """Full frames that the line sends in that time, rounded up."""
    # round: 0.1 * 3 must not make one frame more
    return math.ceil(round(rate_kbit * time_ms / (8 * FRAME_BYTES), 9))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, truth values aside; TOML's integers may be beyond floats."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _problem(field: str, value: Any) -> str | None:
    """The fault of a Direction's field, or None; kbit/s times ms is bits."""
    if field == "outage":
        return None if isinstance(value, bool) else "must be true or false"
    if field == "gilbert_elliott":
        fine = value is None or isinstance(value, GilbertElliott)
        return None if fine else "must be a table with good_to_bad_percent and bad_to_good_percent"
    if field in ("rate_kbit", "trace", "max_packets") and value is None:
        return None
    if field == "trace":
        return None if isinstance(value, str) and value else "must be the path of a file"
    if not is_number(value):
        return "must be a finite number"
    if field == "max_packets":
        fine = isinstance(value, int) and 1 <= value <= MAX_PACKETS
        return None if fine else f"must be a whole number above 0, to {MAX_PACKETS}"
    if field == "trace_stretch" and value <= 0:
        return "must be above 0"
    if field == "rate_kbit" and value <= 0:
        return "must be above 0 kbit/s; leave it out for an unlimited line"
    if field == "rate_kbit" and not MIN_KBIT <= value <= MAX_KBIT:
        return f"must be from {MIN_KBIT} to {MAX_KBIT:.0f} kbit/s"
    if field == "queue_ms" and value <= 0:
        return "must be above 0 ms: 200 is usual"
    if field == "loss_percent" and not 0 <= value < 100:
        return "must be at least 0 and below 100 %"
    if field.endswith("_percent") and not 0 <= value <= 100:
        return "must be from 0 to 100 %"
    if field.endswith("_ms") and not 0 <= value <= MAX_MS:
        return f"must be at least 0 ms, to {MAX_MS:.0f} ms"
    return None


def changes(before: Direction, after: Direction) -> dict[str, Any]:
    """Differences of ``after``, as a record has them; None is a field that no longer counts."""
    return {
        field: msgspec.to_builtins(value)
        for field in Direction.__struct_fields__
        if (value := getattr(after, field)) != getattr(before, field)
    }
