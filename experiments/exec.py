"""Programs of anybody's inside the links, from flags to a closing table: `cli.py exec`."""

import contextlib
import os
import re
import resource
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from experiments import hosts as spread
from experiments import programs, programs_hosts, ray_hosts
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
from testbed.exec.config import Request
from testbed.exec.jobs import Job
from testbed.exec.kept import unquoted
from testbed.exec.supervisor import run
from testbed.links.interface import Backend
from testbed.machine import limits
from testbed.metering import meter
from testbed.naming import slug
from testbed.network.hosts import written
from testbed.network.topology import Plan
from testbed.processes import signals
from testbed.processes.environment import take_token
from testbed.record import trust
from testbed.record.recorder import Recorder, create_folder
from testbed.report.page import doubts
from testbed.report.programs import ProgramLines, closing_table
from testbed.report.terminal import Output
from testbed.run import client_links
from testbed.run.hosts.whole import HostsBackend

METHOD = "exec"
"""In a run's record, where others have their method."""
_SCRIPTS = (".py", ".sh")


def execute(
    file: Path | None,
    flags: dict[str, Any],
    command: list[str],
    started_s: float,
    output: Output,
    token_file: Path | None = None,
) -> int:
    """Carry out a run of programs and say what came of it; returns the exit status.

    ``token_file``: of the hosts of a run on several.

    Raises:
        ConfigError: refused before anything has started.
    """
    with contextlib.ExitStack() as owned:
        try:
            return _execute(file, flags, command, started_s, output, token_file, owned)
        except programs.NoProgram as error:
            output.error(f"error: {error}")
            return error.code


def _execute(
    file: Path | None,
    flags: dict[str, Any],
    command: list[str],
    started_s: float,
    output: Output,
    token_file: Path | None,
    owned: contextlib.ExitStack,
) -> int:
    # 1. Everything is checked before anything starts.
    request = configuration.load(file, flags)
    links, token = spread.reached(spread.settled(request.links, flags), token_file, owned)
    request = request._replace(links=links)
    # Nodes are shown this process's environment, as that of their first process.
    take_token()
    layout = programs.layout(request)
    configuration.programs_of(request.programs, layout)
    configuration.refuse_unheeded(request.programs, layout, flags)
    planned = _planned(request, layout)
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits.allow(len(layout.nodes), streams=False)
    # 2. The configuration as it will be written, and who is where.
    request, layout, hosts = planned.request, planned.layout, None
    if token is not None:
        hosts, layout = programs_hosts.joined(request, layout, token, owned)
        placed = msgspec.structs.replace(request.links, place=written(layout))
        request = request._replace(links=placed)
    profile = mix_label([node.profile for node in layout.clients if node.profile])
    label = f"{slug(f'{METHOD}-{profile}')}-{len(layout.clients)}"
    with signals.COMMAND.making():
        folder = create_folder(Path(request.links.out), label).absolute()
        owned.callback(remove_if_empty, folder)
    here = None if hosts is None else hosts.own.name
    jobs = programs.jobs(request, layout, folder)
    programs.refuse_missing(jobs, here)
    owned.callback(give_to_caller, folder)
    # 3. The run.
    facts = _facts(request, layout, jobs, profile, command)
    facts |= {"run_id": folder.name, "congestion": planned.congestion}
    output.result("results", folder)
    output.say(planned.why)
    if request.links.strict and not request.links.calibrate:
        output.say(STRICT_UNPROBED, style="yellow")
    progress = ProgramLines(output)
    backend = HostsBackend(hosts) if hosts else planned.backend
    # From here on the folder has something in it, and the run says in there how it ends.
    with signals.COMMAND.making():
        recorder = Recorder(folder, started_s)
        try:
            summary, code = run(
                *(request, layout, jobs, backend, recorder, facts, progress, progress.say),
                *(open_files, hosts),
            )
        finally:
            recorder.close()
    # 4. What came of it.
    for text in capture_warnings(summary.captures):
        output.say(text, style="yellow")
    document = {"folder": folder.as_posix(), "exit": code, **msgspec.to_builtins(summary)}
    output.show(closing_table(summary), document, kept=True)
    told = request.programs
    for text in doubts.of(summary, told.expect_bytes, told.round_regex):
        output.say(text, style="yellow")
    trusted = summary.fidelity.verdict == "pass"
    output.say(trust.line(summary), style=None if trusted else "yellow")
    whole = write_about(folder, False, output)
    if summary.status != "ok":
        output.error(f"{summary.status}: {summary.reason}")
    return code or EXIT_CODES[summary.status] or (0 if whole else UNWRITTEN_EXIT)


