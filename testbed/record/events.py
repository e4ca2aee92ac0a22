"""Events of a run, one type a kind: what nodes and the supervisor report and readers match on.

One event is one line ``{"event": kind, "t": seconds since the command, "node": name, ...}`` of
events.jsonl. All times are emulated ones (``clock``), but for cpu_s and run_delay_s, which are the
machine's. docs/events.md is printed from here: a class says when its events come, and the text of a
field what it holds. What is UNSET is not written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from testbed.links.netem.qdisc import Installed
from testbed.metrics import LARGEST
from testbed.network.capacity import Access
from testbed.network.mix import MAX_CLIENTS

Value = TypeVar("Value")

MOST_ROUNDS = 1_000_000

_Meta = msgspec.Meta
Count = Annotated[int, _Meta(ge=0, le=2**60)]
Nanoseconds = Annotated[int, _Meta(ge=-(2**62), le=2**62)]
Whole = Annotated[int, _Meta(ge=-(2**62), le=2**62)]
Seconds = Annotated[float, _Meta(ge=0, le=1e12)]
Figure = Annotated[float, _Meta(ge=-1e18, le=1e18)]
Flops = Annotated[float, _Meta(ge=0, le=1e30)]
Metric = Annotated[float, _Meta(ge=-LARGEST, le=LARGEST)]
Setting = Annotated[float, _Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Number = Annotated[int, _Meta(ge=0, le=MOST_ROUNDS)]
"""Of a round; 0 is before the first."""
Begun = Annotated[int, _Meta(ge=1, le=MOST_ROUNDS)]
Metrics = Mapping[str, Metric | None]
Scalar = bool | Whole | Metric | str | None
Option = bool | Whole | Setting | str | None
Facts = dict[str, Scalar]
Verdict = Literal["pass", "fail", "skipped"]
Way = tuple[Count, Count, Count, Count]
Counters = list[tuple[Way, Way]]
Resent = dict[str, tuple[Count, Count]]


class Environment(msgspec.Struct):
    python: str | None = None
    torch: str | None = None
    kernel: str | None = None
    machine: str | None = None
    cores: Annotated[Count | None, "that this process may use"] = None
    memory_mb: Annotated[Count, "MB of 10^6 bytes"] = 0
    git: Annotated[str | None, "commit of the source; null: no checkout of it"] = None
    packages: Annotated[dict[str, str | None], "and their versions"] = {}


class Check(msgspec.Struct):
    name: Annotated[str, "`round trip`, `rate`, `rate by TCP`, …"]
    link: Annotated[str, "the node whose link it is"]
    direction: Annotated[str, "`up`, `down` or `both`"]
    expected: Annotated[Figure, "as the profile asks, in `unit`"]
    measured: Annotated[Figure | None, "null: nothing came through"]
    unit: str
    tolerance: Annotated[Annotated[float, _Meta(ge=0, le=1e18)], "in `unit`, either way"]
    ok: bool


class NotProbed(msgspec.Struct):
    name: Annotated[str, "a gate that no probe could have judged, as in `checks`"]
    link: Annotated[str, "the node whose link it is"]
    direction: Annotated[str, "`up`, `down` or `both`"]
    reason: Annotated[str, "why, as a clause"]


class Fidelity(msgspec.Struct):
    verdict: Annotated[Verdict, "`pass`, `fail` or `skipped`"]
    reason: Annotated[str, "in words"]
    checks: list[Check]
    not_probed: list[NotProbed] = []


class UpDown(msgspec.Struct):
    up: Count
    down: Count

    @property
    def both(self) -> int:
        return self.up + self.down

    def add(self, way: str, amount: int) -> None:
        """``way``: up or down."""
        setattr(self, way, getattr(self, way) + amount)


class Redone(msgspec.Struct):
    payload: Annotated[UpDown, "bytes that arrived since that round"]
    message: Annotated[UpDown, "the same, of all frames"]
    seconds: Annotated[Figure, "since that round"]


class Flow(msgspec.Struct):
    """TCP connections of a node with one peer and of one service."""

    peer: Annotated[str, "the peer's address"]
    port: Annotated[Count, "of the service: the node's own where it `serves`, else the peer's"]
    serves: Annotated[bool, "whether the node listened on it"] = False
    connections: Annotated[Count, "that carried anything"] = 0
    sent: Annotated[Count, "bytes of payload that the node sent, each once"] = 0
    received: Annotated[Count, "that it received"] = 0
    resent_segments: Annotated[Count, "that it sent again"] = 0
    resent_bytes: Annotated[Count, "of payload in them"] = 0


class WayIn(msgspec.Struct):
    """The process that holds a run's namespaces while it goes on, and its descriptors."""

    pid: Annotated[Count, "of the process that holds the namespaces while the run goes on"]
    nodes: Annotated[list[Count], "its descriptors of the nodes', the server's first"]
    user: Annotated[
        Count | None, "that of the user namespace that they belong to without root, or null"
    ] = None
    link: Annotated[Count | None, "that of the one that routes between them, or null"] = None


