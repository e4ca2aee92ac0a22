"""A run's figures as CSV, for other programs: a row a round, a client, a kind, a node's round.

Columns have their unit in their name; what is not known is empty. Every scalar that summary.json
has of a round or a client is there, so a new one is a new column.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from testbed import files
from testbed.network.direction import WAYS
from testbed.network.topology import SERVER
from testbed.record.run_summary import Summary
from testbed.report.text import one_line

Row = dict[str, Any]
LEVELS = ("payload", "message", "wire")
_FORMULA = re.compile(r"(^|[;,|]|\\[tnr])(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Before what a spreadsheet would carry out; not all of them divide cells at commas alone."""
_PACKETS = ("queue_drops", "losses")


def rounds(summary: Summary) -> list[Row]:
    """A row a round. ``elapsed_s`` adds up the rounds that finished, as a report's minutes do."""
    found = []
    elapsed_s = 0.0
    for entry in _plain(summary.rounds):
        elapsed_s += (entry["seconds"] or 0.0) if entry["finished"] else 0.0
        row = {"round": entry["round"], "finished": entry["finished"]}
        row |= {"seconds": entry["seconds"], "elapsed_s": round(elapsed_s, 6)}
        row |= _bytes(entry["bytes"])
        rest = {
            name: value
            for name, value in entry.items()
            if name not in ("bytes", "metrics", *row) and value is not None
        }
        row |= _flat(rest)
        row["updates_missed"] = len(entry["missed"])
        for name, value in entry["metrics"].items():
            row[f"metrics_{name}" if name in row else name] = value
        found.append(row)
    return found


def clients(summary: Summary) -> list[Row]:
    """A row a client, of the whole run, with what its process took."""
    processes = {row["node"]: row for row in _plain(summary.processes)}
    computed = {row["node"]: row for row in _plain(summary.compute.nodes)}
    found = []
    for client in _plain(summary.per_client):
        own_names = ("name", "bytes", "retransmitted")
        rest = {name: value for name, value in client.items() if name not in own_names}
        row = {"client": client["name"], **_bytes(client["bytes"]), **_flat(rest)}
        for way, resent in client["retransmitted"].items():
            for unit in ("segments", "bytes"):
                row[f"retransmitted_{way}_{unit}"] = resent and resent[unit]
        for own in (processes.get(client["name"]), computed.get(client["name"])):
            row |= {name: value for name, value in (own or {}).items() if name != "node"}
        found.append({_with_unit(name): value for name, value in row.items()})
    return found


def kinds(summary: Summary) -> list[Row]:
    """A row a round and kind of message."""
    return [
        {"round": entry["round"], "kind": kind}
        | {f"payload_{way}_bytes": ways[way] for way in WAYS}
        for entry in _plain(summary.rounds)
        for kind, ways in entry["bytes"]["by_kind"].items()
    ]


def spans(summary: Summary) -> list[Row]:
    """A row a round and node; clients' up to 200 of them, as summary.json has them."""
    found = []
    for entry in _plain(summary.rounds):
        server = entry["server_spans"]
        rows = [{"client": SERVER, **server}] if server else []
        for own in [*rows, *entry["spans"]]:
            rest = {name: value for name, value in own.items() if name != "client"}
            found.append({"round": entry["round"], "node": own["client"], **rest})
    return found


TABLES = {"rounds": rounds, "clients": clients, "kinds": kinds, "spans": spans}


def write(summary: Summary, folder: Path) -> list[Path]:
    """Write every table as NAME.csv into ``folder``, and return where.

    Raises:
        OSError: one cannot be written.
    """
    found = []
    for name, table in TABLES.items():
        rows = table(summary)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        path = folder / f"{name}.csv"
        files.write(path, text.getvalue().encode())
        found.append(path)
    return found


def _plain(rows: Sequence[msgspec.Struct]) -> list[Row]:
    """Rows as summary.json has them."""
    found: list[Row] = msgspec.to_builtins(rows)
    return found


def _bytes(amounts: Mapping[str, Mapping[str, int]]) -> Row:
    return {f"{level}_{way}_bytes": amounts[level][way] for level in LEVELS for way in WAYS}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Row:
    """Scalars in tables by their path; lists are left out."""
    found: Row = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}_")
        elif not isinstance(value, Sequence) or isinstance(value, str):
            found[f"{prefix}{name}"] = value
    return found


def _with_unit(name: str) -> str:
    return f"{name}_packets" if name.startswith(_PACKETS) else name


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return _FORMULA.sub(r"\1'", one_line(value))
    return str(value).lower() if isinstance(value, bool) else value


def scalars(summary: Summary) -> Iterable[tuple[str, float, int, float]]:
    """Scalars for TensorBoard: (tag, value, round, seconds so far); round 0 is the start."""
    for name, value in summary.metrics.initial.items():
        if value is not None:
            yield f"metrics/{one_line(name)}", float(value), 0, 0.0
    for entry, row in zip(summary.rounds, rounds(summary), strict=True):
        if not entry.finished:
            continue
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if name not in ("round", "elapsed_s"):
                yield (
                    f"{_group(name, entry.metrics)}/{one_line(name)}",
                    float(value),
                    row["round"],
                    row["elapsed_s"],
                )


def _group(name: str, metrics: Mapping[str, Any]) -> str:
    if name in metrics or name.startswith("metrics_"):
        return "metrics"
    if name.endswith("_bytes"):
        return "bytes"
    return "seconds" if name == "seconds" or name.endswith("_s") else "clients"
