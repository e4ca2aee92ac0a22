"""summary.json as types: what the builder makes, the recorder writes and `compare` reads.

docs/summary.md is printed from here: the text of a field is what it holds. What is UNSET is not
written. A field with a default may be missing in what an older version wrote; those without one
are what a reader needs.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from testbed.record.events import (
    MOST_ROUNDS,
    Because,
    Check,
    Count,
    Environment,
    Facts,
    Figure,
    Flops,
    Metrics,
    NotProbed,
    Redone,
    Seconds,
    StageSize,
    UpDown,
    Verdict,
)
from testbed.record.host_summary import HostSummary
from testbed.record.program_summary import Program

SCHEMA = 1
OLDER = "an older version does not say"

Status = Literal["ok", "failed", "interrupted"]


def nothing() -> UpDown:
    return UpDown(0, 0)


class Times(msgspec.Struct, kw_only=True):
    """Seconds of a run; start-up, calibration and training are parts of the whole."""

    startup: Annotated[Figure, "to the first round"] = 0.0
    calibration: Annotated[Figure, "of that, probing"] = 0.0
    training: Annotated[
        Figure, "from the first round's begin to the end of the last that is over"
    ] = 0.0
    total: Annotated[Figure, "in all"]
    host_startup: Annotated[
        Figure, "of this machine: as emulated, times the dilation, and what the clock stood still"
    ] = 0.0
    host_total: Annotated[Figure, "likewise"] = 0.0
    held: Annotated[Figure, "of this machine, that an elastic clock stood still"] = 0.0


class Bytes(msgspec.Struct, kw_only=True):
    """Bytes at three levels that are never mixed; up is client to server."""

    payload: Annotated[UpDown, "of tensors"]
    message: Annotated[UpDown, "of all frames of messages"]
    wire: Annotated[UpDown, "of Ethernet frames at the clients' interfaces"]
    by_kind: Annotated[dict[str, UpDown], "payload by kind of message, `up` and `down`"]

    @classmethod
    def none(cls) -> Bytes:
        return cls(payload=nothing(), message=nothing(), wire=nothing(), by_kind={})

    def add(self, way: str, kind: str, payload_bytes: int, message_bytes: int) -> None:
        self.payload.add(way, payload_bytes)
        self.message.add(way, message_bytes)
        if kind not in self.by_kind:
            self.by_kind[kind] = nothing()
        self.by_kind[kind].add(way, payload_bytes)


class StagedBytes(msgspec.Struct, kw_only=True):
    """Bytes of tensors of the messages that went through payload stages, in each direction: before
    the first stage (`stage` empty) and after each."""

    up: list[StageSize] = []
    down: list[StageSize] = []

    def add(self, way: str, sizes: list[StageSize]) -> None:
        """Another message's."""
        known = getattr(self, way)
        if [each.stage for each in known] != [each.stage for each in sizes]:
            known = [StageSize(each.stage, 0) for each in sizes]
        both = zip(known, sizes, strict=True)
        total = [StageSize(old.stage, old.bytes + new.bytes) for old, new in both]
        setattr(self, way, total)


class Spans(msgspec.Struct, kw_only=True):
    """Seconds of a node in a round, each instant counted once: they sum up to the round."""

    client: Annotated[str | UnsetType, "in `spans` alone: whose they are"] = UNSET
    receive_s: Seconds
    compute_s: Seconds
    send_s: Seconds
    wait_s: Seconds


class SpansOverClients(msgspec.Struct):
    min: Spans
    median: Spans
    max: Spans


class Miss(msgspec.Struct):
    client: str
    reason: str


