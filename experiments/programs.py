"""Programs of a run as they are on a host: links, commands that are there, and what is refused."""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from testbed import outside
from testbed.config_error import ConfigError
from testbed.exec import config as configuration
from testbed.exec import isolation
from testbed.exec.config import Request
from testbed.exec.endings import NOT_FOUND, NOT_STARTED
from testbed.exec.jobs import Job, job
from testbed.links import choice
from testbed.links.interface import Backend
from testbed.network.profiles import LinkProfile
from testbed.network.profiles import files as profile_files
from testbed.network.profiles import load as load_profile
from testbed.network.topology import SERVER, Plan, client_name, plan
from testbed.processes.environment import original_environment
from testbed.run import client_links
from testbed.transport import congestion


class NoProgram(ConfigError):
    """A program does not exist; the text says which, whose, and what would be right."""

    code = NOT_FOUND


class CannotStart(NoProgram):
    """It is there, and is no program."""

    code = NOT_STARTED


def layout(request: Request) -> Plan:
    """The plan of its nodes, nobody placed.

    Raises:
        ConfigError: naming the node or the field, the value and what would be right.
    """
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


def jobs(request: Request, layout: Plan, folder: Path) -> list[Job]:
    """Jobs of all nodes; ``folder``: the run's.

    Raises:
        ConfigError: a node has no command, or waits for what never comes.
    """
    original = original_environment()
    told = configuration.programs_of(request.programs, layout)
    return [
        job(layout, node, own.command, original, own.env, own.folders, folder, own.after)
        for node, own in zip(layout.nodes, told, strict=True)
    ]


def refuse_missing(found: Iterable[Job], here: str | None = None) -> None:
    """Raises ConfigError: a program is not there, or its folder.

    ``here``: this host's name where there are several; the others' are not looked for.
    """
    for each in found:
        if here in (None, each.node.host):
            _refuse_missing(each)


def link_files(request: Request, layout: Plan) -> dict[str, str]:
    """Digests of the files that links are read from, by what each is called.

    Raises:
        ConfigError: one of them cannot be read.
    """
    found = client_links.files(request.links, [n.profile for n in layout.nodes if n.profile])
    own = configuration.profiles_of(request.programs, [node.name for node in layout.nodes])
    paths = {key: path for text in own.values() for key, path in profile_files(text).items()}
    return found | {key: outside.digest(path, "file") for key, path in paths.items()}


def backend(request: Request, layout: Plan) -> tuple[Backend, str]:
    """Links with namespaces, and nodes that can be isolated in them, with why it is these links.

    Raises:
        ConfigError: there are none here.
    """
    if sys.platform != "linux":
        raise ConfigError("exec: programs get namespaces of their own, which need Linux")
    found, why = choice.choose(request.links.links, layout)
    if found.name == "loopback":
        raise ConfigError(
            f"exec: needs links with namespaces, and none work here: {why.removeprefix('links: ')}"
        )
    if (reason := isolation.probe()) is not None:
        raise ConfigError(
            f"exec: nodes cannot be isolated here: {reason}. As root it takes CAP_SYS_ADMIN, and "
            "without root a kernel that lets users make user namespaces"
        )
    return found, why


def congestion_of(request: Request) -> tuple[str | None, str]:
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
