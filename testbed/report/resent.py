"""Retransmitted bytes as a report shows them, and where every packet can be seen."""

from __future__ import annotations

from typing import Any

from testbed.report.html import Markup, table, tag
from testbed.report.svg import number
from testbed.report.text import few

WAYS = {"up": "up: by clients", "down": "down: by the server"}


def sent_again(summary: dict[str, Any]) -> Markup:
    """Retransmissions by direction; in words where there were none, or nobody could tell."""
    rows, silent = [], []
    for way, name in WAYS.items():
        told = [
            (own[way], client["name"])
            for client in summary["per_client"]
            if (own := client.get("retransmitted")) and own[way] is not None
        ]
        if not told:
            silent.append(way)
            continue
        segments, size = (sum(own[key] for own, _ in told) for key in ("segments", "bytes"))
        wire = summary["bytes"]["wire"][way]
        most, client = max(((own["bytes"], client) for own, client in told), key=lambda o: o[0])
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


def captured(captures: dict[str, Any]) -> str:
    """The captures of a run's packets; ``captures`` is the summary's."""
    text = (
        f"The {captures['packets']:,} packets at the clients' interfaces are in captures/, a file "
        "a client, for Wireshark."
    )
    if captures["dropped_packets"]:
        text += (
            f" {captures['dropped_packets']:,} more came faster than they could be written, of "
            f"{few(captures['incomplete'])}."
        )
    if captures["failure"]:
        text += f" The captures end early: {captures['failure']}."
    return text