class RoundSummary(msgspec.Struct, kw_only=True):
    """One round that has begun."""

    round: Annotated[Annotated[int, msgspec.Meta(ge=1, le=MOST_ROUNDS)], "from 1"]
    finished: bool
    seconds: Annotated[
        Seconds | None, "from its begin to the new global model; null: it is not finished"
    ]
    evaluation_s: Annotated[
        Seconds | None, "from there to its metrics; the next round begins after that"
    ] = None
    compute_s: Annotated[
        Seconds | None,
        "of `seconds`, of its slowest client; null as those, and of an asynchronous method",
    ] = None
    transfer_s: Annotated[Seconds | None, "likewise, on the way"] = None
    wait_s: Annotated[Seconds | None, "likewise, the rest"] = None
    spans: Annotated[list[Spans], "of each client that took part, where they are up to 200"] = []
    spans_over_clients: Annotated[SpansOverClients | None, "where they are more"] = None
    server_spans: Spans | None = None
    ideal_s: Annotated[Seconds | None, "what it would take if TCP filled the lines"] = None
    measured_to_ideal: Annotated[Figure | None, "`seconds` as a multiple of that"] = None
    bytes: Bytes
    metrics: Annotated[Metrics, "by name, after it; null where one is no finite number"]
    clients_ok: Count | None = None
    clients_failed: Count | None = None
    missed: Annotated[list[Miss], "updates that did not come"] = []

    def __post_init__(self) -> None:
        if self.finished and self.seconds is None:
            raise ValueError(f"round {self.round} is finished and has no seconds")


class Evaluated(msgspec.Struct):
    """Images that models are evaluated on."""

    images: Annotated[Count | None, "how many; null: nobody has said"] = None
    of: Annotated[Count | None, "how many there are"] = None
    split: Annotated[
        Literal["test", "validation"],
        "`validation`: held out of the training images, for tuning",
    ] = "test"


class InitialFinal(msgspec.Struct):
    initial: Annotated[Metrics, "before the first round"]
    final: Annotated[Metrics, "after the last"]


class Resent(msgspec.Struct):
    segments: Count
    bytes: Annotated[Count, "of payload"]


class ResentUpDown(msgspec.Struct):
    up: Annotated[Resent | None, "by the client; null: nobody tells"] = None
    down: Annotated[Resent | None, "by the server to it, likewise"] = None


class ClientSummary(msgspec.Struct, kw_only=True):
    name: str
    profile: Annotated[str, "of its access link"]
    lost: Annotated[str | None, "why it left the run for good"] = None
    samples: Annotated[Count | UnsetType, "that it trains on, once it has told"] = UNSET
    round_flops: Annotated[
        Flops | UnsetType | None,
        "floating-point operations of its part in a round, the mean; likewise",
    ] = UNSET
    bytes: Bytes
    queue_drops: Annotated[UpDown, "packets that a full queue dropped"] = msgspec.field(
        default_factory=nothing
    )
    losses: Annotated[UpDown, "packets that were lost as asked"] = msgspec.field(
        default_factory=nothing
    )
    retransmitted: Annotated[ResentUpDown, "what TCP sent again"] = msgspec.field(
        default_factory=ResentUpDown
    )


class Busiest(msgspec.Struct):
    """The node that had the most payload bytes, sent and received together."""

    node: str
    sent: Annotated[Count, "bytes of payload"]
    received: Annotated[Count, "likewise"]


class Process(msgspec.Struct, kw_only=True):
    node: str
    pid: Count = 0
    private_mb: Annotated[
        Figure, "memory that is its alone at the last round, MB of 10^6 bytes"
    ] = 0.0
    cpu_s: Annotated[Figure, "seconds on a core"] = 0.0
    run_delay_s: Annotated[Figure | None, "seconds that it was ready and had no core"] = None
    peak_private_mb: Annotated[Figure | None, "the most that was its alone in any round"] = None
    peak_accelerator_mb: Annotated[
        Figure | None, "the most that its tensors took on its GPU; null: it has none"
    ] = None


class Computed(msgspec.Struct, kw_only=True):
    node: str
    flops: Annotated[Flops | UnsetType, "floating-point operations, where known"] = UNSET
    modelled_s: Annotated[Figure | UnsetType, "modelled: seconds that they take its device"] = UNSET
    cpu_s: Annotated[Figure | UnsetType, "real: seconds on a core of this machine"] = UNSET
    device_s: Annotated[Figure | UnsetType, "real: seconds that this takes its device"] = UNSET
    late_s: Annotated[
        Figure | None, "seconds more than that, that this machine took; null: unknown"
    ] = None


