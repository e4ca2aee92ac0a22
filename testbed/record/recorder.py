"""The recorder of a run: events.jsonl as things happen, and summary.json, whole at any time.

One event is one line ``{"t": seconds since the command, "node": name, "event": kind, ...}``. All
times are emulated ones (``clock``), but for cpu_s and run_delay_s, which are the machine's:

==============  ==========  ====================================================================
event           node        further fields
==============  ==========  ====================================================================
run             supervisor  run_id, command, config; origin_ns: what the nodes' clock said at t = 0;
                            asynchronous: whether updates may answer an earlier round; dilation,
                            and dilation_found: how, where a trial round said; client_memory_mb
links           supervisor  facts of the network; lines: a list a node of [goodput_kbit, delay_ms]
                            up and down, the most that TCP carries there, null without limit;
                            qdiscs: netem's own, as read back; namespaces: who holds them
certified       supervisor  fidelity, seconds, counters: what probing added to the links' counters
started, ended  the node    pid; how (of ended)
ready           the node    samples, round_flops: floating-point operations of its part in a
                            round, or null (clients); trainable_parameters, total_parameters
                            (server)
connection      the node    congestion: the connection's congestion control
message         receiver    peer (sender), kind, round, payload_bytes, message_bytes, sent_ns,
                            received_ns (one monotonic clock for all nodes)
reduced         client      round, members, began_ns, connected_ns, ended_ns: an all-reduce of so
                            many clients (one clock, as above); received: bytes of TCP's stream
                            by sender; reason: why it did not come about, or null
dropped         receiver    peer, bytes, reason: a message that was not taken; count: so many of
                            them, the first few having been told
lost            supervisor  peer, reason: a client that left the run
missed          server      peer, round, reason: an update that did not come
overtaken       client      reason: it was still busy with an earlier round
host_rate       server      gflops: what a core of this machine trains at, where devices are asked
                            for with real compute
computed        the node    round; late_s: how much longer this machine took than the node's
                            device, null where not known; where compute is modelled, flops:
                            operations counted, modelled_s: what they take the device; where it
                            is real, cpu_s: on a core here, device_s: what that takes the device
joined          server      clients: how many are in the run; training begins
round_started   server      round
round           server      round, seconds, metrics, clients_ok, clients_failed
wire            supervisor  round, counters: a list a node of [[frames, bytes, queue_drops,
                            losses] up, [...] down] since the start
evaluated       server      metrics before the first round
shaped          the node    at_s: when its link was to change, in seconds since training began;
                            actual_s: when it was told to; up, down: what each direction is from
                            then on, all that is not at its default; line: as of "links"
away, back      the node    at_s: when the client was to leave or to be back, in seconds since
                            training began; actual_s: when it did
usage           the node    pid, private_mb, peak_private_mb: the most since the last one;
                            cpu_s, run_delay_s; retransmitted: by peer's address, [segments,
                            payload bytes] that its connections have sent again, or null where
                            that is not known
captured        supervisor  packets, dropped: a figure a client, of its capture; failure
saved           the node    round, bytes, seconds: it has kept its state after that round
unsaved         the node    round, reason: it could not
resumed         supervisor  round: the last one that counts of what was there before; at_s: the
                            last event's t; command, environment; lost: seconds, payload and
                            message bytes of what came after that round
host            supervisor  the host's part of the certificate, once all has ended: verdict, reason,
                            latest, late_share, links_late_ms, dilation_needed, busy_cores, as
                            ``host.Host`` has them
limited         client      memory_mb, whose: what holds its memory to so much
failed          the node    traceback; reason: in words, where memory was short
done            server
closed          supervisor  status, reason, and closing facts of the links
==============  ==========  ====================================================================

A killed run that goes on appends to its file. ``t``, sent_ns and received_ns are then as if no time
had passed between its last event and the command that resumed it, and
``recovery.ReplayFilter`` tells which events count.
"""

import contextlib
import fcntl
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from testbed import clock, files
from testbed.config_error import ConfigError
from testbed.record.events import EVENTS
from testbed.record.recovery import Killed

