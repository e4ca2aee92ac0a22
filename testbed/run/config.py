"""RunConfig: what a run is, from a TOML file and flags, checked before anything starts."""

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import tomli_w

from testbed import files, metrics, outside
from testbed.clock import MAX_DILATION
from testbed.config_error import ConfigError, closest
from testbed.network.mix import MAX_CLIENTS

Struct = TypeVar("Struct", bound=msgspec.Struct)

DEFAULT_CLIENTS = 20
DEFAULT_PROFILE = "4g"
DEFAULT_DEVICE_CLASS = "phone"
DEFAULT_SERVER_CLASS = "server"
_MOST_DIGITS = 18
"""Of a whole number in text: 64 bits hold all of them. Of more, it is read as a float."""
_MOST_WHOLE = 10.0**_MOST_DIGITS

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
"""Bounded, since a poll of the system takes no infinity and at most 2**31 ms."""
Text = Annotated[str, msgspec.Meta(min_length=1)]
OptionValue = bool | int | float | str
Clients = Annotated[int, msgspec.Meta(ge=1, le=MAX_CLIENTS)]


class Flag(NamedTuple):
    """How a field is asked for on the command line, where its type and default do not say."""

    help: str
    takes: str | None = None
    """What stands for the value in a list of options."""
    default: str | None = None
    """What an absent field means, in words."""
    offers: str | None = None
    """What completes a value in a shell."""


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A run, complete: the same file starts the same run again.

    A field with a Flag is an option of ``launch``, by this text.
    """

    profile: Annotated[
        Text | None,
        Flag(
            "Access link of the clients: a profile, your own .toml file, a link in words such as "
            "'rate 10mbit delay 20ms', or a mix such as 4g:12,wifi:5,3g:3.",
            takes="NAME|MIX",
            default=DEFAULT_PROFILE,
            offers="profile",
        ),
    ] = None
    positions: Annotated[
        Text | None,
        Flag(
            "Instead of --profile: where an access point and its stations, the clients, are and "
            "move.",
            takes="FILE.toml",
            offers="file",
        ),
    ] = None
    schedule: Annotated[
        Text | None,
        Flag(
            "Changes and outages of the clients' links while training goes on.",
            takes="FILE.toml",
            offers="file",
        ),
    ] = None
    availability: Annotated[
        Text | None,
        Flag(
            "When clients are away: mean seconds there and away, drawn for each; or a .toml or "
            ".csv file of times.",
            takes="on:S,off:S|FILE",
            default="always there",
            offers="file",
        ),
    ] = None
    server_profile: Annotated[
        Text | None,
        Flag(
            "Access link of the server, which all clients share.",
            takes="NAME",
            default="without limits",
            offers="profile",
        ),
    ] = None
    clients: Annotated[
        Clients | None, Flag("Client processes.", default=f"the mix's sum, or {DEFAULT_CLIENTS}")
    ] = None
    clients_per_round: Annotated[
        Clients | None,
        Flag("How many of them a round takes, drawn anew each time.", default="all"),
    ] = None
    method: Annotated[Text, Flag("A file of methods/.", takes="NAME", offers="method")] = "fedpeft"
    rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000), Flag("How many there are.")] = 5
    target: Annotated[
        Text | None,
        Flag(
            "End after the round that reaches it, such as accuracy=0.9 or perplexity=20; by the "
            "clients' own models where none is global. Of a loss or a perplexity less is better.",
            takes="METRIC=VALUE",
            default="all rounds",
        ),
    ] = None
    budget_mb: Annotated[
        Annotated[float, msgspec.Meta(ge=1e-6, le=1e12)] | None,
        Flag(
            "End after the round in which the payload of all clients, both ways, reaches it. Of "
            "10^6 bytes; FlowerTune's 200,000 are of 2^20, which is 209715.2 here.",
            takes="MB",
            default="none",
        ),
    ] = None
    links: Annotated[
        Literal["auto", "netem", "userspace", "loopback"],
        Flag(
            "netem: the kernel's own shaping between network namespaces (root, or user "
            "namespaces). userspace: the same with a queue of ours, for kernels without sch_netem. "
            "loopback: a shaped relay on 127.0.0.1, no privileges. auto: the first that works.",
            offers="links",
        ),
    ] = "auto"
    transport: Annotated[
        Literal["zmq", "gloo"],
        Flag(
            "gloo: fedavg, fedpeft and fedprox average by an all-reduce among the clients "
            "(torch.distributed), and no weights go to the server.",
            offers="transport",
        ),
    ] = "zmq"
    stage: Annotated[
        tuple[Text, ...],
        Flag(
            "Have what clients send go through a payload stage, such as int8, topk:k=0.01 or "
            "deflate; several in this order.",
            takes="NAME[:KEY=VALUE,...]",
            default="none",
            offers="stage",
        ),
    ] = ()
    stage_down: Annotated[
        tuple[Text, ...],
        Flag(
            "The same of what the server sends.",
            takes="NAME[:KEY=VALUE,...]",
            default="none",
            offers="stage",
        ),
    ] = ()
    secure: Annotated[
        bool | None,
        Flag(
            "Encrypt every connection and have both its ends prove that they are of this run "
            "(CURVE); --no-secure: neither.",
            default="secure; with gloo, all but the all-reduce",
        ),
    ] = None
    congestion: Annotated[
        Text | None,
        Flag(
            "TCP congestion control of every connection.",
            takes="cubic|bbr|reno|...",
            default="cubic, or the host's own where it has none",
            offers="congestion",
        ),
    ] = None
    compute: Annotated[
        Literal["real", "modelled"],
        Flag(
            "modelled: nodes count operations and wait as long as their devices would compute; "
            "models of any size, and nothing is learnt.",
            offers="compute",
        ),
    ] = "real"
    device_class: Annotated[
        Text | None,
        Flag(
            "What clients compute on: phone, pi, jetson, laptop, server, a number of GFLOP/s, or a "
            "mix such as phone:12,pi:8. Real compute is slowed down to it.",
            takes="CLASS|GFLOPS|MIX",
            default="a core of this machine each; "
            f"{DEFAULT_DEVICE_CLASS} where compute is modelled",
            offers="device class",
        ),
    ] = None
    server_device_class: Annotated[
        Text | None,
        Flag(
            "What the server computes on.",
            takes="CLASS|GFLOPS",
            default=f"a core of this machine; {DEFAULT_SERVER_CLASS} where compute is modelled",
            offers="device class",
        ),
    ] = None
    accelerator: Annotated[
        Text,
        Flag(
            "Where clients compute: cpu, cuda, or a mix such as cuda:12,cpu:8. Nodes are dealt to "
            "several GPUs in turn.",
            takes="cpu|cuda|MIX",
            offers="accelerator",
        ),
    ] = "cpu"
    server_accelerator: Annotated[
        Literal["cpu", "cuda"] | None,
        Flag("The same of the server.", default="cuda where all clients are on it, else cpu"),
    ] = None
    client_memory_mb: Annotated[
        Positive | None,
        Flag(
            "What each client may take where compute is real; one that wants more ends. Of 10^6 "
            "bytes.",
            takes="MB",
            default="what its device class has",
        ),
    ] = None
    calibrate: Annotated[
        bool,
        Flag("Probe every link's round trip and rate while the nodes load, and certify them."),
    ] = True
    pcap: Annotated[
        bool,
        Flag("Capture what crosses each client's interface, for Wireshark; not on loopback links."),
    ] = False
    strict: Annotated[
        bool,
        Flag(
            "Fail before training where a link is not what its profile says, and at the end where "
            "this machine had no time for all nodes."
        ),
    ] = False
    dilation: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=MAX_DILATION)] | Literal["auto", "elastic"],
        Flag(
            "Give few cores the time that many clients need; all times, limits too, are of the "
            "run's clock. elastic: it stands still while more clients compute than there are "
            "cores (netem's queue is the kernel's, and there it never does). K: it goes K times "
            "slower than this machine's throughout. auto: K as a trial round says.",
            takes="elastic|K|auto",
        ),
    ] = "elastic"
    seed: Annotated[
        int, msgspec.Meta(ge=0, lt=2**32), Flag("Of everything that is drawn at random.")
    ] = 0
    model: Annotated[
        Text,
        Flag(
            "vit-glyphs, vit-b16, vit-l16; llama-docs, mistral-7b, llama-2-7b, which read text; or "
            "one that transformers saved: its folder or its name on the Hugging Face hub.",
            takes="NAME|FOLDER|REPOSITORY",
            offers="model",
        ),
    ] = "vit-glyphs"
    dataset: Annotated[
        Text,
        Flag(
            "digits: 1,797 handwritten digits. glyphs: drawn, as many as the clients need. "
            "cifar10, cifar100, svhn: photographs, with wiretune[hub]. docs: documentation of "
            "Python packages. instructions: drawn, each with one right answer. text: your own, "
            "from --data-path.",
            takes="NAME",
            offers="dataset",
        ),
    ] = "digits"
    data_path: Annotated[
        Text | None,
        Flag(
            "Where cifar10, cifar100, svhn or text is; text may be a repository's name too.",
            takes="FOLDER|FILE|REPOSITORY",
            default="photographs are downloaded from the Hugging Face hub",
            offers="folder",
        ),
    ] = None
    train_samples: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None,
        Flag(
            "Training samples of all clients together, public ones included.",
            default="all there are; of glyphs, 64 a client and at least 2,000; of docs 48 and of "
            "instructions 64 a client",
        ),
    ] = None
    eval_samples: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None,
        Flag(
            "Samples that models are evaluated on after each round, always the same.",
            default="all up to 1,000 images or 100 sequences; of more, as many as 100 GFLOP a "
            "round allow",
        ),
    ] = None
    eval_on: Annotated[
        Literal["test", "validation"],
        Flag(
            "validation: a part of the training samples, which no client then has, the same for "
            "every seed and method; whatever is tuned is tuned on these.",
            offers="evaluation",
        ),
    ] = "test"
    local_test: Annotated[
        Annotated[float, msgspec.Meta(gt=0, lt=1)] | None,
        Flag(
            "Share of each client's samples that it does not train on, and that its own model is "
            "evaluated on too.",
            default="none",
        ),
    ] = None
    sequence_length: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None,
        Flag(
            "Tokens of a sequence of text.",
            default="128 of docs, 48 of instructions, 512 of text, or all that the model takes",
        ),
    ] = None
    template: Annotated[
        Text,
        Flag(
            "How a dialogue of dataset text is written: chat, alpaca, flowertune or plain.",
            takes="NAME",
            default="the model's own chat template, or else alpaca",
        ),
    ] = "auto"
    pack: Annotated[
        bool, Flag("Put as many dialogues of dataset text into a sequence as fit whole.")
    ] = False
    partition: Annotated[
        Literal["dirichlet", "iid", "natural", "pathological"] | None,
        Flag(
            "How samples are split over clients, by their classes, or whose text they are. natural:"
            " each has texts of its own. pathological: each has a few classes.",
            default="dirichlet; of docs natural; of instructions two families a client where there "
            "are clients enough",
            offers="partition",
        ),
    ] = None
    alpha: Annotated[Positive, Flag("Dirichlet concentration; smaller is more skewed.")] = 0.5
    classes_per_client: Annotated[
        int,
        msgspec.Meta(ge=1, le=100_000),
        Flag("Most classes of a client in the pathological partition."),
    ] = 2
    hosts: Annotated[
        Text | None,
        Flag(
            "Several machines' addresses, this one's first; each other has an agent (`wiretune "
            "agent`), at port 7400 unless another is named; auto: those of the Ray cluster here. "
            "They are a, b, c, … to --place.",
            takes="ADDRESS[:PORT],...",
            default="this machine alone",
        ),
    ] = None
    place: Annotated[
        Text | None,
        Flag(
            "Which host has which nodes, such as server=a,client-1:100=b; whom it leaves out goes "
            "by cores.",
            takes="NODES=HOST,...",
            default="the server on the first, clients by cores",
        ),
    ] = None
    on_lost_host: Annotated[
        Literal["continue", "stop"],
        Flag(
            "Whether a run that loses a host with clients goes on without them, and its "
            "certificate fails; or fails itself, at once."
        ),
    ] = "continue"
    join_timeout_s: Annotated[
        Positive, Flag("How long the server waits for the clients to connect.")
    ] = 60.0
    round_timeout_s: Annotated[
        Positive, Flag("Limit of every wait in a round; what has not come by then is missed.")
    ] = 600.0
    deadline_s: Annotated[
        Positive | None,
        Flag(
            "How long a round takes updates; who is later is left out of it.",
            default="the round timeout",
        ),
    ] = None
    time_limit_s: Annotated[
        Positive, Flag("Limit of the whole run, after which it ends as failed.")
    ] = 24 * 3600.0
    out: Annotated[Text, Flag("Gets one folder a run.", takes="FOLDER", offers="folder")] = (
        "results"
    )
    checkpoints: Annotated[
        bool,
        Flag(
            "Keep every node's state after each round, in the run's folder, until the run is over."
        ),
    ] = True
    options: dict[str, OptionValue] = {}
    """The method's own options; see its Config in methods/."""

    def __post_init__(self) -> None:
        if self.deadline_s is not None and self.deadline_s >= self.round_timeout_s:
            raise ValueError(
                f"deadline_s = {self.deadline_s:g}: must be below round_timeout_s = "
                f"{self.round_timeout_s:g}, the limit of every wait"
            )
        if self.target is not None:
            try:
                metrics.target(self.target)
            except ValueError as error:
                raise ValueError(f"target = {self.target!r}: {error}") from error

    @property
    def aim(self) -> metrics.Target | None:
        """The metric and value that end the run after the round that reaches them."""
        return None if self.target is None else metrics.target(self.target)