class _Planned(NamedTuple):
    """A run of programs as this host can have it."""

    request: Request
    """Nothing left to a default."""
    layout: Plan
    backend: Backend
    why: str
    """It is these links."""
    congestion: str
    """The control that was asked for."""


def _planned(request: Request, layout: Plan) -> _Planned:
    """Raises ConfigError: this host cannot have it."""
    limits.require_proc()
    backend, why = programs.backend(request, layout)
    pinned, asked = programs.congestion_of(request)
    layout = msgspec.structs.replace(layout, congestion=pinned)
    links = msgspec.structs.replace(
        client_links.repeatable(request.links),
        clients=len(layout.clients),
        links=backend.name,
        congestion=pinned,
        dilation=1.0,
    )
    settled = Request(links, configuration.repeatable(request.programs))
    return _Planned(settled, layout, backend, why, asked)


def check(request: Request) -> dict[str, str]:
    """Refusals of ``exec``, as far as they can be known before a run's folder is there, and with
    no other host called.

    Returns digests of the files that its links are read from, by what each is called, and of
    scripts of this host's.

    Raises:
        ConfigError: naming the node or the field, the value and what would be right.
    """
    configuration.refuse_other_clocks(request.links, asked=False)
    request = request._replace(links=spread.settled(request.links, {}))
    layout = programs.layout(request)
    _planned(request, layout)
    jobs = programs.jobs(request, layout, Path(request.links.out))
    if request.links.hosts is None:
        programs.refuse_missing(jobs)
    elif request.links.hosts != ray_hosts.AUTO:
        spread.placeable(request.links, len(layout.clients))
    paths = dict.fromkeys(path for one in jobs for path in _scripts(one))
    found = programs.link_files(request, layout)
    return found | {path: outside.digest(path, "file") for path in paths}


def ask(requests: Mapping[str, Request], token: bytes, asked: Callable[[], None]) -> None:
    """Have each host of runs on the same several look whether it can have its part in each of
    them, by what that is called, and let it be; ``asked`` is called after each.

    Raises:
        ConfigError: naming the run, the host that cannot, and why.
    """
    them: spread.Called | None = None
    with contextlib.ExitStack() as owned:
        for name, each in requests.items():
            try:
                request = each._replace(links=spread.settled(each.links, {}))
                request, layout, *_ = _planned(request, programs.layout(request))
                if them is None:
                    called = programs_hosts.called(request, layout, token)
                    them = owned.enter_context(called)
                layout = programs_hosts.agreed(them, request, layout)
                jobs = programs.jobs(request, layout, Path(request.links.out))
                programs.refuse_missing(jobs, them.own)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
            asked()


def _scripts(one: Job) -> Iterator[str]:
    """Files that a command names and that are programs, not what they write."""
    for name in _names(one.words):
        path = os.path.normpath(os.path.join(one.folder, name))
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(path)
            is_program = path.endswith(_SCRIPTS) or found.st_mode & stat.S_IXUSR
            is_read = stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK)
            if is_program and is_read and found.st_size <= outside.MOST_BYTES:
                yield path


def _names(words: Iterable[str]) -> Iterator[str]:
    """Words that may be names of files, which may have spaces and be quoted."""
    for word in words:
        yield from re.split(r"[\s'\"=:;,|&<>()]+", word)
        for each in (word, *unquoted(word)):
            yield each
            yield each.partition("=")[2]


def _facts(
    request: Request, layout: Plan, jobs: list[Job], profile: str, command: list[str]
) -> dict[str, Any]:
    """Facts of a run before it begins, for its "run" event."""
    links, own = msgspec.to_builtins(request.links), msgspec.to_builtins(request.programs)
    values = {key: links[key] for key in configuration.OF_LINKS}
    if request.links.hosts is not None:
        values |= {key: links[key] for key in configuration.OF_HOSTS}
    values |= {key: value for key, value in own.items() if key != "nodes"}
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