class HostPart(msgspec.Struct):
    """One host of a run of several."""

    name: str
    address: Annotated[str, "at which the others' link processes reach its own"]
    cores: Count
    memory_mb: Annotated[Count, "free as the run began, MB of 10^6 bytes"]
    nodes: Annotated[Count, "that it has"]
    ahead_s: Annotated[
        Figure,
        "how far the driver's monotonic clock was ahead of its own then: nodes' times are by the "
        "driver's, as far as that holds",
    ] = 0.0


class Underlay(msgspec.Struct):
    """The way from one host to another, as measured before the run."""

    sender: str
    receiver: str
    rtt_min_ms: Figure
    rtt_median_ms: Figure
    rtt_max_ms: Figure
    rate_kbit: Annotated[Figure, "of payload, over one TCP connection"]
    offset_ms: Annotated[Figure, "the receiver's monotonic clock less the sender's"]
    offset_error_ms: Annotated[Figure, "bound of the error of that"]


class Event(msgspec.Struct, kw_only=True, tag_field="event"):
    """An event; the recorder sets what all of them have."""

    t: Seconds = 0.0
    node: str = ""

    @property
    def event(self) -> str:
        """Its kind, as it is written."""
        return str(self.__struct_config__.tag)


Report = Callable[[Event], None]
"""Takes what a node has to tell."""


class Run(Event, tag="run", kw_only=True):
    """By the supervisor, first of all: what is run."""

    client_names: Annotated[
        Annotated[list[str], _Meta(max_length=MAX_CLIENTS)], "in the order of counters"
    ]
    client_profiles: Annotated[list[str], "one of each client"]
    config: Annotated[
        dict[str, Option | list[Option] | dict[str, Option]], "every field of `config.toml`"
    ]
    origin_ns: Annotated[Nanoseconds | None, "the nodes' clock at `t` = 0"] = None
    run_id: Annotated[str | None, "name of the run's folder"] = None
    identity: Annotated[
        str | None, "32 digits of chance, which its states have ([resuming.md](resuming.md))"
    ] = None
    command: Annotated[str | None, "as it was typed"] = None
    method: str | None = None
    model: str | None = None
    dataset: str | None = None
    profile: Annotated[str | None, "the clients' access links, a mix as `4g:12,wifi:5`"] = None
    server_profile: Annotated[str | None, "the server's; null: without limits"] = None
    profile_versions: Annotated[
        dict[str, str],
        "of each profile, by its name: the number that its file has, and digits of what the link "
        "is, as `2 (3f2a1c)`",
    ] = {}
    seed: Count | None = None
    compute: Annotated[str | None, "`real` or `modelled`"] = None
    device_class: Annotated[str | None, "null: a core of this machine"] = None
    server_device_class: Annotated[str | None, "the server's, likewise"] = None
    accelerator: Annotated[str | None, "`cpu`, `cuda`, or a mix as `cuda:12,cpu:8`"] = None
    server_accelerator: Annotated[str | None, "the server's, `cpu` or `cuda`"] = None
    accelerators: Annotated[list[str], "names of the GPUs that nodes compute on"] = []
    transport: Annotated[str | None, "`zmq` or `gloo`"] = None
    congestion: Annotated[
        str | None, "TCP congestion control that was asked for; null over loopback links"
    ] = None
    secure: Annotated[
        str | None,
        "`curve`: every connection is encrypted and both its ends proved "
        "([security.md](security.md)); `curve, but for the all-reduce`: with gloo; null: none is",
    ] = None
    client_memory_mb: Annotated[
        Figure | None, "what each client may take; null: what its device class has"
    ] = None
    programs: Annotated[
        dict[str, str] | UnsetType, "of `exec`: each node's command ([exec.md](exec.md))"
    ] = UNSET
    dilation: Annotated[
        Annotated[float, _Meta(ge=1, le=1e6)],
        "seconds of this machine that one of the run's clock takes",
    ] = 1.0
    elastic: Annotated[
        bool, "whether that clock stands still while nodes have to wait for a core"
    ] = False
    dilation_found: Annotated[
        str | UnsetType | None, "with `--dilation=auto`: how it was found"
    ] = UNSET
    asynchronous: Annotated[bool, "whether updates may answer an earlier round"] = False
    weights: Annotated[str | None, "SHA-256 of the model's file; null where it has none"] = None
    data: Annotated[
        str | UnsetType | None, "SHA-256 of the data set's files; null where none are read"
    ] = UNSET
    data_told: Annotated[
        str | UnsetType | None, "what was read of texts, and what was cut, left out or not known"
    ] = UNSET
    files: Annotated[
        dict[str, str] | UnsetType,
        "SHA-256 of each file that the links were read from: profiles, traces, schedule, "
        "positions, availability",
    ] = UNSET
    environment: Environment | None = None


