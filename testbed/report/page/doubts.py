"""Doubts about a run of programs: what its meters cannot have seen, and what was not to be had."""

from testbed.record.events import known
from testbed.record.run_summary import Summary
from testbed.report.text import few
from testbed.units import byte_count


def of(summary: Summary, expected: str | None, regex: str | None) -> list[str]:
    """Sentences for whoever reads its figures.

    ``expected``: bytes that programs say they move. ``regex``: what begins a round in their output.
    """
    found = [less] if (less := less_than_expected(summary, expected)) else []
    if regex is not None and not summary.rounds:
        found.append(
            f"there are no rounds: no line of any program's output has --round-regex='{regex}'"
        )
    seen = [row.node for row in summary.programs if row.sockets]
    if seen:
        paths = sorted({path for row in summary.programs for path in row.sockets})
        found.append(
            f"Unix sockets where other nodes see them, at {few(paths)} (of {few(seen)}): what goes "
            "over them passes no link and is not metered; have them in /tmp, which is a node's own"
        )
    for row in summary.programs:
        if row.lookups:
            found.append(
                f"{row.node} looked up {few(row.lookups)}: there is no internet inside, only the "
                "nodes; have what it needs on this machine before"
            )
    for row in summary.programs:
        if (brought := known(row.brought)) is not None and brought.left_out:
            found.append(
                f"of {row.node}'s own folder on host {brought.host} this is not here, and gone "
                f"with it: {'; '.join(brought.left_out)}; what is to last there goes to a folder "
                "of that host's"
            )
    missing = sorted({each for row in summary.programs for each in row.missing})
    return found + [f"nodes are without {each}" for each in missing]


def less_than_expected(summary: Summary, expected: str | None) -> str | None:
    """A sentence where less has crossed the clients' links than was to."""
    wire = summary.bytes.wire.both
    if expected is None or wire >= byte_count(expected):
        return None
    return (
        f"{wire:,} bytes crossed the clients' links, which is less than the {expected} of "
        "--expect-bytes: programs speak past the links, by shared memory or Unix sockets, or moved "
        "less than they say"
    )
