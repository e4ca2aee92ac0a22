"""Events of a run as they are read: typed, bounded, and in an order that a run can have.

A run's folder may be damaged, or somebody else's. Whoever reads it takes its events from here, so
that no kind, type, name or number is met later that this version does not write, and nothing takes
its size from a figure in the file. docs/events.md says what each field is; of others nothing is
required, and they are passed on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, BinaryIO, Literal

import msgspec

from testbed.links.netem.qdisc import Installed
from testbed.metrics import LARGEST
from testbed.network.profiles import MAX_CLIENTS
from testbed.network.topology import client_name
from testbed.record.ideal_rounds import Access
from testbed.record.spans import SERVER

Event = dict[str, Any]

EVENTS = "events.jsonl"
MOST_LINE_BYTES = 32_000_000
"""The certificate of MAX_CLIENTS links has 6 MB."""
MOST_ROUNDS = 1_000_000
SUPERVISOR = "supervisor"

_Meta = msgspec.Meta
Count = Annotated[int, _Meta(ge=0, le=2**60)]
Nanoseconds = Annotated[int, _Meta(ge=-(2**62), le=2**62)]
Whole = Annotated[int, _Meta(ge=-(2**62), le=2**62)]
Seconds = Annotated[float, _Meta(ge=0, le=1e12)]
Figure = Annotated[float, _Meta(ge=-1e18, le=1e18)]
Metric = Annotated[float, _Meta(ge=-LARGEST, le=LARGEST)]
Setting = Annotated[float, _Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Number = Annotated[int, _Meta(ge=0, le=MOST_ROUNDS)]
"""Of a round; 0 is before the first."""
Metrics = dict[str, Metric | None]
"""None: it was no finite number."""
Scalar = bool | Whole | Metric | str | None
Option = bool | Whole | Setting | str | None
Facts = dict[str, Scalar | list[Any] | dict[str, Any]]
Verdict = Literal["pass", "fail", "skipped"]
Way = tuple[Count, Count, Count, Count]
Counters = list[tuple[Way, Way]]
Resent = dict[str, tuple[Count, Count]]


class Damaged(ValueError):
    """What stands there is no event of a run; the text says which and why."""


class Environment(msgspec.Struct):
    python: str | None = None
    torch: str | None = None
    kernel: str | None = None
    machine: str | None = None
    cores: Count | None = None
    memory_mb: Count = 0
    git: str | None = None
    packages: dict[str, str | None] = {}


class Check(msgspec.Struct):
    name: str
    link: str
    direction: str
    expected: Figure
    measured: Figure | None
    unit: str
    tolerance: Annotated[float, _Meta(ge=0, le=1e18)]
    ok: bool


class NotProbed(msgspec.Struct):
    name: str
    link: str
    direction: str
    reason: str


class Fidelity(msgspec.Struct):
    verdict: Verdict
    reason: str
    checks: list[Check]
    not_probed: list[NotProbed] = []


class UpDown(msgspec.Struct):
    up: Count
    down: Count


class Lost(msgspec.Struct):
    payload: UpDown
    message: UpDown
    seconds: Figure


class _Any(msgspec.Struct, kw_only=True):
    t: Seconds
    node: str
    round: Number | None = None


class _Run(_Any):
    client_names: Annotated[list[str], _Meta(max_length=MAX_CLIENTS)]
    client_profiles: list[str]
    config: dict[str, Option | list[Option] | dict[str, Option]]
    origin_ns: Nanoseconds | None = None
    run_id: str | None = None
    command: str | None = None
    method: str | None = None
    model: str | None = None
    dataset: str | None = None
    profile: str | None = None
    server_profile: str | None = None
    seed: Count | None = None
    compute: str | None = None
    device_class: str | None = None
    server_device_class: str | None = None
    transport: str | None = None
    client_memory_mb: Figure | None = None
    dilation: Annotated[float, _Meta(ge=1, le=1e6)] = 1.0
    dilation_found: str | None = None
    asynchronous: bool = False
    weights: str | None = None
    environment: Environment | None = None


class WayIn(msgspec.Struct):
    """Who holds a run's namespaces while it goes on, and by which descriptors."""

    pid: Count
    nodes: list[Count]
    user: Count | None = None
    link: Count | None = None