SUMMARY_SHARE = 0.05
"""Of a run's time, at most, for writing what its summary is so far."""
FREE_BYTES_NEEDED = 32 * 1024 * 1024


class Recorder:
    """Owns the run's open events.jsonl."""

    def __init__(self, folder: Path, started_s: float, killed: Killed | None = None) -> None:
        """``started_s``: when the command began, on ``time.monotonic``'s clock. ``killed``: the
        run that goes on in this folder, whose lock this takes over; a torn last line is cut off.
        """
        self.folder = folder
        self._started_s = started_s
        self._past_s = 0.0
        """Emulated seconds of the run before it was killed."""
        self._past_origin_ns: int | None = None
        self._lock: BinaryIO | None = None
        self._make: Callable[[], dict[str, Any]] | None = None
        """Of a summary that waits to be written."""
        self._due_s = 0.0
        """When the next one may be."""
        if killed is None:
            self._file = files.appended(folder / EVENTS)
            with contextlib.suppress(OSError):  # A file system without locks.
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            self._lock = killed.file
            self._file = files.appended(folder / EVENTS)
            self._file.truncate(killed.size)
            self._past_s = killed.last_t
            self._past_origin_ns = killed.facts.get("origin_ns", 0)

    @property
    def origin_ns(self) -> int:
        """The nodes' clock where an event's ``t`` is 0."""
        return round(1e9 * self._began_s())

    def elapsed_s(self) -> float:
        return clock.monotonic() - self._began_s()

    def _began_s(self) -> float:
        """When ``t`` was 0, on the run's clock."""
        return self._started_s / clock.dilation() - self._past_s

    def write(self, node: str, event: dict[str, Any]) -> dict[str, Any]:
        """Append one event and return it as written."""
        line = {"t": round(self.elapsed_s(), 6), "node": node, **event}
        if self._past_origin_ns is not None and "sent_ns" in line:
            shift_ns = self._past_origin_ns - self.origin_ns
            line["sent_ns"] += shift_ns
            line["received_ns"] += shift_ns
        self._append(msgspec.json.encode(line) + b"\n")
        return line

    def _append(self, text: bytes) -> None:
        """Whole or not at all: a full disk takes a part, and says so at the next one."""
        written = 0
        try:
            while written < len(text):
                written += self._file.write(text[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(os.fstat(self._file.fileno()).st_size - written)
            raise

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace summary.json in one step, so that a reader never sees half of it."""
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        files.write(self.folder / "summary.json", text + b"\n")

    def keep_summary(self, make: Callable[[], dict[str, Any]] | None = None) -> None:
        """Have summary.json be what ``make`` returns, now or before long.

        A summary grows with its run. It is written where that takes a small share of the time
        since the last one: else it waits for a later call, which may be without ``make``.
        """
        self._make = make or self._make
        if self._make is None or self.summary_wait_s > 0:
            return
        began_s = clock.monotonic()
        self.write_summary(self._make())
        self._make = None
        self._due_s = began_s + (clock.monotonic() - began_s) / SUMMARY_SHARE

    @property
    def summary_wait_s(self) -> float:
        """Until a summary that waits may be written; infinite where none does."""
        return math.inf if self._make is None else max(0.0, self._due_s - clock.monotonic())

    def close(self) -> None:
        self._file.close()
        if self._lock is not None:
            self._lock.close()


def create_folder(out: Path, label: str) -> Path:
    """Make the run's own folder under ``out`` and check that results can be written there.

    Raises:
        ConfigError: ``out`` cannot be written, or the disk has no room; the text says which.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = out / f"{stamp}-{label}"
        try:
            folder.mkdir()
        except FileExistsError:
            folder = out / f"{stamp}-{label}-{secrets.token_hex(3)}"
            folder.mkdir()
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name a folder you can write") from error
    free = os.statvfs(folder)
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < FREE_BYTES_NEEDED:
        folder.rmdir()
        raise ConfigError(
            f"--out {out}: {free_bytes / 1e6:.1f} MB free on that disk, a run needs "
            f"{FREE_BYTES_NEEDED / 1e6:.0f} MB; free some or name another folder"
        )
    return folder