class Links(Event, tag="links", kw_only=True):
    """By the supervisor, once the network is there."""

    facts: Annotated[Facts, "`backend`, and how it does what it does"]
    lines: Annotated[
        list[Access],
        "of each node, the server first, up and down: [kbit/s, ms], the most that TCP carries "
        "there and the delay; where a packet limit bounds that, also the window in bytes and the "
        "kbit/s at which one goes out, else null; null without limit",
    ] = []
    qdiscs: Annotated[
        list[tuple[Installed, Installed]] | UnsetType,
        "with netem, of each node, the server first, up and down: `netem`, its parameters as read "
        "back from the kernel and in its units (times in ns, chances as shares of 2^32 - 1, "
        "bytes/s), and `trace`, the file that a class above it follows, or null",
    ] = UNSET
    namespaces: Annotated[WayIn | UnsetType, "with netem and userspace"] = UNSET


class Hosts(Event, tag="hosts", kw_only=True):
    """By the supervisor, once the links of a run on several hosts are there
    ([hosts.md](hosts.md))."""

    hosts: Annotated[list[HostPart], "the driver's own first"]
    place: Annotated[str, "which of them has which node"]
    underlay: Annotated[list[Underlay], "the network between each two"]


class HostGone(Event, tag="host_gone", kw_only=True):
    """By the supervisor: a host is, and with it its nodes."""

    host: str
    reason: Annotated[str, "how that is known"]


class HostsCut(Event, tag="hosts_cut", kw_only=True):
    """By the supervisor: two hosts reach each other no more, neither of which has the server."""

    hosts: Annotated[list[str], "both"]
    reason: Annotated[str, "how that is known"]


class HostClock(Event, tag="host_clock", kw_only=True):
    """By the supervisor, of each other host as a round ends: what its nodes' times are put right
    by."""

    host: str
    behind_s: Annotated[Figure, "by how much they are less than the driver's clock has it"]
    error_s: Annotated[Seconds, "bound of the error of that"]


class HostLeft(Event, tag="host_left", kw_only=True):
    """By the supervisor, of each host that was there to the end, once its links are down."""

    host: str
    links: Annotated[Facts, "closing facts, as those of `closed`, of its own links"] = {}
    tunnels: Annotated[
        dict[str, Facts],
        "by other host: frames sent, dropped and received, how many came after their time and by "
        "how much, and the clocks' offset",
    ] = {}