class _Links(_Any):
    facts: Facts
    lines: list[Access] = []
    qdiscs: list[tuple[Installed, Installed]] = []
    namespaces: WayIn | None = None


class _Certified(_Any):
    seconds: Seconds
    fidelity: Fidelity
    counters: Counters


class _Ended(_Any):
    how: str


class _Ready(_Any):
    samples: Count = 0
    round_flops: Figure | None = None
    trainable_parameters: Count | None = None
    total_parameters: Count | None = None


class _Connection(_Any):
    congestion: str | None


class _Message(_Any):
    peer: str
    kind: str
    round: Number
    payload_bytes: Count
    message_bytes: Count
    sent_ns: Nanoseconds
    received_ns: Nanoseconds


class _Reduced(_Any):
    round: Number
    members: Count
    began_ns: Nanoseconds
    ended_ns: Nanoseconds
    received: dict[str, Count]
    reason: str | None


class _Dropped(_Any):
    peer: str
    bytes: Count
    reason: str
    count: Count = 1


class _Peer(_Any):
    peer: str
    reason: str


class _Missed(_Peer):
    round: Number


class _Reason(_Any):
    reason: str


class _Rate(_Any):
    gflops: Figure


class _Computed(_Any):
    round: Number
    late_s: Figure | None
    flops: Figure | None = None
    modelled_s: Figure | None = None
    cpu_s: Figure | None = None
    device_s: Figure | None = None


class _RoundStarted(_Any):
    round: Annotated[int, _Meta(ge=1, le=MOST_ROUNDS)]


class _Round(_RoundStarted):
    seconds: Seconds
    metrics: Metrics
    clients_ok: Count
    clients_failed: Count


class _Wire(_Any):
    round: Number | None
    counters: Counters


class _Evaluated(_Any):
    metrics: Metrics


class _Moment(_Any):
    at_s: Figure
    actual_s: Figure


class _Shaped(_Moment):
    line: Access | msgspec.UnsetType = msgspec.UNSET


class _Usage(_Any):
    pid: Count
    private_mb: Figure
    cpu_s: Figure
    run_delay_s: Figure | None
    peak_private_mb: Figure | None = None
    retransmitted: Resent | None = None


class _Captured(_Any):
    packets: list[Count]
    dropped: list[Count]
    failure: str | None


class _Saved(_Any):
    bytes: Count


class _Resumed(_Any):
    round: Number
    at_s: Seconds
    lost: Lost
    environment: Environment | None = None


class _Failed(_Any):
    traceback: str


class _Host(_Any):
    verdict: Verdict
    reason: str
    latest: str | None
    late_share: Figure | None
    links_late_ms: Figure | None
    dilation_needed: Figure | None
    busy_cores: Figure | None


class _Closed(_Any):
    status: Literal["ok", "failed", "interrupted"]
    reason: str | None
    links: Facts = {}


