"""Payload stages in a run's report: bytes of tensors before the first and after each."""

from collections.abc import Iterator

from testbed.record.run_summary import Summary
from testbed.report.page.html import Markup, table


def staged(summary: Summary) -> list[Markup]:
    """A table, or nothing where no message went through stages."""
    rows = list(_rows(summary))
    if not rows:
        return []
    heads = ("direction", "after", "MB", "of all")
    return [table("Tensors of the messages that went through payload stages", heads, rows, 2)]


def _rows(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    for way, sizes in (("up", summary.staged.up), ("down", summary.staged.down)):
        for number, size in enumerate(sizes):
            share = 100 * size.bytes / max(1, sizes[0].bytes)
            name = size.stage or "nothing yet"
            yield "" if number else way, name, f"{size.bytes / 1e6:.3f}", f"{share:.1f} %"
