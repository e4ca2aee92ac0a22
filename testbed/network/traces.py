"""Mahimahi packet-delivery traces: one integer millisecond a line, each a chance to send a packet.

The file wraps at its last time stamp, which is its period; equal stamps are several chances in one
millisecond (Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015).
"""

import bisect
import functools
import re

import msgspec

from testbed import outside
from testbed.config_error import ConfigError
from testbed.naming import mark

OPPORTUNITY_BYTES = 1500
"""What one chance carries: bytes of IP packets, without the Ethernet header."""
MAX_OPPORTUNITIES = 2_000_000
MAX_MS = 1_000_000_000
"""As long as a run may last."""
MARK_DIGITS = 16
STEP_MS = 100
DIGITS = 6
"""Of milliseconds: sums of seconds are as exact."""


class Trace(msgspec.Struct, frozen=True):
    """One direction's chances to send, over one period."""

    opportunities_ms: tuple[float, ...]
    """In ascending order, the last one above 0; whole in a file."""

    @property
    def period_ms(self) -> float:
        return self.opportunities_ms[-1]

    @property
    def mean_kbit(self) -> float:
        """Mean rate over a period, in kbit/s of IP packets."""
        return 8 * OPPORTUNITY_BYTES * len(self.opportunities_ms) / self.period_ms

    @property
    def mark(self) -> str:
        """The mark that tells it from other traces, wherever they are."""
        return mark(self.opportunities_ms, MARK_DIGITS)

    def steps(self, step_ms: int = STEP_MS) -> list[tuple[float, float]]:
        """The trace as rates that hold for a while: (from this ms of the period, kbit/s).

        A step lasts at least ``step_ms``, and until there is a chance to send in it, so that no
        rate is 0. For backends that can set a rate but not a packet's own time.
        """
        found: list[tuple[float, float]] = []
        began = 0.0
        while began < self.period_ms:
            end = min(began + step_ms, self.period_ms)
            # Chances of (began, end]; one at 0 belongs to the first step.
            low = bisect.bisect_right(self.opportunities_ms, began) if began else 0
            high = bisect.bisect_right(self.opportunities_ms, end)
            if low == high:
                end = self.opportunities_ms[high]
                high = bisect.bisect_right(self.opportunities_ms, end)
            found.append((began, 8 * OPPORTUNITY_BYTES * (high - low) / (end - began)))
            began = end
        return found


@functools.cache
def stretched(path: str, factor: float) -> Trace:
    """The trace of a file whose chances come ``factor`` times later, whole milliseconds or not.

    Raises:
        ConfigError: as ``load``.
    """
    times = (round(at_ms * factor, DIGITS) for at_ms in load(path).opportunities_ms)
    return Trace(tuple(times))


@functools.cache
def peak_kbit(path: str, factor: float) -> float:
    """The greatest of the steps of such a trace, in kbit/s of IP packets.

    Raises:
        ConfigError: as ``load``.
    """
    return max(kbit for _, kbit in stretched(path, factor).steps())


@functools.cache
def load(path: str) -> Trace:
    """Read a trace; each file is read once a process.

    Raises:
        ConfigError: naming the file, the line, its text and what would be right.
    """
    lines = outside.text(path, "trace").rstrip().splitlines()
    if len(lines) > MAX_OPPORTUNITIES:
        raise ConfigError(f"trace {path}: {len(lines)} lines; at most {MAX_OPPORTUNITIES}")
    found: list[int] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not re.fullmatch("[0-9]{1,12}", text):
            raise ConfigError(
                f"trace {path}: line {number}: {text[:40]!r}: must be a whole number of "
                "milliseconds, one a line"
            )
        if int(text) > MAX_MS:
            raise ConfigError(
                f"trace {path}: line {number}: {text}: must be at most {MAX_MS} ms, as long as a "
                "run may last"
            )
        if found and int(text) < found[-1]:
            raise ConfigError(
                f"trace {path}: line {number}: {text}: is before {found[-1]} of the line above; "
                "times must ascend"
            )
        found.append(int(text))
    if not found:
        raise ConfigError(f"trace {path}: is empty; it needs one integer millisecond a line")
    if found[-1] == 0:
        raise ConfigError(f"trace {path}: ends at 0 ms; its last line is its period, above 0")
    return Trace(tuple(found))
