"""The strangers' part of the certificate: whether somebody spoke who is not of the run.

What strangers send is never taken, but it crosses links, is counted with their bytes and takes time
of theirs. Pure: figures in, words out.
"""

from collections.abc import Iterable

from testbed.record.events import Facts
from testbed.record.run_summary import Dropped, Judged

STRANGER = "stranger"
"""Sender, or reason, of what was dropped because it was nobody's of the run."""


def judge(dropped: Iterable[Dropped], links: Facts) -> Judged:
    """Hold a run against what was not its own; ``links``: their closing facts."""
    rows = [row for row in dropped if STRANGER in (row.peer, row.reason)]
    times = sum(row.count for row in rows)
    connections = _count(links, "strangers")
    size = sum(row.bytes for row in rows) + _count(links, "strangers_bytes")
    if not times and not connections:
        return Judged("pass", "nobody spoke who is not of the run")
    parts = [f"{times:,} times nodes turned them away"] if times else []
    parts += [f"{connections:,} of their connections said nothing"] if connections else []
    return Judged(
        "fail", f"strangers called: {', '.join(parts)}; {size:,} bytes or more are theirs"
    )


def _count(links: Facts, name: str) -> int:
    found = links.get(name)
    return found if isinstance(found, int) and found > 0 else 0
