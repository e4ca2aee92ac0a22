"""The summary of a run, built from its events: totals a round, a client and a message kind.

Bytes stand at three levels that are never mixed: payload (tensor bytes), message (ZeroMQ frames)
and wire (interface counters: headers, acknowledgements and retransmissions included). Up is
client to server, down is to a client; a message counts where it arrives. Payload and message
bytes belong to the round in their header. Wire bytes belong to the round that was running.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from testbed.fidelity import host_load
from testbed.network.capacity import Access
from testbed.network.direction import WAYS
from testbed.network.topology import SERVER, client_address
from testbed.record import events, round_times
from testbed.record.events import Event, known
from testbed.record.spans import Timeline

LEVELS = ("payload", "message")

_COMPUTED = ("flops", "modelled_s", "cpu_s", "device_s", "late_s")
"""What adds up of "computed" events."""

MOST_DROPS = 1000
"""Rows of dropped messages, each of one receiver, sender and reason; the rest is summed up."""

# Where one direction's counters stand in a "wire" event.
_FRAMES, _BYTES, _QUEUE_DROPS, _LOSSES = range(4)


def _both_ways() -> dict[str, int]:
    return {"up": 0, "down": 0}


def _resent(figures: Iterable[list[int]]) -> dict[str, int]:
    """The sum of [segments, bytes]."""
    found = list(figures)
    return {"segments": sum(f[0] for f in found), "bytes": sum(f[1] for f in found)}


def _most(*figures: float | None) -> float | None:
    """The largest of those that are known."""
    return max((figure for figure in figures if figure is not None), default=None)


def _each(number: Callable[[int, int], int], counters: list[Any], others: list[Any]) -> list[Any]:
    """``number`` of both lists' counters, one by one."""
    return [
        [[number(*pair) for pair in zip(*ways, strict=True)] for ways in zip(*links, strict=True)]
        for links in zip(counters, others, strict=True)
    ]


class _Bytes:
    """Payload and message bytes, in all and by kind."""

    def __init__(self) -> None:
        self.levels = {level: _both_ways() for level in LEVELS}
        self.by_kind: dict[str, dict[str, int]] = defaultdict(_both_ways)

    def add(self, direction: str, kind: str, payload_bytes: int, message_bytes: int) -> None:
        self.levels["payload"][direction] += payload_bytes
        self.levels["message"][direction] += message_bytes
        self.by_kind[kind][direction] += payload_bytes

    def as_dict(self, wire: dict[str, int]) -> dict[str, Any]:
        return {**self.levels, "wire": wire, "by_kind": dict(self.by_kind)}


class _Round:
    """One round's bytes and what the server said at its end."""

    def __init__(self) -> None:
        self.bytes = _Bytes()
        self.report: events.Round | None = None
        self.wire = _both_ways()
        self.missed: list[dict[str, str]] = []
        self.links: list[Access] = []
        """Of every node, the server first, as the round began."""
        self.times: tuple[int, dict[str, Any]] = (-1, {})
        """Worked out when it had so many messages."""