class Compute(msgspec.Struct, kw_only=True):
    mode: Annotated[str | None, "`real` or `modelled`"]
    device_class: Annotated[str | None, "null: a core of this machine"] = None
    server_device_class: Annotated[str | None, "the server's, likewise"] = None
    accelerator: Annotated[str | None, "`cpu`, `cuda`, or a mix as `cuda:12,cpu:8`"] = None
    server_accelerator: Annotated[str | None, "the server's, `cpu` or `cuda`"] = None
    accelerators: Annotated[list[str], "names of the GPUs that nodes compute on"] = []
    host_gflops: Annotated[
        Figure | None, "what a core trains the model at, in 10^9 operations a second, if asked"
    ] = None
    nodes: Annotated[list[Computed], "that have computed"] = []


class Captures(msgspec.Struct):
    packets: Count
    dropped_packets: Annotated[Count, "too fast to be written"]
    incomplete: Annotated[list[str], "nodes that lack some"]
    failure: Annotated[str | None, "why capturing ended early"]


class Resumed(msgspec.Struct):
    from_round: Annotated[Count, "the last that counts of what was there"]
    at_s: Annotated[Seconds, "when, since the command began"]
    startup_s: Annotated[Seconds | None, "from then until training went on"]
    lost: Annotated[Redone, "what is done again"]
    verdict_before: Annotated[Verdict, "of the links that the run had before"]


class Checkpoints(msgspec.Struct):
    bytes: Annotated[Count, "of all states that were kept"] = 0
    failure: Annotated[str | None, "why one could not be"] = None


class Dropped(msgspec.Struct, kw_only=True):
    node: Annotated[str, "who did not take them"]
    peer: Annotated[str, "who they are from, as `dropped` in events.jsonl has it"]
    reason: str
    count: Annotated[Count, "how many they are"] = 1
    bytes: Annotated[Count, "of all of them"]


class Changes(msgspec.Struct):
    changes: Annotated[Count, "that links have taken"] = 0
    lateness_mean_ms: Annotated[Figure, "after their times"] = 0.0
    lateness_max_ms: Figure = 0.0


class Judged(msgspec.Struct):
    verdict: Annotated[Verdict, "`pass`, `fail` or `skipped`"]
    reason: Annotated[str, "in words"]


class Host(msgspec.Struct):
    """The host's part of the certificate."""

    verdict: Annotated[Verdict, "`pass`, `fail` or `skipped`"]
    reason: Annotated[str, "in words"]
    latest: Annotated[
        str | UnsetType | None, "the node that was late for the greatest part of the rounds' time"
    ] = UNSET
    late_share: Annotated[Figure | UnsetType | None, "that part"] = UNSET
    links_late_ms: Annotated[
        Figure | UnsetType | None, "what one packet of a hundred left its link late by, at least"
    ] = UNSET
    dilation_needed: Annotated[Figure | UnsetType | None, "with which the run would pass"] = UNSET
    busy_cores: Annotated[
        Figure | UnsetType | None, "that worked in the mean, for whatever program"
    ] = UNSET


class Certificate(msgspec.Struct, kw_only=True):
    """All parts, of the links, the host and strangers: the worst verdict with its reason."""

    verdict: Annotated[Verdict, "the worst of the three: `fail`, `skipped`, `pass`"]
    reason: Annotated[str, "its own"] = OLDER
    checks: list[Check] = []
    not_probed: list[NotProbed] = []
    links: Judged = msgspec.field(default_factory=lambda: Judged("skipped", OLDER))
    host: Host = msgspec.field(default_factory=lambda: Host("skipped", OLDER))
    strangers: Judged = msgspec.field(default_factory=lambda: Judged("skipped", OLDER))


