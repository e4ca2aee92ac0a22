"""A run's figures as CSV, for other programs: a row a round, a client, a kind, a node's round.

Of a run of programs, a row a round that output marked, a client, a program, a flow, a reading.
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
from testbed.report import programs
from testbed.report.rates import rates
from testbed.report.read import Reading
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
        row |= _bytes(entry["bytes"], _levels(summary))
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
        own_bytes = _bytes(client["bytes"], _levels(summary))
        row = {"client": client["name"], **own_bytes, **_flat(rest)}
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


def of_programs(summary: Summary) -> list[Row]:
    """A row a program."""
    processes = {row.node: row for row in summary.processes}
    found = []
    for program in _plain(summary.programs):
        used = processes.get(program["node"])
        row = _flat(program)
        row |= {"cpu_s": used and used.cpu_s, "peak_private_mb": used and used.peak_private_mb}
        found.append(row)
    return found


def flows(summary: Summary) -> list[Row]:
    """A row a service that a node called: TCP's payload, by who called."""
    return [
        {
            "from": row.who,
            "to": row.whom,
            "connections": row.connections,
            "sent_bytes": row.sent,
            "received_bytes": row.received,
            "resent_segments": row.resent,
        }
        for row in programs.flows(summary)
    ]


def readings(summary: Summary, found: Sequence[Reading]) -> list[Row]:
    """A row a reading of the meters and node: bytes on the wire since the run began."""
    nodes = [SERVER, *(client.name for client in summary.per_client)]
    return [
        {"t_s": reading.t, "node": node, "wire_up_bytes": up, "wire_down_bytes": down}
        for reading in found
        for node, (up, down) in zip(nodes, reading.bytes, strict=False)
    ]


TABLES = {"rounds": rounds, "clients": clients, "kinds": kinds, "spans": spans}
OF_PROGRAMS = {"rounds": rounds, "clients": clients, "programs": of_programs, "flows": flows}
READINGS = "readings"
"""The table that a run of programs has beside."""


def write(summary: Summary, folder: Path, meters: Sequence[Reading] = ()) -> list[Path]:
    """Write every table as NAME.csv into ``folder``, and return where.

    ``meters``: of a run of programs, what they said and when.

    Raises:
        OSError: one cannot be written.
    """
    found = []
    own = OF_PROGRAMS if summary.programs else TABLES
    made = {name: table(summary) for name, table in own.items()}
    if summary.programs:
        made[READINGS] = readings(summary, meters)
    for name, rows in made.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        path = folder / f"{name}.csv"
        files.write(path, text.getvalue().encode())
        found.append(path)
    return found


def _levels(summary: Summary) -> tuple[str, ...]:
    """Levels at which its bytes are known."""
    return LEVELS[-1:] if summary.programs else LEVELS


def _plain(rows: Sequence[msgspec.Struct]) -> list[Row]:
    """Rows as summary.json has them."""
    found: list[Row] = msgspec.to_builtins(rows)
    return found


def _bytes(amounts: Mapping[str, Mapping[str, int]], levels: Iterable[str]) -> Row:
    return {f"{level}_{way}_bytes": amounts[level][way] for level in levels for way in WAYS}


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


def scalars(
    summary: Summary, meters: Sequence[Reading] = ()
) -> Iterable[tuple[str, float, int, float]]:
    """Scalars for TensorBoard: (tag, value, round, seconds so far); round 0 is the start.

    ``meters``: of a run of programs, whose clients' rates are by a number of their own.
    """
    if len(meters) > 1:
        for place, client in enumerate(summary.per_client, start=1):
            for number, way in enumerate(WAYS):
                for step, (seconds, rate) in enumerate(rates(meters, place, number)):
                    yield f"kB_per_s_{way}/{one_line(client.name)}", rate, step, seconds
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