def pace(config: RunConfig) -> float:
    """The run's dilation, once it is known."""
    assert config.dilation != "auto", "nobody has found it yet"
    return 1.0 if config.dilation == "elastic" else config.dilation


def load(file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Join a TOML file with flags; flags win, key by key within ``options`` too.

    Raises:
        ConfigError: naming the file, the field, the value and what would be right.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = outside.toml(file, "--config")
        # By itself first, so that a mistake is blamed on the right one of the two.
        values = renamed(values, str(file))
        convert(values, RunConfig, str(file))
    options = values.get("options", {})
    flags = renamed(flags, "the flags")
    given = {key: value for key, value in flags.items() if value is not None and key != "options"}
    options = {**options, **flags.get("options", {})}
    options = {key: value for key, value in options.items() if value is not None}
    for one, other in (("profile", "positions"), ("positions", "profile")):
        if one in given and other not in given:
            values.pop(other, None)
    return convert({**values, **given, "options": options}, RunConfig, "the flags")


def renamed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A run's fields, with ``target_accuracy`` as the target that it says.

    Raises:
        ConfigError: it is no share, or there is another target beside it.
    """
    found = dict(values)
    share = found.pop("target_accuracy", None)
    if share is None:
        return found
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(
            f"{where}: target_accuracy = {share!r}: must be a number above 0, and at most 1"
        )
    if found.get("target") is not None:
        raise ConfigError(
            f"{where}: target = {found['target']!r} and target_accuracy = {share:g}: a run has one "
            "target; leave one out"
        )
    return {**found, "target": str(metrics.Target("accuracy", share))}


def convert(values: Mapping[str, Any], kind: type[Struct], where: str) -> Struct:
    """Check ``values`` against a Struct, in a user's words.

    Raises:
        ConfigError: naming the field and what would be right.
    """
    fields = kind.__struct_fields__
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown field {key!r}{closest(key, fields) or '.'}")
        # "inf" and "nan" are numbers to TOML and to the ranges of a Struct.
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise ConfigError(f"{where}: {key} = {values[key]}: must be a finite number")
        for text in _texts(values[key]):
            if wrong := outside.unwritable(text):
                raise ConfigError(f"{where}: {key} = {text!r}: {wrong}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        field = path.partition("[")[0].partition(".")[0].rstrip("`")
        if not field:
            raise ConfigError(f"{where}: {reason}") from error
        if values[field] == "":
            reason = "must be some text; leave it out for the default"
        if words := offered(get_type_hints(kind)[field]):
            reason = f"must be one of {', '.join(words)}"
        if isinstance(values[field], float) and abs(values[field]) >= _MOST_WHOLE:
            reason = reason.replace("got `float`", f"found one of more than {_MOST_DIGITS} digits")
        if field == "dilation":
            reason = f"must be a number from 1 to {MAX_DILATION:g}, elastic or auto"
        raise ConfigError(f"{where}: {field} = {values[field]!r}: {reason}") from error


def offered(hint: Any) -> tuple[str, ...]:
    """The texts that a field takes, where it takes nothing else but its absence."""
    parts = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    (first, *others) = (part for part in parts if part is not NoneType)
    return get_args(first) if get_origin(first) is Literal and not others else ()


def _texts(value: object) -> Iterator[str]:
    """Texts in a value, and in its lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(name)
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def option_value(text: str) -> OptionValue | None:
    """The value meant by the text after ``rank=``: a number, a truth value, None, or a text.

    As TOML writes them, as Python does, and as people do: ``.01``, ``1E-3``, ``+1``, ``True``.
    """
    words: dict[str, bool | None] = {"True": True, "true": True, "False": False, "false": False}
    words |= {"None": None}
    if text in words:
        return words[text]
    # As TOML: between digits alone.
    plain = re.sub("(?<=[0-9])_(?=[0-9])", "", text)
    if re.fullmatch(f"[+-]?[0-9]{{1,{_MOST_DIGITS}}}", plain):
        return int(plain)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|nan)", plain):
        return float(plain)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        try:
            return str(tomllib.loads(f"value = {text}")["value"])
        except tomllib.TOMLDecodeError:
            return text
    return text


def write(config: RunConfig, path: Path) -> None:
    """Write the run, in one step, as a TOML file that ``load`` reads back equal."""
    values = msgspec.to_builtins(config)
    present = {key: value for key, value in values.items() if value is not None}
    files.write(path, tomli_w.dumps(present).encode())


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """``name`` if it is one of ``known``.

    Raises:
        ConfigError: with the closest of the known names, and all of them.
    """
    names = sorted(known)
    if name in names:
        return name
    near = closest(name, names) or "."
    raise ConfigError(f"unknown {kind} {name!r}{near} Known: {', '.join(names)}.")
