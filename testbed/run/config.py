"""RunConfig: what a run is, from a TOML file and flags, checked before anything starts."""

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

from testbed import files, outside
from testbed.config_error import ConfigError, closest
from testbed.network.profiles import MAX_CLIENTS

Struct = TypeVar("Struct")

DEFAULT_CLIENTS = 20
DEFAULT_PROFILE = "4g"
DEFAULT_DEVICE_CLASS = "phone"
DEFAULT_SERVER_CLASS = "server"
MAX_DILATION = 10_000.0

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
"""Bounded, since a poll of the system takes no infinity and at most 2**31 ms."""
Text = Annotated[str, msgspec.Meta(min_length=1)]
OptionValue = bool | int | float | str


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A run, complete: the same file starts the same run again."""

    profile: Text | None = None
    """Access link of the clients: a profile, or a mix such as "4g:12,wifi:5,3g:3"; where absent,
    what ``positions`` gives, or DEFAULT_PROFILE."""
    positions: Text | None = None
    """File of an access point and where its stations, the clients, stand or move."""
    schedule: Text | None = None
    """File of changes to the clients' links while the run goes on."""
    availability: Text | None = None
    """When clients are away: a file of times, or "on:120,off:30", mean seconds there and away."""
    clients: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLIENTS)] | None = None
    """Client processes; absent: what the mix or the stations add up to, or DEFAULT_CLIENTS."""
    clients_per_round: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLIENTS)] | None = None
    """How many clients a round takes, drawn anew each time; absent: all."""
    server_profile: Text | None = None
    """Access link of the server, which all clients share; absent: without limits."""
    method: Text = "fedpeft"
    rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 5
    target_accuracy: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """Ends the run after the round that reaches it; by the clients' own where none is global."""
    congestion: Text | None = None
    """TCP congestion control of every connection, such as cubic; absent: the host's default."""
    links: Literal["auto", "netem", "userspace", "loopback"] = "auto"
    transport: Literal["zmq", "gloo"] = "zmq"
    """gloo: methods that average do so by an all-reduce among the clients, without the server."""
    model: Text = "vit-glyphs"
    dataset: Text = "digits"
    data_path: Text | None = None
    """Folder of a data set of photographs; absent: the Hugging Face hub's."""
    train_samples: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] | None = None
    """Training images of all clients and the public ones; absent: all there are, or enough."""
    partition: Literal["dirichlet", "iid", "pathological"] = "dirichlet"
    alpha: Positive = 0.5
    """Concentration of the Dirichlet partition: the smaller, the more the clients differ."""
    classes_per_client: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2
    """Most classes that a client has in the pathological partition."""
    compute: Literal["real", "modelled"] = "real"
    """modelled: nodes count operations and wait as their devices would, and nothing is learnt."""
    device_class: Text | None = None
    """Of the clients: a class, GFLOP/s, or a mix "phone:12,pi:8"; absent: a core of this machine
    each, or DEFAULT_DEVICE_CLASS where compute is modelled."""
    server_device_class: Text | None = None
    """Of the server, likewise; absent: a core of this machine, or DEFAULT_SERVER_CLASS."""
    client_memory_mb: Positive | None = None
    """What each client may take, in 10^6 bytes, where compute is real; absent: what its device
    class has, without one no limit."""
    calibrate: bool = True
    """Probe every link before training, while the nodes load; costs no time of its own."""
    checkpoints: bool = True
    """Nodes keep their states after each round, so that a killed run can go on."""
    pcap: bool = False
    """Capture every packet at each client's own interface, into one file a client."""
    strict: bool = False
    """End the run as failed, before training, where a link is not what its profile says, or at its
    end, where this machine was too slow for it."""
    dilation: Annotated[float, msgspec.Meta(ge=1, le=MAX_DILATION)] | Literal["auto"] = 1.0
    """How many times slower than this machine's the run's clock goes: all times and limits here are
    seconds of that clock. auto: as a trial round says."""
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    join_timeout_s: Positive = 60.0
    """How long the server waits for the clients to connect."""
    round_timeout_s: Positive = 600.0
    """The limit of every wait in a round; what has not come by then is missed."""
    deadline_s: Positive | None = None
    """How long a round takes updates; later ones are missed; absent: round_timeout_s."""
    time_limit_s: Positive = 24 * 3600.0
    """The limit of the whole run, after which it ends as failed."""
    out: Text = "results"
    """Folder that gets one folder a run."""
    options: dict[str, OptionValue] = {}
    """The method's own options; see its Config in methods/."""

    def __post_init__(self) -> None:
        if self.deadline_s is not None and self.deadline_s >= self.round_timeout_s:
            raise ValueError(
                f"deadline_s = {self.deadline_s:g}: must be below round_timeout_s = "
                f"{self.round_timeout_s:g}, the limit of every wait"
            )


def pace(config: RunConfig) -> float:
    """The run's dilation, once it is a number."""
    assert not isinstance(config.dilation, str), "nobody has found it yet"
    return config.dilation


def load(file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Join a TOML file with flags; flags win, key by key within ``options`` too.

    Raises:
        ConfigError: naming the file, the field, the value and what would be right.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = outside.toml(file, "--config")
        # By itself first, so that a mistake is blamed on the right one of the two.
        convert(values, RunConfig, str(file))
    options = values.get("options", {})
    given = {key: value for key, value in flags.items() if value is not None and key != "options"}
    options = {**options, **flags.get("options", {})}
    options = {key: value for key, value in options.items() if value is not None}
    for one, other in (("profile", "positions"), ("positions", "profile")):
        if one in given and other not in given:
            values.pop(other, None)
    return convert({**values, **given, "options": options}, RunConfig, "the flags")


def convert(values: Mapping[str, Any], kind: type[Struct], where: str) -> Struct:
    """Check ``values`` against a Struct, in a user's words.

    Raises:
        ConfigError: naming the field and what would be right.
    """
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}: unknown field {key!r}{closest(key, hints) or '.'}")
        # "inf" and "nan" are numbers to TOML and to the ranges of a Struct.
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise ConfigError(f"{where}: {key} = {values[key]}: must be a finite number")
        if isinstance(values[key], str) and (wrong := _unwritable(values[key])):
            raise ConfigError(f"{where}: {key} = {values[key]!r}: {wrong}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        field = path.partition("[")[0].partition(".")[0].rstrip("`")
        if not field:
            raise ConfigError(f"{where}: {reason}") from error
        if values[field] == "":
            reason = "must be some text; leave it out for the default"
        if get_origin(hints[field]) is Literal:
            reason = f"must be one of {', '.join(get_args(hints[field]))}"
        if field == "dilation":
            reason = f"must be a number from 1 to {MAX_DILATION:g}, or auto"
        raise ConfigError(f"{where}: {field} = {values[field]!r}: {reason}") from error


def _unwritable(text: str) -> str | None:
    """Why a text can be no part of a record, or None."""
    if "\0" in text:
        return "cannot hold the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is no UTF-8, which the record of a run and its config.toml are; rename it"
    return None


def option_value(text: str) -> OptionValue | None:
    """What is meant by the text after ``rank=``: a number, a truth value, None, or a text.

    As TOML writes them, as Python does, and as people do: ``.01``, ``1E-3``, ``+1``, ``True``.
    """
    words: dict[str, bool | None] = {"True": True, "true": True, "False": False, "false": False}
    words |= {"None": None}
    if text in words:
        return words[text]
    plain = text.replace("_", "")
    if re.fullmatch("[+-]?[0-9]{1,18}", plain):
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