class Summary(msgspec.Struct, kw_only=True):
    """A run; all fields but the first are of the moment at which it was written."""

    schema: Annotated[int, "fields may be added, none changes its meaning under this number"] = (
        SCHEMA
    )
    run_id: Annotated[str | None, "name of the run's folder"] = None
    command: Annotated[str | None, "as it was typed"] = None
    method: str | None
    asynchronous: Annotated[bool, "whether updates may answer an earlier round"] = False
    transport: Annotated[str | None, "`zmq` or `gloo`"] = None
    model: str | None
    dataset: str | None
    profile: Annotated[str | None, "the clients' access links, a mix as `4g:12,wifi:5`"]
    server_profile: Annotated[str | None, "the server's; null: without limits"] = None
    profile_versions: Annotated[
        dict[str, str], "of each profile, by its name: as of `run` in events.jsonl"
    ] = {}
    links: Annotated[str | None, "backend; null: the run ended before it had links"]
    congestion: Annotated[
        str | None, "TCP congestion control really used; null over loopback links, or unknown"
    ] = None
    congestion_asked: Annotated[str | None, "the one that was asked for"] = None
    staged: Annotated[StagedBytes, "messages that went through `--stage` or `--stage-down`"] = (
        msgspec.field(default_factory=StagedBytes)
    )
    secure: Annotated[
        str | None,
        "`curve`: every connection is encrypted and both its ends proved "
        "([security.md](security.md)); `curve, but for the all-reduce`: with gloo; null: none is",
    ] = None
    target: Annotated[str | None, "what was to end it, as `accuracy=0.9`; null: all rounds"] = None
    budget_mb: Annotated[
        Figure | None, "payload, both ways, that was to end it, 10^6 bytes; null: none"
    ] = None
    ended: Annotated[
        Because | None, "why no further round follows: `rounds`, `target`, `budget`; null: one may"
    ] = None
    clients: Count
    rounds_done: Annotated[Count, "that are finished"]
    seed: Count | None
    status: Annotated[Status, "`ok`, `failed` or `interrupted`, also while the run goes on"]
    reason: Annotated[str | None, "why it is not ok"]
    seconds: Times
    dilation: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=1e6)],
        "seconds of this machine that one of the run's clock takes",
    ] = 1.0
    elastic: Annotated[
        bool, "whether that clock stands still while nodes have to wait for a core"
    ] = False
    dilation_found: Annotated[str | None, "with `--dilation=auto`: how it was found"] = None
    bytes: Bytes
    busiest: Annotated[
        Busiest | None, "the server where all bytes are to it or from it; null: none has any"
    ] = None
    rounds: Annotated[list[RoundSummary], "that have begun, in their order"]
    metrics: InitialFinal
    evaluated: Evaluated = msgspec.field(default_factory=Evaluated)
    trainable_parameters: Annotated[Count | None, "null where no model is global"] = None
    total_parameters: Annotated[Count | None, "likewise"] = None
    per_client: list[ClientSummary] = []
    hosts: Annotated[list[HostSummary], "of a run on several, the driver's own first"] = []
    processes: Annotated[list[Process], "of the nodes"] = []
    programs: Annotated[list[Program], "of `exec`: those of the nodes, the server's first"] = []
    compute: Compute
    connections: Annotated[
        dict[str, Count], "ends of connections by congestion control; `None`: it is not known"
    ] = {}
    confined: Annotated[
        dict[str, Count], "nodes by what the kernel holds them to: docs/security.md"
    ] = {}
    captures: Annotated[Captures | None, "with `--pcap`"] = None
    resumed: Annotated[list[Resumed], "each time that the run was killed and went on"] = []
    checkpoints: Checkpoints = msgspec.field(default_factory=Checkpoints)
    dropped_messages: Annotated[
        list[Dropped], "by receiver, sender and reason; beyond 1000 of them, of `others`"
    ] = []
    stopped: Annotated[
        dict[str, Figure],
        "seconds that a process stood still during rounds, or of `exec` all of a node's, by node; "
        "`supervisor`: all of the run's",
    ] = {}
    link_facts: Annotated[Facts, "of `links` and `closed` in events.jsonl"] = {}
    dynamics: Changes = msgspec.field(default_factory=Changes)
    fidelity: Certificate
    environment: Environment | None
