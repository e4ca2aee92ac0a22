"""Claims of papers as they are shown: the figure, what a run came to, its wire, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from rich.table import Table

from testbed import files
from testbed.record import events

NAME = "comparison.json"
"""In a bench's folder."""
TITLE = "Claims examined"
HEAD = ("", "the paper", "recomputed from the run", "the run on the wire", "verdict")

Verdict = Literal["confirmed", "not confirmed", "not reproducible here"]


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """A claim of a paper, held against a run."""

    links: str
    """Network and clients."""
    row: str
    paper: str
    """Its figure, and what that counts."""
    figure: float | None
    recomputed: float | None
    """The same account of the run; None: it has none."""
    unit: str
    account: str | None
    """How: a sum of the run's figures."""
    wire_mb: float
    """10^6 bytes of the whole run, both ways."""
    minutes: float
    """The run's rounds took so long."""
    certificate: events.Verdict = "pass"
    """Whether these minutes are those of such links and devices."""
    verdict: Verdict
    reason: str


class _Comparison(msgspec.Struct):
    claims: list[Examined] = []


def read(folders: Sequence[Path]) -> list[Examined]:
    """Claims that the benches in these folders have examined; none of what cannot be read."""
    found: list[Examined] = []
    for folder in folders:
        try:
            text = files.read(folder / NAME, files.SUMMARY_BYTES)
            found += msgspec.json.decode(text, type=_Comparison).claims
        except (OSError, ValueError, RecursionError):
            continue
    return found


def shown(value: float | None, unit: str) -> str:
    """ "490.2x", "2.56 GiB", "0.47", "-" """
    if value is None:
        return "-"
    return f"{value:.4g}{'' if unit in ('', 'x') else ' '}{unit}"


def cells(claims: Sequence[Examined]) -> list[list[str]]:
    """A line for each, as HEAD names its parts; where is said if it is not the same of all.

    A "?" stands behind minutes of a run whose certificate failed.
    """
    several = len({claim.links for claim in claims}) > 1
    lines = []
    for claim in claims:
        account = f" = {claim.account}" if claim.recomputed is not None else ""
        line = [f"{claim.row}, {claim.links}" if several else claim.row, claim.paper]
        line += [f"{shown(claim.recomputed, claim.unit)}{account}"]
        doubt = "?" if claim.certificate == "fail" else ""
        line += [f"{claim.wire_mb:.2f} MB, {claim.minutes:.2f} min{doubt}"]
        lines.append([*line, f"{claim.verdict}: {claim.reason}"])
    return lines


def table(claims: Sequence[Examined]) -> Table:
    found = Table(title=TITLE, title_justify="left", show_lines=True)
    for name in HEAD:
        found.add_column(name, overflow="fold")
    for line in cells(claims):
        found.add_row(*line)
    return found