_KINDS: dict[str, type[_Any]] = {
    "run": _Run,
    "links": _Links,
    "certified": _Certified,
    "ended": _Ended,
    "ready": _Ready,
    "connection": _Connection,
    "message": _Message,
    "reduced": _Reduced,
    "dropped": _Dropped,
    "lost": _Peer,
    "missed": _Missed,
    "overtaken": _Reason,
    "host_rate": _Rate,
    "computed": _Computed,
    "round_started": _RoundStarted,
    "round": _Round,
    "wire": _Wire,
    "evaluated": _Evaluated,
    "shaped": _Shaped,
    "away": _Moment,
    "back": _Moment,
    "usage": _Usage,
    "captured": _Captured,
    "saved": _Saved,
    "unsaved": _Reason,
    "resumed": _Resumed,
    "failed": _Failed,
    "host": _Host,
    "closed": _Closed,
}
_BETWEEN_NODES = ("message", "lost", "missed")
"""What has a node as its peer."""
_OF_NODES = ("message", "reduced", "shaped", "usage", "computed")
_decoder = msgspec.json.Decoder()


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, the last one maybe torn.

    Raises:
        Damaged: one is longer than any event.
    """
    while line := file.readline(MOST_LINE_BYTES):
        if len(line) == MOST_LINE_BYTES:
            raise Damaged(f"a line has {MOST_LINE_BYTES:,} bytes or more")
        yield line


def decoded(line: bytes) -> Any:
    """What a line holds, unchecked; None where it is torn."""
    try:
        return _decoder.decode(line)
    except (ValueError, RecursionError):
        return None


def read(found: Iterable[bytes]) -> Iterator[Event | None]:
    """The event of each line, in turn; None of one that is torn.

    Raises:
        Damaged: one is not as this version writes it.
    """
    order = _Order()
    for number, line in enumerate(found, start=1):
        event = decoded(line)
        if event is not None:
            try:
                order.check(event)
            except (ValueError, OverflowError) as error:
                raise Damaged(f"line {number}: {error}") from error
        yield event


class _Order:
    """What later events must agree with."""

    def __init__(self) -> None:
        self._nodes = {SUPERVISOR, SERVER}
        self._clients: list[str] | None = None
        self._begun = 0
        """The latest round that has begun."""

    def check(self, event: Any) -> None:
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise Damaged("is no event")
        kind = event["event"]
        found: Any = msgspec.convert(event, _KINDS.get(kind, _Any))
        if kind == "run":
            self._begin(found)
        if found.node not in self._nodes:
            raise Damaged(f"{kind}: {found.node!r} is no node of this run")
        clients = self._clients or []
        if kind in _BETWEEN_NODES and found.peer not in {SERVER, *clients}:
            raise Damaged(f"{kind}: {found.peer!r} is no node of this run")
        if (kind == "lost" and found.peer == SERVER) or (
            found.node not in clients
            and (kind == "reduced" or (kind == "ready" and "samples" in event))
        ):
            raise Damaged(f"{kind}: is of a client")
        if kind in _OF_NODES and found.node == SUPERVISOR:
            raise Damaged(f"{kind}: is of a node")
        for name in ("counters", "lines", "qdiscs"):
            there = getattr(found, name, None)
            # Which lines there are, an older run does not say; qdiscs are netem's.
            if there is None or (not there and name != "counters"):
                continue
            if len(there) != 1 + len(clients):
                raise Damaged(f"{kind}: {name} are not those of {len(clients)} clients")
        if kind in ("links", "closed"):
            _check_facts(found.facts if kind == "links" else found.links)
        if kind == "links" and not isinstance(found.facts.get("backend"), str):
            raise Damaged("links: backend is no name")
        self._follow(kind, found)

    def _begin(self, run: _Run) -> None:
        if self._clients is not None:
            raise Damaged("a second run begins")
        names = run.client_names
        if names != [client_name(number) for number in range(1, len(names) + 1)]:
            raise Damaged("run: client_names are not client-1 and so on")
        if not isinstance(run.config.get("options", {}), dict):
            raise Damaged("run: options are no table")
        if len(run.client_profiles) != len(names):
            raise Damaged("run: client_profiles are not one of each client")
        self._clients = names
        self._nodes.update(names)

    def _follow(self, kind: str, found: Any) -> None:
        """No round is skipped, so that how many there are is no figure of the file's."""
        number: int = getattr(found, "round", None) or 0
        if kind == "round_started":
            if number > self._begun + 1:
                raise Damaged(f"round {number} begins after round {self._begun}")
            self._begun = max(self._begun, number)
        elif kind in ("round", "wire", "resumed") and number > self._begun:
            raise Damaged(f"{kind}: round {number} has not begun")


def _check_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name.startswith("lateness") and type(value) not in (int, float):
            raise Damaged(f"{name} is no number")
