"""Programs of anybody's inside the links, from flags to a closing table: `cli.py exec`."""

import contextlib
import os
import re
import resource
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from experiments.aftermath import (
    EXIT_CODES,
    STRICT_UNPROBED,
    UNWRITTEN_EXIT,
    capture_warnings,
    give_to_caller,
    mix_label,
    remove_if_empty,
    write_about,
)
from testbed import outside
from testbed.config_error import ConfigError
from testbed.exec import config as configuration
from testbed.exec import isolation
from testbed.exec.config import Request
from testbed.exec.endings import NOT_FOUND, NOT_STARTED
from testbed.exec.jobs import Job, job
from testbed.exec.supervisor import run
from testbed.links import choice
from testbed.links.interface import Backend
from testbed.machine import limits
from testbed.metering import meter
from testbed.naming import slug
from testbed.network.profiles import LinkProfile
from testbed.network.profiles import files as profile_files
from testbed.network.profiles import load as load_profile
from testbed.network.topology import SERVER, Plan, client_name, plan
from testbed.processes.environment import original_environment, take_token
from testbed.record import trust
from testbed.record.recorder import Recorder, create_folder
from testbed.report import doubts
from testbed.report.programs import ProgramLines, closing_table
from testbed.report.terminal import Output
from testbed.run import client_links
from testbed.transport import congestion

METHOD = "exec"
"""In a run's record, where others have their method."""
_SCRIPTS = (".py", ".sh")


class NoProgram(ConfigError):
    """A program does not exist; the text says which, whose, and what would be right."""

    code = NOT_FOUND


class CannotStart(NoProgram):
    """It is there, and is no program."""

    code = NOT_STARTED


def execute(
    file: Path | None, flags: dict[str, Any], command: list[str], started_s: float, output: Output
) -> int:
    """Carry out a run of programs and say what came of it; returns the exit status.

    Raises:
        ConfigError: refused before anything has started.
    """
    # Nodes are shown this process's environment, as that of their first process.
    take_token()
    with contextlib.ExitStack() as owned:
        try:
            return _execute(file, flags, command, started_s, output, owned)
        except NoProgram as error:
            output.error(f"error: {error}")
            return error.code


def _execute(
    file: Path | None,
    flags: dict[str, Any],
    command: list[str],
    started_s: float,
    output: Output,
    owned: contextlib.ExitStack,
) -> int:
    # 1. Everything is checked before anything starts.
    request = configuration.load(file, flags)
    layout = _layout(request)
    configuration.programs_of(request.programs, layout)
    configuration.refuse_unheeded(request.programs, layout, flags)
    limits.require_proc()
    backend, why = _backend(request, layout)
    pinned, asked = _congestion(request)
    layout = msgspec.structs.replace(layout, congestion=pinned)
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits.allow(len(layout.nodes), streams=False)
    profile = mix_label([node.profile for node in layout.clients if node.profile])
    out = Path(client_links.repeatable(request.links).out)
    folder = create_folder(out, f"{slug(f'{METHOD}-{profile}')}-{len(layout.clients)}").absolute()
    owned.callback(remove_if_empty, folder)
    jobs = _jobs(request, layout, folder)
    owned.callback(give_to_caller, folder)
    # 2. The run.
    links = client_links.repeatable(request.links)
    links = msgspec.structs.replace(
        links, clients=len(layout.clients), links=backend.name, congestion=pinned, dilation=1.0
    )
    request = Request(links, configuration.repeatable(request.programs))
    facts = _facts(request, layout, jobs, profile, command)
    facts |= {"run_id": folder.name, "congestion": asked}
    output.result("results", folder)
    output.say(why)
    if request.links.strict and not request.links.calibrate:
        output.say(STRICT_UNPROBED, style="yellow")
    progress = ProgramLines(output)
    recorder = Recorder(folder, started_s)
    try:
        summary, code = run(
            *(request, layout, jobs, backend, recorder, facts, progress, progress.say),
            open_files,
        )
    finally:
        recorder.close()
    # 3. What came of it.
    for text in capture_warnings(summary.captures):
        output.say(text, style="yellow")
    document = {"folder": folder.as_posix(), "exit": code, **msgspec.to_builtins(summary)}
    output.show(closing_table(summary), document)
    programs = request.programs
    for text in doubts.of(summary, programs.expect_bytes, programs.round_regex):
        output.say(text, style="yellow")
    trusted = summary.fidelity.verdict == "pass"
    output.say(trust.line(summary), style=None if trusted else "yellow")
    whole = write_about(folder, False, output)
    if summary.status != "ok":
        output.error(f"{summary.status}: {summary.reason}")
    return code or EXIT_CODES[summary.status] or (0 if whole else UNWRITTEN_EXIT)


def check(request: Request) -> dict[str, str]:
    """Refusals of ``exec``, as far as they can be known before a run's folder is there.

    Returns digests of the files that its links are read from, by what each is called.

    Raises:
        ConfigError: naming the node or the field, the value and what would be right.
    """
    configuration.refuse_other_clocks(request.links, asked=False)
    layout = _layout(request)
    limits.require_proc()
    _backend(request, layout)
    _congestion(request)
    jobs = _jobs(request, layout, Path(request.links.out))
    found = client_links.files(request.links, [n.profile for n in layout.nodes if n.profile])
    own = configuration.profiles_of(request.programs, [node.name for node in layout.nodes])
    paths = {key: path for text in own.values() for key, path in profile_files(text).items()}
    paths |= {path: path for one in jobs for path in _scripts(one)}
    return found | {key: outside.digest(path, "file") for key, path in paths.items()}


