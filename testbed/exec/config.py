"""ExecConfig: whose programs run on which node, from flags and a TOML file; checked first."""

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import tomli_w

from testbed import files, outside
from testbed.config_error import ConfigError, closest
from testbed.exec.jobs import Port
from testbed.network.profiles import absolute
from testbed.network.topology import SERVER, Plan
from testbed.run.config import Flag, Positive, RunConfig, Text, convert
from testbed.units import byte_count, whole

OF_LINKS = (
    *("profile", "positions", "schedule", "server_profile", "clients", "links", "congestion"),
    *("calibrate", "pcap", "strict", "dilation", "time_limit_s", "out"),
)
"""Fields of RunConfig that a run of programs has too."""
OF_HOSTS = ("hosts", "place", "on_lost_host")
"""Likewise, of a run on several hosts."""
ONE_HOST = (
    "has all its nodes on one host, this one; leave it out (`launch`, `exec` and `bench` have runs "
    "on several)"
)
TcpPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Command = Text | tuple[Text, ...]


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table ``[nodes.NAME]`` of the TOML file; NAME may be a pattern such as ``client-*``."""

    command: Command | None = None
    """A line for a shell, or words."""
    profile: Text | None = None
    env: dict[str, str] = {}
    cwd: Text | None = None
    """Its folder, which may be relative to that of all."""
    after: Text | None = None
    """NODE:PORT that is to be listened on before the command starts."""

    def __post_init__(self) -> None:
        _check_variables(self.env)


class ExecConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Programs of a run: a field with a Flag is an option of ``exec``, by this text."""

    server: Annotated[
        Text | None, Flag("Command of the server, a line for a shell.", takes="COMMAND")
    ] = None
    client: Annotated[Text | None, Flag("Command of every client, likewise.", takes="COMMAND")] = (
        None
    )
    command: tuple[Text, ...] = ()
    """Words of the command of every node that has no other."""
    wait_port: Annotated[
        TcpPort | None,
        Flag("Start the clients once the server listens on this TCP port.", takes="PORT"),
    ] = None
    wait_limit_s: Annotated[
        Positive, Flag("How long a port is waited for, from when its node's command runs.")
    ] = 60.0
    until: Annotated[
        Literal["all", "server", "clients"],
        Flag("Whose commands are waited for; the others are then asked to end."),
    ] = "all"
    on_failure: Annotated[
        Literal["stop", "continue"],
        Flag("What follows where a command fails; stop: the others are asked to end."),
    ] = "stop"
    grace_s: Annotated[
        Positive, Flag("How long a command that is asked to end gets before it is killed.")
    ] = 5.0
    round_regex: Annotated[
        Text | None,
        Flag(
            "A line of output in which this is found begins a round, by the number that its first "
            "group has.",
            takes="REGEX",
            default="no rounds",
        ),
    ] = None
    expect_bytes: Annotated[
        Text | None,
        Flag(
            "What the programs say that they move, such as 500MB: a warning, or with --strict a "
            "failure, where less has crossed the clients' links.",
            takes="SIZE",
            default="nothing is said",
        ),
    ] = None
    env: dict[str, str] = {}
    """Variables of every node."""
    cwd: Text | None = None
    """Folder of every node's command; without it the caller's."""
    nodes: dict[str, NodeConfig] = {}

    def __post_init__(self) -> None:
        _check_variables(self.env)
        if self.round_regex is not None:
            try:
                outside.regex(self.round_regex)
            except ValueError as error:
                raise ValueError(f"round_regex = {self.round_regex!r}: {error}") from None
        if self.expect_bytes is not None:
            try:
                byte_count(self.expect_bytes)
            except ValueError as error:
                raise ValueError(f"expect_bytes = {error}") from None
        if self.server and self.client and self.command:
            raise ValueError(
                f"command = {' '.join(self.command)!r}: is no node's, for the server has a command "
                "and clients have one; leave one of the three out"
            )


