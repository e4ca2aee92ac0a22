"""One gate of a calibration: what was asked, what was measured, and whether it holds."""

import math

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate's Check with what the figure rests on, or a reason where there is none."""

    name: str
    link: str
    """The profile."""
    direction: str
    """up, down or both."""
    expected: float | None = None
    measured: float | None = None
    """None where nothing came through, or nothing was measured."""
    unit: str = ""
    tolerance: float | None = None
    """Most that measured may be off, in the same unit."""
    ok: bool | None = None
    """None: not judged, and ``note`` says why."""
    n: int = 0
    """How many packets, gaps or round trips the figure rests on."""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.ok is not None:
            return "ok" if self.ok else "missed"
        return "not measured" if self.measured is None else "not judged"

    @property
    def off(self) -> float:
        """How far the figure is from what was asked; infinitely where there is none."""
        if self.measured is None or self.expected is None:
            return math.inf
        return abs(self.measured - self.expected)