def _jobs(request: Request, layout: Plan, folder: Path) -> list[Job]:
    """Jobs of all nodes, whose programs are there; ``folder``: the run's."""
    original = original_environment()
    told = configuration.programs_of(request.programs, layout)
    jobs = [
        job(layout, node, own.command, original, own.env, own.folders, folder, own.after)
        for node, own in zip(layout.nodes, told, strict=True)
    ]
    for each in jobs:
        _refuse_missing(each)
    return jobs


def _scripts(one: Job) -> Iterator[str]:
    """Files that a command names and that are programs, not what they write."""
    for word in re.split(r"[\s'\"=:;,|&<>()]+", " ".join(one.words)):
        path = os.path.normpath(os.path.join(one.folder, word))
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(path)
            is_program = path.endswith(_SCRIPTS) or found.st_mode & stat.S_IXUSR
            is_read = stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK)
            if is_program and is_read and found.st_size <= outside.MOST_BYTES:
                yield path


def _layout(request: Request) -> Plan:
    links, programs = request
    profiles = client_links.client_links(links)
    server = None if links.server_profile is None else load_profile(links.server_profile)
    names = [SERVER, *(client_name(number) for number in range(1, len(profiles) + 1))]
    configuration.check_names(programs, names)
    own = configuration.profiles_of(programs, names)
    if own and (links.schedule or links.positions):
        other = "schedule" if links.schedule else "positions"
        name = next(iter(own))
        raise ConfigError(
            f"nodes.{name}.profile = {own[name]!r}: {other} = {getattr(links, other)!r} gives "
            "links what they are too; leave one out, or have the changes in the profile's own file"
        )
    found: list[LinkProfile] = [
        load_profile(own[name]) if name in own else profile
        for name, profile in zip(names[1:], profiles, strict=True)
    ]
    return plan(found, load_profile(own[SERVER]) if SERVER in own else server)


def _backend(request: Request, layout: Plan) -> tuple[Backend, str]:
    """Links with namespaces, and nodes that can be isolated in them."""
    if sys.platform != "linux":
        raise ConfigError("exec: programs get namespaces of their own, which need Linux")
    backend, why = choice.choose(request.links.links, layout)
    if backend.name == "loopback":
        raise ConfigError(
            f"exec: needs links with namespaces, and none work here: {why.removeprefix('links: ')}"
        )
    if (reason := isolation.probe()) is not None:
        raise ConfigError(
            f"exec: nodes cannot be isolated here: {reason}. As root it takes CAP_SYS_ADMIN, and "
            "without root a kernel that lets users make user namespaces"
        )
    return backend, why


def _congestion(request: Request) -> tuple[str | None, str]:
    """The congestion control of the nodes' connections, and the one that was asked for."""
    given = request.links.congestion
    if given is not None:
        congestion.check(given, request.links.links)
        return given, given
    return congestion.default()[0], congestion.DEFAULT


def _refuse_missing(one: Job) -> None:
    """Raises NoProgram: the program is not there, or its folder."""
    # Its own is made with the run's others.
    if one.folder != one.own_folder and not os.path.isdir(one.folder):
        raise ConfigError(f"{one.node.name}: cwd = {one.folder!r}: is no folder")
    name = one.words[0]
    path = os.path.join(one.folder, name) if "/" in name else name
    if shutil.which(path, path=one.environment.get("PATH")) is None:
        if "/" in name and os.path.exists(path):
            raise CannotStart(
                f"{one.node.name}: {name!r}: may not be executed; chmod +x it, or name the program "
                "that runs it before it"
            )
        where = "there" if "/" in name else "in any folder of PATH"
        raise NoProgram(
            f"{one.node.name}: {name!r}: no such program is {where}; name one that exists, or for "
            "a line with a shell's words give --server='LINE' and --client='LINE'"
        )


def _facts(
    request: Request, layout: Plan, jobs: list[Job], profile: str, command: list[str]
) -> dict[str, Any]:
    """Facts of a run before it begins, for its "run" event."""
    links, programs = msgspec.to_builtins(request.links), msgspec.to_builtins(request.programs)
    values = {key: links[key] for key in configuration.OF_LINKS}
    values |= {key: value for key, value in programs.items() if key != "nodes"}
    server = layout.server.profile
    return {
        "command": shlex.join(command),
        "method": METHOD,
        "profile": profile,
        "server_profile": server.name if server else None,
        "profile_versions": {
            node.profile.name: node.profile.version
            for node in layout.nodes
            if node.profile and node.profile.version
        },
        "client_names": [node.name for node in layout.clients],
        "client_profiles": [node.profile.name for node in layout.clients if node.profile],
        "programs": {one.node.name: one.text for one in jobs},
        "config": values,
        "environment": meter.environment(),
    }