class SummaryBuilder:
    """Takes every event of a run as it happens; ``summary`` is whole at any moment."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._bytes = _Bytes()
        self._rounds: dict[int, _Round] = defaultdict(_Round)
        self._timeline = Timeline()
        self._links: list[Access] = []
        """Of every node, the server first, as it is now."""
        self._clients: dict[str, dict[str, Any]] = {}
        self._client_bytes: dict[str, _Bytes] = defaultdict(_Bytes)
        self._processes: dict[str, dict[str, Any]] = {}
        self._computed: dict[str, dict[str, Any]] = {}
        self._connections: dict[str, int] = defaultdict(int)
        self._dropped: dict[tuple[str, str, str], dict[str, Any]] = {}
        """By receiver, sender and reason."""
        self._resent: dict[str, dict[str, list[int]]] = {}
        """By node and the peer's address: [segments, bytes], of its present process."""
        self._resent_earlier: dict[str, dict[str, list[int]]] = {}
        """The same of the processes that a resumed run had before."""
        self._captures: dict[str, Any] | None = None
        self._counters: list[Any] = []
        self._earlier: list[Any] | None = None
        """Counters of the links that a resumed run had before."""
        self._before: list[Any] | None = None
        self._fidelity: dict[str, Any] = {
            "verdict": "skipped",
            "reason": "the run ended before its links were probed",
            "checks": [],
        }
        self._host: dict[str, Any] = {
            "verdict": "skipped",
            "reason": "the run did not end as it should",
        }
        self._calibration_s = 0.0
        self._changes = 0
        self._late_s = self._latest_s = 0.0
        """Of all changes of links together, and of one at most."""
        self._metrics: dict[str, Any] = {"initial": {}, "final": {}}
        self._last_begun = 0
        self._training_began_s: float | None = None
        self._trained_s: float | None = None
        """Up to the end of the last round that is over; None: none is."""
        self._untold_since_s: float | None = None
        """From when on training is not in that; None: it has yet to begin, or to go on."""
        self._resumed: list[dict[str, Any]] = []
        self._kept: dict[str, Any] = {"bytes": 0, "failure": None}
        self._startup_s = 0.0
        self._closed = events.Closed(
            status="interrupted",
            reason="the run was not closed: its supervisor ended before it could",
        )
        self._last_t = 0.0
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            events.Run: self._on_run,
            events.Links: self._on_links,
            events.Certified: self._on_certified,
            events.Host: self._on_host,
            events.Ready: self._on_ready,
            events.Connection: self._on_connection,
            events.Message: self._on_message,
            events.Reduced: self._on_reduced,
            events.Dropped: self._on_dropped,
            events.Lost: self._on_lost,
            events.Missed: self._on_missed,
            events.Evaluated: self._on_evaluated,
            events.Joined: self._on_joined,
            events.RoundStarted: self._on_round_started,
            events.Resumed: self._on_resumed,
            events.Saved: self._on_saved,
            events.Unsaved: self._on_unsaved,
            events.Round: self._on_round,
            events.Wire: self._on_wire,
            events.Shaped: self._on_shaped,
            events.Usage: self._on_usage,
            events.Computed: self._on_computed,
            events.HostRate: self._on_host_rate,
            events.Captured: self._on_captured,
            events.Closed: self._on_closed,
        }

    def take(self, event: Event) -> None:
        """Account for one event as the recorder wrote it; unknown kinds change nothing."""
        self._last_t = event.t
        self._timeline.take(event)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _on_run(self, event: events.Run) -> None:
        self._facts = events.as_dict(event)
        for name, profile in zip(event.client_names, event.client_profiles, strict=True):
            self._clients[name] = {"name": name, "profile": profile, "lost": None}

    def _on_links(self, event: events.Links) -> None:
        self._facts["links"] = event.facts["backend"]
        self._facts["link_facts"] = event.facts
        self._links = event.lines

    def _on_certified(self, event: events.Certified) -> None:
        self._fidelity = msgspec.to_builtins(event.fidelity)
        self._calibration_s = event.seconds
        self._before = event.counters

    def _on_host(self, event: events.Host) -> None:
        self._host = {field: getattr(event, field) for field in host_load.Host.__struct_fields__}

    def _on_ready(self, event: events.Ready) -> None:
        if event.trainable_parameters is not UNSET:
            self._facts["trainable_parameters"] = event.trainable_parameters
            self._facts["total_parameters"] = known(event.total_parameters)
        if event.samples is not UNSET:
            self._clients[event.node]["samples"] = event.samples
            self._clients[event.node]["round_flops"] = known(event.round_flops)

    def _on_connection(self, event: events.Connection) -> None:
        self._connections[str(event.congestion)] += 1

    def _on_message(self, event: events.Message) -> None:
        amounts = event.kind, event.payload_bytes, event.message_bytes
        self._add(event.round, event.peer, event.node, *amounts)

    def _add(
        self, number: int, sender: str, receiver: str, kind: str, payload: int, message: int
    ) -> None:
        """Bytes that went from one node to another."""
        for direction, client in (("up", sender), ("down", receiver)):
            if client in self._clients:
                for sums in (self._bytes, self._rounds[number].bytes, self._client_bytes[client]):
                    sums.add(direction, kind, payload, message)

    def _on_reduced(self, event: events.Reduced) -> None:
        # TCP's stream is all that is known of what gloo carries: it counts at both levels.
        for peer, size in event.received.items():
            self._add(event.round, peer, event.node, "allreduce", size, size)

    def _on_dropped(self, event: events.Dropped) -> None:
        key = (event.node, event.peer, event.reason)
        if key not in self._dropped and len(self._dropped) >= MOST_DROPS:
            key = (event.node, "others", "various")
        row = self._dropped.setdefault(
            key, dict(zip(("node", "peer", "reason"), key, strict=True)) | {"count": 0, "bytes": 0}
        )
        row["count"] += known(event.count) or 1
        row["bytes"] += event.bytes

    def _on_lost(self, event: events.Lost) -> None:
        self._clients[event.peer]["lost"] = event.reason

    def _on_missed(self, event: events.Missed) -> None:
        miss = {"client": event.peer, "reason": event.reason}
        self._rounds[event.round].missed.append(miss)

    def _on_evaluated(self, event: events.Evaluated) -> None:
        self._metrics["initial"] = event.metrics

    def _on_joined(self, event: events.Joined) -> None:
        self._begin_training(event.t)

    def _on_round_started(self, event: events.RoundStarted) -> None:
        self._last_begun = event.round
        self._rounds[event.round].links = self._links
        self._begin_training(event.t)

    def _begin_training(self, t: float) -> None:
        """Training begins or goes on; of each start only the first call counts."""
        again = self._resumed[-1] if self._resumed else None
        if again is not None and again["startup_s"] is None:
            again["startup_s"] = round(t - again["at_s"], 6)
        if self._untold_since_s is None:
            self._untold_since_s = t
        if self._training_began_s is None:
            self._training_began_s = t
            self._startup_s = t - (again["at_s"] if again else 0.0)

    def _on_resumed(self, event: events.Resumed) -> None:
        at_s = event.at_s
        again = {"from_round": event.round, "at_s": at_s, "startup_s": None}
        before = {"verdict_before": self._fidelity["verdict"]}
        self._resumed.append({**again, "lost": msgspec.to_builtins(event.lost), **before})
        self._untold_since_s = None
        if self._trained_s is None:
            # It begins with the first round that counts.
            self._training_began_s = None
        self._earlier, self._before = self._counters or None, None
        self._resent_earlier = {node: self._resent_by(node) or {} for node in self._resent}
        self._resent = {node: {} for node in self._resent}
        for client in self._clients.values():
            # All are started again.
            client["lost"] = None

    def _on_saved(self, event: events.Saved) -> None:
        self._kept["bytes"] += event.bytes

    def _on_unsaved(self, event: events.Unsaved) -> None:
        self._kept["failure"] = self._kept["failure"] or event.reason

    def _on_round(self, event: events.Round) -> None:
        self._last_begun = max(self._last_begun, event.round)
        self._rounds[event.round].report = event
        self._metrics["final"] = event.metrics
        if self._untold_since_s is not None:
            self._trained_s = self.trained_s + event.t - self._untold_since_s
            self._untold_since_s = event.t

    def _on_wire(self, event: events.Wire) -> None:
        counters: list[Any] = event.counters
        if self._before is not None:
            # What probing sent is not the run's.
            counters = _each(operator.sub, counters, self._before)
        if self._earlier is not None:
            counters = _each(operator.add, counters, self._earlier)
        before, now = self._wire(), self._wire(counters)
        self._counters = counters
        if event.round is not None:
            target = self._rounds[event.round].wire
            for direction in WAYS:
                target[direction] += now[direction] - before[direction]

    def _on_shaped(self, event: events.Shaped) -> None:
        late_s = event.actual_s - event.at_s
        self._latest_s = max(late_s, self._latest_s) if self._changes else late_s
        self._late_s += late_s
        self._changes += 1
        if self._links and event.line is not UNSET:
            place = [SERVER, *self._clients].index(event.node)
            # A new list: rounds hold the one before.
            self._links = [*self._links]
            self._links[place] = event.line

    def _on_usage(self, event: events.Usage) -> None:
        node = event.node
        fields = ("pid", "private_mb", "cpu_s", "run_delay_s")
        row = {"node": node, **{key: getattr(event, key) for key in fields}}
        row["peak_private_mb"] = event.peak_private_mb
        before = self._processes.get(node)
        if before is not None:
            row["peak_private_mb"] = _most(row["peak_private_mb"], before["peak_private_mb"])
            if row["pid"] == before["pid"]:
                # What only grows: a thread that has ended is not in a later reading.
                for key in ("cpu_s", "run_delay_s"):
                    row[key] = _most(row[key], before[key])
        self._processes[node] = row
        if event.retransmitted is not None:
            resent = self._resent.setdefault(node, {})
            for address, figures in event.retransmitted.items():
                told = resent.get(address, [0, 0])
                resent[address] = [max(pair) for pair in zip(told, figures, strict=True)]

    def _resent_by(self, node: str) -> dict[str, list[int]] | None:
        """[segments, bytes] by the peer's address, of all processes of a node that has told."""
        if node not in self._resent:
            return None
        found = dict(self._resent_earlier.get(node, {}))
        for address, figures in self._resent[node].items():
            before = found.get(address, [0, 0])
            found[address] = [one + more for one, more in zip(before, figures, strict=True)]
        return found

    def _on_computed(self, event: events.Computed) -> None:
        node = event.node
        row = self._computed.setdefault(node, {"node": node})
        for field in _COMPUTED:
            if (more := getattr(event, field)) is not UNSET:
                before = row.get(field, 0)
                unknown = before is None or more is None
                row[field] = None if unknown else round(before + more, 6)
        if node in self._clients and event.flops is not UNSET:
            self._clients[node]["round_flops"] = event.flops

    def _on_host_rate(self, event: events.HostRate) -> None:
        self._facts["host_gflops"] = event.gflops

    def _on_captured(self, event: events.Captured) -> None:
        names = zip(self._clients, event.dropped, strict=False)
        self._captures = {
            "packets": sum(event.packets),
            "dropped_packets": sum(event.dropped),
            "incomplete": [name for name, dropped in names if dropped],
            "failure": event.failure,
        }

    def _on_closed(self, event: events.Closed) -> None:
        self._closed = event

    def _wire(self, counters: list[Any] | None = None) -> dict[str, int]:
        """Bytes at the clients' interfaces, since the start."""
        clients = (self._counters if counters is None else counters)[1:]
        return {
            direction: sum(link[way][_BYTES] for link in clients)
            for way, direction in enumerate(WAYS)
        }

    def rounds_done(self) -> int:
        return sum(1 for entry in self._rounds.values() if entry.report is not None)

    def without_updates(self) -> str | None:
        """Why the rounds that are over came to nothing: no client did its part in any of them."""
        done = [entry for entry in self._rounds.values() if entry.report is not None]
        if not done or any(entry.report and entry.report.clients_ok for entry in done):
            return None
        misses = [miss for entry in done for miss in entry.missed]
        first = f"; the first: {misses[0]['client']}: {misses[0]['reason']}" if misses else ""
        rounds = "the round" if len(done) == 1 else f"any of {len(done)} rounds"
        return f"no update was taken in {rounds}{first}"

    def bytes(self) -> dict[str, Any]:
        """Totals so far, as summary.json gives them."""
        return self._bytes.as_dict(self._wire())

    def summary(self) -> dict[str, Any]:
        """summary.json as it stands."""
        facts = self._facts
        startup_s = self._last_t if self._training_began_s is None else self._startup_s
        since_s = self._untold_since_s
        first_s = 0.0 if since_s is None else self._last_t - since_s
        dilation = facts.get("dilation", 1.0)
        return {
            "schema": 1,
            "run_id": facts.get("run_id"),
            "command": facts.get("command"),
            "method": facts.get("method"),
            "asynchronous": facts.get("asynchronous", False),
            "transport": facts.get("transport"),
            "model": facts.get("model"),
            "dataset": facts.get("dataset"),
            "profile": facts.get("profile"),
            "server_profile": facts.get("server_profile"),
            "profile_versions": facts.get("profile_versions", {}),
            "links": facts.get("links"),
            "congestion": self._congestion(),
            "congestion_asked": facts.get("congestion"),
            "clients": len(self._clients),
            "rounds_done": self.rounds_done(),
            "seed": facts.get("seed"),
            "status": self._closed.status,
            "reason": self._closed.reason,
            "seconds": {
                "startup": startup_s,
                "calibration": self._calibration_s,
                "training": first_s if self._trained_s is None else self._trained_s,
                "total": self._last_t,
                "host_startup": dilation * startup_s,
                "host_total": dilation * self._last_t,
            },
            "dilation": dilation,
            "dilation_found": facts.get("dilation_found"),
            "bytes": self.bytes(),
            "rounds": [self.round_summary(number) for number in range(1, self._last_begun + 1)],
            "metrics": self._metrics,
            "trainable_parameters": facts.get("trainable_parameters"),
            "total_parameters": facts.get("total_parameters"),
            "per_client": self._per_client(),
            "processes": list(self._processes.values()),
            "compute": {
                "mode": facts.get("compute"),
                "device_class": facts.get("device_class"),
                "server_device_class": facts.get("server_device_class"),
                "host_gflops": facts.get("host_gflops"),
                "nodes": list(self._computed.values()),
            },
            "connections": dict(self._connections),
            "captures": self._captures,
            "resumed": self._resumed,
            "checkpoints": self._kept,
            "dropped_messages": list(self._dropped.values()),
            "link_facts": {**facts.get("link_facts", {}), **self._closed.links},
            "dynamics": self._dynamics(),
            "fidelity": host_load.combined(self._fidelity, self._host),
            "environment": facts.get("environment"),
        }

    def _congestion(self) -> str | None:
        """Congestion control really used; None over loopback links, and where nobody tells."""
        if self._facts.get("links") == "loopback":
            return None
        return ", ".join(sorted(self._connections.keys() - {"None"})) or None

    @property
    def trained_s(self) -> float:
        """Seconds of training up to the end of the last round that is over."""
        return self._trained_s or 0.0

    def _dynamics(self) -> dict[str, Any]:
        """How many changes links have taken, and how long after their times."""
        return {
            "changes": self._changes,
            "lateness_mean_ms": round(1000 * self._late_s / max(1, self._changes), 3),
            "lateness_max_ms": round(1000 * self._latest_s, 3),
        }

    def round_summary(self, number: int) -> dict[str, Any]:
        """One entry of the summary's "rounds"."""
        entry = self._rounds[number]
        report = entry.report
        timeline = self._timeline.rounds[number]
        if entry.times[0] != timeline.taken:
            times = round_times.of_round(
                timeline,
                list(self._clients),
                entry.links,
                asynchronous=self._timeline.asynchronous,
            )
            entry.times = (timeline.taken, times)
        return {
            "round": number,
            "finished": entry.report is not None,
            "seconds": report.seconds if report else None,
            **entry.times[1],
            "bytes": entry.bytes.as_dict(entry.wire),
            "metrics": report.metrics if report else {},
            "clients_ok": report.clients_ok if report else None,
            "clients_failed": report.clients_failed if report else None,
            "missed": entry.missed,
        }

    def _per_client(self) -> list[dict[str, Any]]:
        by = {node: self._resent_by(node) or {} for node in self._resent}
        to: dict[str, list[list[int]]] = defaultdict(list)
        for resent in by.values():
            for address, figures in resent.items():
                to[address].append(figures)
        rows = [self._client(*numbered) for numbered in enumerate(self._clients.values(), start=1)]
        for number, row in enumerate(rows, start=1):
            own = by.get(row["name"])
            row["retransmitted"] = {
                "up": None if own is None else _resent(own.values()),
                "down": _resent(to[client_address(number)]) if SERVER in by else None,
            }
        return rows

    def _client(self, number: int, client: dict[str, Any]) -> dict[str, Any]:
        wire, drops = _both_ways(), {"queue_drops": _both_ways(), "losses": _both_ways()}
        if self._counters:
            for way, direction in enumerate(WAYS):
                counters = self._counters[number][way]
                wire[direction] = counters[_BYTES]
                drops["queue_drops"][direction] = counters[_QUEUE_DROPS]
                drops["losses"][direction] = counters[_LOSSES]
        return {**client, "bytes": self._client_bytes[client["name"]].as_dict(wire), **drops}
