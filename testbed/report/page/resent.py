"""Retransmitted bytes as a report shows them, and where every packet can be seen."""

from __future__ import annotations

from testbed.record.run_summary import Captures, Summary
from testbed.report.page.html import Markup, table, tag
from testbed.report.page.svg import number
from testbed.report.text import few

WAYS = {"up": "up: by clients", "down": "down: by the server"}


def sent_again(summary: Summary) -> Markup:
    """Retransmissions by direction; in words where there were none, or nobody could tell."""
    rows, silent = [], []
    for way, name in WAYS.items():
        told = [
            (own, client.name)
            for client in summary.per_client
            if (own := getattr(client.retransmitted, way)) is not None
        ]
        if not told:
            silent.append(way)
            continue
        segments, size = sum(own.segments for own, _ in told), sum(own.bytes for own, _ in told)
        wire = getattr(summary.bytes.wire, way)
        most, client = max(((own.bytes, client) for own, client in told), key=lambda o: o[0])
        rows.append(
            (
                name,
                f"{segments:,}",
                number(size / 1e6),
                number(100 * size / wire) if wire else "-",
                f"{number(most / 1e6)} ({client})" if most else "-",
            )
        )
    if not rows:
        return tag("p", "How much TCP sent again is not known of this run.", class_="note")
    heads = ("direction", "segments", "payload, MB", "of all on the wire, %", "most of one, MB")
    caption = "What TCP sent again, as part of the bytes on the wire"
    if silent:
        caption += f"; {' and '.join(silent)} is not known"
    return table(caption, heads, rows)


def captured(captures: Captures) -> str:
    """The captures of a run's packets; ``captures`` is the summary's."""
    text = (
        f"The {captures.packets:,} packets at the clients' interfaces are in captures/, a file "
        "a client, for Wireshark."
    )
    if captures.dropped_packets:
        text += (
            f" {captures.dropped_packets:,} more came faster than they could be written, of "
            f"{few(captures.incomplete)}."
        )
    if captures.failure:
        text += f" The captures end early: {captures.failure}."
    return text