class Certified(Event, tag="certified", kw_only=True):
    """By the supervisor, before training: whether the links are what was asked."""

    seconds: Annotated[Seconds, "how long probing took"]
    fidelity: Fidelity
    counters: Annotated[Counters, "as those of `wire`: what probing added"]
    held_s: Annotated[Figure, "as that of `wire`"] = 0.0


class Started(Event, tag="started", kw_only=True):
    """By a node's first moment, as the supervisor sees it."""

    pid: Annotated[Count, "of the process"]


class Confined(Event, tag="confined", kw_only=True):
    """By a node, once it has given up what it does not need: how the kernel holds it."""

    capabilities: Annotated[Count, "how many it holds or may be given"]
    no_new_privileges: Annotated[bool, "whether no program that it starts gains any"]
    seccomp: Annotated[bool, "whether system calls are refused that it has no use for"]
    landlock: Annotated[
        Count | None, "version that keeps it to its files and ports; null: none does"
    ]
    missing: Annotated[list[str], "what of this could not be had, and why"] = []


class Ended(Event, tag="ended", kw_only=True):
    """By a node's last moment, as the supervisor sees it."""

    pid: Annotated[Count, "of the process"] = 0
    how: Annotated[str, "`exited with 0`, `killed by SIGKILL`, …"]


class Ready(Event, tag="ready", kw_only=True):
    """By a node that has loaded."""

    samples: Annotated[Count | UnsetType, "of a client: its training samples"] = UNSET
    round_flops: Annotated[
        Flops | UnsetType | None,
        "of a client: floating-point operations of its part in the first round",
    ] = UNSET
    trainable_parameters: Annotated[Count | UnsetType, "of the server, where a model is global"] = (
        UNSET
    )
    total_parameters: Annotated[Count | UnsetType, "of the server, likewise"] = UNSET


class Connection(Event, tag="connection", kw_only=True):
    """By either end of a connection that was made."""

    congestion: Annotated[str | None, "its TCP congestion control"]


class Joined(Event, tag="joined", kw_only=True):
    """By the server, once: all clients that will come are there, and training begins."""

    clients: Annotated[Count, "how many are in the run"] = 0


class Moment(Event, kw_only=True):
    at_s: Annotated[Figure, "when it was to be, in seconds since training began"]
    actual_s: Annotated[Figure, "when it was"]


class Away(Moment, tag="away", kw_only=True):
    """By the supervisor, in the name of the client that leaves ([stragglers.md](stragglers.md))."""


class Back(Moment, tag="back", kw_only=True):
    """By the supervisor, in the name of the client that returns."""


class Message(Event, tag="message", kw_only=True):
    """By the receiver of a message, when all of it has come."""

    peer: Annotated[str, "the sender"]
    kind: Annotated[
        str,
        "`model`, `adapter`, `logits`, …; `hello`, `welcome`, `stop`, `refused` and `metrics` are "
        "the testbed's",
    ]
    round: Annotated[Number, "that its header names; 0 before the first"]
    payload_bytes: Annotated[Count, "of its tensors"]
    message_bytes: Annotated[Count, "of all its frames"]
    sent_ns: Annotated[Nanoseconds, "when it was handed to the sender's socket"]
    received_ns: Annotated[Nanoseconds, "when it was there whole"]


