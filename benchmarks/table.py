"""Rows of the table that `make bench` writes: what was measured, beside a limit or a peer.

A benchmark prints what it found for whoever runs it alone, and calls `add` for what belongs into
the table of all. `run.py` says by an environment variable where rows go; without it, nowhere.
"""

import os
from pathlib import Path

import msgspec

FILE = "WIRETUNE_BENCH_ROWS"
"""Of the environment: the file to which rows are added, a line of JSON each."""


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    what: str
    unit: str
    against: str
    """What it is held against: a limit, a peer, what TCP can carry at best."""
    measured: float | None = None
    value: float | None = None
    """Of what it is held against, in the same unit."""
    ratio: float | None = None
    least: float | None = None
    """What the ratio should be, at least."""
    most: float | None = None
    reason: str = ""
    """Why nothing was measured."""

    @property
    def met(self) -> bool | None:
        """Whether the ratio is as it should be; None: it is not there, or nothing is asked."""
        if self.ratio is None or (self.least is None and self.most is None):
            return None
        above = self.least is None or self.ratio >= self.least
        return above and (self.most is None or self.ratio <= self.most)


def add(
    what: str,
    unit: str,
    measured: float,
    against: str,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
    inverse: bool = False,
) -> None:
    """Add a row, whose ratio is measured / value, or the other way round with ``inverse``."""
    ratio = value / measured if inverse else measured / value
    _write(
        Row(
            what=what,
            unit=unit,
            against=against,
            measured=measured,
            value=value,
            ratio=ratio,
            least=least,
            most=most,
        )
    )


def add_missing(what: str, unit: str, against: str, reason: str) -> None:
    """Add a row that says why it has no figures."""
    _write(Row(what=what, unit=unit, against=against, reason=reason))


def _write(row: Row) -> None:
    path = os.environ.get(FILE)
    if path:
        with Path(path).open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")


def read(path: Path) -> list[Row]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Row) for line in lines]