def _check_variables(env: Mapping[str, str]) -> None:
    for name in env:
        if not name or "=" in name:
            raise ValueError(f"env: {name!r} cannot be a variable's name: it is empty or has a '='")


class Request(NamedTuple):
    """Links, and the programs on them, as they are asked for."""

    links: RunConfig
    programs: ExecConfig


def load(file: Path | None, flags: Mapping[str, Any], named: str = "--file") -> Request:
    """Join a TOML file with flags; flags win. ``named``: the flag that the file was named by.

    Raises:
        ConfigError: naming the file, the field, the value and what would be right.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = outside.toml(file, named)
        _split(values, str(file))
    given = {key: value for key, value in flags.items() if value not in (None, (), {})}
    for one, other in (("profile", "positions"), ("positions", "profile")):
        if one in given and other not in given:
            values.pop(other, None)
    env = {**values.get("env", {}), **given.get("env", {})}
    return _split({**values, **given, "env": env}, "the flags")


def _split(values: Mapping[str, Any], where: str) -> Request:
    of_links = (*OF_LINKS, *OF_HOSTS)
    known = [*of_links, *ExecConfig.__struct_fields__]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown field {key!r}{closest(key, known) or '.'}")
    links = {key: value for key, value in values.items() if key in of_links}
    programs = {key: value for key, value in values.items() if key not in of_links}
    tables = programs.get("nodes", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{where}: nodes = {tables!r}: must be a table of tables, [nodes.NAME]")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: nodes.{name} = {table!r}: must be a table")
        convert(table, NodeConfig, f"{where}: nodes.{name}")
    request = Request(convert(links, RunConfig, where), convert(programs, ExecConfig, where))
    refuse_other_clocks(request.links, asked="dilation" in values)
    return request


def refuse_other_clocks(links: RunConfig, *, asked: bool) -> None:
    """Raises ConfigError of links, or a clock, that programs of others do not go by.

    ``asked``: whether the dilation was asked for.
    """
    if links.links == "loopback":
        raise ConfigError(
            "links = 'loopback': a program of another's does not go through that relay; take "
            "links with namespaces (--links=netem or userspace)"
        )
    if asked and links.dilation != 1:
        raise ConfigError(
            f"dilation = {links.dilation!r}: programs of others go by this machine's clock, which "
            "cannot be slowed down for them; leave it out, and take no more nodes than cores"
        )


def repeatable(programs: ExecConfig) -> ExecConfig:
    """The same programs, whose profiles and folders are the same wherever they are asked for."""
    tables = {
        name: msgspec.structs.replace(table, profile=table.profile and absolute(table.profile))
        for name, table in programs.nodes.items()
    }
    cwd = programs.cwd or os.curdir
    cwd = cwd if cwd.startswith("$") else os.path.abspath(cwd)
    return msgspec.structs.replace(programs, cwd=cwd, nodes=tables)


def write(request: Request, path: Path) -> None:
    """Write both in one step as a TOML file that ``load`` reads back equal."""
    links = msgspec.to_builtins(request.links)
    values = {key: links[key] for key in (*OF_LINKS, *OF_HOSTS) if key != "dilation"}
    values |= msgspec.to_builtins(request.programs)
    values["nodes"] = {
        name: {key: value for key, value in table.items() if value is not None}
        for name, table in values["nodes"].items()
    }
    present = {key: value for key, value in values.items() if value not in (None, {}, ())}
    files.write(path, tomli_w.dumps(present).encode())


class NodePrograms(NamedTuple):
    """Command and surroundings of one node."""

    command: Command
    env: dict[str, str]
    folders: tuple[str, str]
    """That of all nodes and its own, either of which may be empty."""
    after: Port | None


def programs_of(programs: ExecConfig, layout: Plan) -> list[NodePrograms]:
    """Programs of each node of ``layout``, in its order.

    Raises:
        ConfigError: a table of no node, a node without a command, a port of no node, or nodes that
            wait for one another.
    """
    names = [node.name for node in layout.nodes]
    check_names(programs, names)
    found = []
    for name in names:
        role = programs.server if name == SERVER else programs.client
        command: Command | None = role or programs.command or None
        env, cwd, after = dict(programs.env), "", None
        if name != SERVER and programs.wait_port is not None:
            after = Port(SERVER, programs.wait_port)
        for table in _tables(programs, name):
            command = table.command or command
            env |= table.env
            cwd = table.cwd or cwd
            after = after if table.after is None else _port(name, table.after, names)
        if command is None:
            flag = "--server" if name == SERVER else "--client"
            raise ConfigError(
                f"{name}: has no command; give it one by {flag}='COMMAND', or all nodes one "
                f"after --, or [nodes.{name}] in a file (`true` does nothing)"
            )
        found.append(NodePrograms(command, env, (programs.cwd or "", cwd), after))
    _refuse_circles({name: own.after for name, own in zip(names, found, strict=True)})
    return found


def refuse_unheeded(programs: ExecConfig, layout: Plan, flags: Mapping[str, Any]) -> None:
    """Raises ConfigError of a flag that changes nothing, for all whom it is for have their own."""
    clients = [node.name for node in layout.clients]
    tables = {name: _tables(programs, name) for name in (SERVER, *clients)}
    roles = {name: programs.client if name != SERVER else programs.server for name in tables}
    for field, own, names in (
        ("server", "command", [SERVER]),
        ("client", "command", clients),
        ("command", "command", [name for name, command in roles.items() if command is None]),
        ("wait_port", "after", clients),
        ("profile", "profile", clients),
    ):
        if flags.get(field) and all(any(getattr(t, own) for t in tables[name]) for name in names):
            raise ConfigError(
                f"{field} = {flags[field]!r}: changes nothing, for each node that it is for has a "
                f"{own} of its own table [nodes.…]; leave one out"
            )
    waited = programs.wait_port or any(table.after for table in programs.nodes.values())
    if flags.get("wait_limit_s") is not None and not waited:
        raise ConfigError(
            f"wait_limit_s = {flags['wait_limit_s']:g}: no port is waited for; name one by "
            '--wait-port, or by after = "NODE:PORT" in a node\'s table'
        )


def _refuse_circles(after: Mapping[str, Port | None]) -> None:
    """Raises ConfigError: nodes wait for one another, so that none of them ever begins."""
    for name in after:
        passed: dict[str, Port] = {}
        at = name
        while (port := after[at]) is not None:
            passed[at] = port
            at = port.node
            if at == name:
                waits = ", ".join(f"{node} waits for {each}" for node, each in passed.items())
                raise ConfigError(f"after: {waits}: none of that ever begins; leave one out")
            if at in passed:
                break


def profiles_of(programs: ExecConfig, names: list[str]) -> dict[str, str]:
    """Profiles that nodes have by their own tables."""
    found = {}
    for name in names:
        for table in _tables(programs, name):
            if table.profile is not None:
                found[name] = table.profile
    return found


def check_names(programs: ExecConfig, names: list[str]) -> None:
    """Raises ConfigError: a table is of no node."""
    for pattern in programs.nodes:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            known = f"{SERVER} and client-1 to {names[-1]}"
            raise ConfigError(
                f"nodes.{pattern}: is no node{closest(pattern, names) or '.'} There are {known}"
            )


def _tables(programs: ExecConfig, name: str) -> list[NodeConfig]:
    """Tables of a node, in the file's order: a later one wins."""
    return [
        table for pattern, table in programs.nodes.items() if fnmatch.fnmatchcase(name, pattern)
    ]


def _port(name: str, text: str, names: list[str]) -> Port:
    other, _, number = text.rpartition(":")
    where = f"nodes.{name}.after = {text!r}"
    port = whole(number)
    if not port or port > 65535:
        raise ConfigError(f"{where}: must be NODE:PORT, such as server:8000")
    if other not in names:
        raise ConfigError(f"{where}: {other!r} is no node{closest(other, names)}")
    return Port(other, port)