class StageSize(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a message's tensors after one of its stages."""

    stage: Annotated[str, "the stage's name; empty: before the first"]
    bytes: Annotated[Count, "bytes of the tensors after it"]


class Staged(Event, tag="staged", kw_only=True):
    """By the receiver of a message that went through payload stages ([stages.md](stages.md))."""

    peer: Annotated[str, "the sender"]
    kind: Annotated[str, "as of the message"]
    round: Annotated[Number, "as of the message"]
    sizes: Annotated[list[StageSize], "bytes of its tensors before the first stage and after each"]


class Reduced(Event, tag="reduced", kw_only=True):
    """By a client, after an all-reduce of clients among themselves
    ([transports.md](transports.md))."""

    round: Number
    members: Annotated[Count, "clients that were to take part in it"]
    began_ns: Annotated[Nanoseconds, "when it was told"]
    connected_ns: Annotated[Nanoseconds, "when all were connected"] = 0
    ended_ns: Annotated[Nanoseconds, "when it had the sum or gave up"]
    received: Annotated[dict[str, Count], "bytes of TCP's stream by sender"]
    reason: Annotated[str | None, "why it did not come about"]


class Dropped(Event, tag="dropped", kw_only=True):
    """By the receiver of messages that were not taken, or connections not let in: the first three
    of a sender and reason in a round one by one, the rest summed up, every ten seconds at most and
    at the round's end. Beyond 50 senders and reasons a round the sum is of `others`."""

    peer: Annotated[
        str, "who it is from, by its key, or without `--secure` as it says; `stranger`: not let in"
    ]
    bytes: Annotated[Count, "of all its frames; 0 where a connection was not let in"]
    reason: str
    count: Annotated[Count | UnsetType, "how many they are; absent: one"] = UNSET


class Lost(Event, tag="lost", kw_only=True):
    """By the supervisor: a client has left the run for good."""

    peer: Annotated[str, "the client"]
    reason: Annotated[str, "how it ended, and its last words"]


class Stopped(Event, tag="stopped", kw_only=True):
    """By the supervisor: a process stood still during rounds, as SIGSTOP, a debugger or Ctrl-Z has
    it, and goes on, or rounds are over. Of `exec`, as its program has ended: all processes of a
    node did."""

    peer: Annotated[str, "the node whose it is; `supervisor`: all of the run, or the command alone"]
    seconds: Annotated[
        Seconds, "for how long, by a look every half second, of `exec` every quarter"
    ]


class Missed(Event, tag="missed", kw_only=True):
    """By the server, or a client of its neighbour: an update that did not come."""

    peer: Annotated[str, "whose"]
    round: Number
    reason: str


class Overtaken(Event, tag="overtaken", kw_only=True):
    """By a client that was busy with an earlier round when this one began, or heard nothing more of
    its own within `round_timeout_s`."""

    reason: str


class HostRate(Event, tag="host_rate", kw_only=True):
    """By the server, where real compute is slowed down to devices."""

    gflops: Annotated[
        Figure,
        "what a core of this machine trains the run's model at, in 10^9 operations a second",
    ]


class Computed(Event, tag="computed", kw_only=True):
    """By a node, of its computing in a round."""

    round: Number
    flops: Annotated[Flops | UnsetType, "floating-point operations, where known"] = UNSET
    modelled_s: Annotated[Figure | UnsetType, "modelled: seconds that they take its device"] = UNSET
    cpu_s: Annotated[Figure | UnsetType, "real: seconds on a core of this machine"] = UNSET
    device_s: Annotated[
        Figure | UnsetType, "real: seconds that this takes its device, or a core of its own"
    ] = UNSET
    late_s: Annotated[
        Figure | None,
        "seconds more than that, that this machine took; null where the system does not tell",
    ]


class RoundStarted(Event, tag="round_started", kw_only=True):
    """By the server, with the first message of a round to come."""

    round: Annotated[Begun, "from 1"]


class Round(Event, tag="round", kw_only=True):
    """By the server, after a round's evaluation."""

    round: Begun
    seconds: Annotated[Seconds, "from its begin to the new global model, without the evaluation"]
    evaluation_s: Annotated[
        Seconds | UnsetType, "from there to its metrics; the next round begins after that"
    ] = UNSET
    metrics: Annotated[
        Metrics,
        "`accuracy`, `loss`, `client_accuracy`, …: numbers without unit, null where one is not "
        "finite or no number",
    ]
    clients_ok: Count
    clients_failed: Count


class Wire(Event, tag="wire", kw_only=True):
    """By the supervisor after a round, and once at the end; of `exec` every 0.1 s and less often
    in a long run, where anything has passed."""

    round: Annotated[Number | None, "null: at the end, or between rounds"]
    counters: Annotated[
        Counters,
        "of each node, the server first, up and down: [frames, bytes, frames that a full queue "
        "dropped, frames that were lost as asked] since the links are there",
    ]
    held_s: Annotated[
        Figure, "seconds of this machine that an elastic clock has stood still so far"
    ] = 0.0


class Evaluated(Event, tag="evaluated", kw_only=True):
    """By the server, before the first round."""

    metrics: Annotated[Metrics, "as of `round`; empty where no model is global"]
    split: Annotated[
        Literal["test", "validation"], "the images that models are evaluated on all through the run"
    ] = "test"
    images: Annotated[Count | UnsetType, "how many a model is evaluated on; 0: none"] = UNSET
    of: Annotated[Count | UnsetType, "how many there are"] = UNSET


class Shaped(Moment, tag="shaped", kw_only=True):
    """By the supervisor, or on several hosts by the node's own, in the name of the node whose link
    has changed."""

    up: Annotated[
        dict[str, Any],
        "what the direction is from then on: fields of a profile that are not at their default",
    ] = {}
    down: Annotated[dict[str, Any], "likewise"] = {}
    line: Annotated[Access | UnsetType, "the same as an entry of `lines` of `links`"] = UNSET


class Usage(Event, tag="usage", kw_only=True):
    """By a node, after each of its rounds and as it leaves."""

    pid: Count
    private_mb: Annotated[Figure, "memory that is its alone, MB of 10^6 bytes"]
    peak_private_mb: Annotated[Figure | None, "the most of that since the last time"] = None
    peak_accelerator_mb: Annotated[
        Figure | None, "the most that its tensors took on its GPU since then; null: it has none"
    ] = None
    cpu_s: Annotated[Figure, "seconds on a core, since it began"]
    run_delay_s: Annotated[Figure | None, "seconds that it was ready and had no core"]
    retransmitted: Annotated[
        Resent | None,
        "by the peer's address, [segments, payload bytes] that its connections have sent again "
        "since it began",
    ] = None


class Captured(Event, tag="captured", kw_only=True):
    """By the supervisor at the end of a run with `--pcap`."""

    packets: Annotated[list[Count], "a figure a node: written"]
    dropped: Annotated[list[Count], "likewise: too fast to be written"]
    failure: Annotated[str | None, "why capturing ended early"]
    nodes: Annotated[list[str] | UnsetType, "whose they are; absent: the clients'"] = UNSET


class Saved(Event, tag="saved", kw_only=True):
    """By a node that has kept its state after its part in a round, for a killed run to go on
    from."""

    round: Number = 0
    bytes: Annotated[Count, "of its file"]
    seconds: Annotated[Seconds, "how long that took"] = 0.0


class Unsaved(Event, tag="unsaved", kw_only=True):
    """By a node that could not do so; the run goes on without."""

    round: Number = 0
    reason: str


class Resumed(Event, tag="resumed", kw_only=True):
    """By the supervisor, where a killed run goes on ([resuming.md](resuming.md)). `t` and nodes'
    own times go on as if no time had passed since the last event before."""

    round: Annotated[
        Number,
        "the last one that counts of what stands above; what came after it is done again",
    ]
    at_s: Annotated[Seconds, "`t` of the last event before"]
    lost: Redone
    command: Annotated[str | None, "as it was typed"] = None
    environment: Environment | None = None


class Failed(Event, tag="failed", kw_only=True):
    """By a node that ends with an error."""

    traceback: str
    reason: Annotated[str | UnsetType, "in words, where it had no more memory"] = UNSET


class Limited(Event, tag="limited", kw_only=True):
    """By a client as it begins, where its memory is held to what its device has."""

    memory_mb: Annotated[
        Figure, "what it may take beyond what it was forked with, MB of 10^6 bytes"
    ]
    whose: Annotated[str, "`phone's`, by the device class, or `client's`, by `--client-memory-mb`"]


class Host(Event, tag="host", kw_only=True):
    """By the supervisor, once every process has ended and the rounds are done: whether this machine
    kept up."""

    verdict: Annotated[Verdict, "`pass`, `fail` or `skipped`"]
    reason: Annotated[str, "in words"]
    latest: Annotated[
        str | None, "the node that was late for the greatest part of the rounds' time"
    ]
    late_share: Annotated[Figure | None, "that part"]
    links_late_ms: Annotated[
        Figure | None, "what one packet of a hundred left its link late by, at least"
    ]
    dilation_needed: Annotated[Figure | None, "with which the run would pass"]
    busy_cores: Annotated[Figure | None, "that worked in the mean, for whatever program"]


class Isolated(Event, tag="isolated", kw_only=True):
    """By a node of `exec`, once its namespaces are there ([exec.md](exec.md))."""

    missing: Annotated[list[str], "what of a machine of its own could not be had, and why"] = []


class Exited(Event, tag="exited", kw_only=True):
    """By a node of `exec`, once its program and all that this started have ended."""

    code: Annotated[Count, "as of a shell: 128 and the signal's number, where one ended it"]
    how: Annotated[str, "`exited with 0`, `killed by SIGTERM`, `could not start: …`"]
    seconds: Annotated[Seconds, "that it ran"] = 0.0
    stopped: Annotated[bool, "whether it was asked to end"] = False


class Brought(Event, tag="brought", kw_only=True):
    """By a node of `exec` on another host, at the run's end: what of its own folder is in the
    run's."""

    host: Annotated[str, "on which it was"]
    files: Annotated[Count, "that came whole"]
    bytes: Annotated[Count, "in them"]
    left_out: Annotated[list[str], "what else there was, and why it is not there"] = []


class Carried(Event, tag="carried", kw_only=True):
    """By a node of `exec`, at the run's end: what its programs had to do with the outside."""

    flows: Annotated[list[Flow], "its TCP connections by peer and port, the largest first"] = []
    lookups: Annotated[
        list[str], "names that were looked up and are no node's: there is no internet inside"
    ] = []
    sockets: Annotated[
        list[str],
        "paths of Unix sockets that other nodes see too: what goes over them is not metered",
    ] = []


Because = Literal["rounds", "target", "budget"]


class Done(Event, tag="done", kw_only=True):
    """By the server: the last round is over."""

    because: Annotated[
        Because | UnsetType, "why none follows: `rounds` (all are done), `target` or `budget`"
    ] = UNSET


class Closed(Event, tag="closed", kw_only=True):
    """By the supervisor, last of all; a run that was killed lacks it."""

    status: Annotated[
        Literal["ok", "failed", "interrupted"],
        "`ok`, `failed` (also where no round took any update) or `interrupted`",
    ]
    reason: Annotated[str | None, "why it is not ok"]
    links: Annotated[
        Facts, "closing facts: how late packets were let go, what could not be delivered"
    ] = {}


KINDS: tuple[type[Event], ...] = (
    *(
        Run,
        Links,
        Hosts,
        Certified,
        Started,
        Confined,
        Ended,
        Ready,
        Connection,
        Joined,
        Away,
        Back,
    ),
    *(
        Message,
        Staged,
        Reduced,
        Dropped,
        Lost,
        Stopped,
        Missed,
        Overtaken,
        HostRate,
        Computed,
        RoundStarted,
        Round,
        Wire,
    ),
    *(Evaluated, Shaped, Usage, Captured, Saved, Unsaved, Resumed, Failed, Limited, Host, Done),
    *(Isolated, Exited, Brought, Carried),
    *(HostGone, HostsCut, HostClock, HostLeft),
    Closed,
)
"""In the order in which a run has them."""
Known = (
    Run | Links | Hosts | Certified | Started | Confined | Ended | Ready | Connection | Joined
    | Away | Back | Message | Staged | Reduced | Dropped | Lost | Stopped | Missed | Overtaken
    | HostRate | Computed | RoundStarted | Round | Wire | Evaluated | Shaped | Usage | Captured
    | Saved | Unsaved | Resumed | Failed | Limited | Host | Done | Isolated | Exited | Brought
    | Carried | HostGone | HostsCut | HostClock | HostLeft | Closed
)  # fmt: skip
"""Any of them: what a line is decoded as."""


def as_dict(event: Event) -> dict[str, Any]:
    """An event's line as plain data."""
    found = msgspec.to_builtins(event)
    assert isinstance(found, dict)
    return found


def known(value: Value | UnsetType) -> Value | None:
    """None of what an event does not say."""
    return None if isinstance(value, UnsetType) else value
