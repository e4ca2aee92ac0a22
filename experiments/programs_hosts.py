"""Programs on several hosts: the driver's call to the others, and a run as it is on an agent's."""

import contextlib
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from experiments import hosts as spread
from experiments import programs
from experiments.hosts import Called, Question
from testbed.exec.config import Request
from testbed.exec.hosts.messages import Answer, CheckPrograms
from testbed.exec.hosts.part import Prepared
from testbed.exec.jobs import Job
from testbed.exec.kept import PRIVATE
from testbed.machine import limits
from testbed.network import hosts
from testbed.network.topology import Plan
from testbed.run.hosts.captures import refuse_full_disk
from testbed.run.hosts.driver import Hosts
from testbed.transport import congestion


@contextlib.contextmanager
def called(request: Request, layout: Plan, token: bytes) -> Iterator[Called]:
    """The other hosts of runs of programs, which can be asked about them.

    Raises:
        ConfigError: naming the one that could have no part in any, and why.
    """
    count = len(layout.clients)
    with spread.called(request.links, count, token, hears=Answer, loads=False) as them:
        yield them


def agreed(them: Called, request: Request, layout: Plan) -> Plan:
    """The plan with all placed, once each host has said that it can have its part.

    Raises:
        ConfigError: naming the host that cannot, and why.
    """
    told = programs.link_files(request, layout)
    question = _question(request)
    return spread.agreed(them, request.links, layout, told, question=question)[0]


def joined(
    request: Request, layout: Plan, token: bytes, owned: contextlib.ExitStack
) -> tuple[Hosts, Plan]:
    """The hosts of a run, each of which can have its part, and the plan with all placed; they are
    let go as ``owned`` ends.

    Raises:
        ConfigError: naming the host that cannot, and why.
    """
    them = owned.enter_context(called(request, layout, token))
    told = programs.link_files(request, layout)
    question = _question(request)
    return owned.enter_context(spread.joined(them, request.links, layout, told, question=question))


def _question(request: Request) -> Question:
    return lambda links, far: CheckPrograms(far.name, links, request.programs)


def prepared(asked: CheckPrograms) -> Prepared:
    """A run of programs as it is on this host, as its driver has asked.

    Raises:
        ConfigError: this host cannot have a part in it.
    """
    request = Request(asked.links, asked.programs)
    limits.require_proc()
    if request.links.pcap:
        refuse_full_disk()
    layout = programs.layout(request)
    programs.backend(request, layout)
    if (pinned := request.links.congestion) is not None:
        congestion.check(pinned, request.links.links)
    layout = msgspec.structs.replace(layout, congestion=pinned)
    names = list(spread.parsed(request.links.hosts or ""))
    layout = hosts.placed(
        layout, [hosts.Host(name, 1, 0) for name in names], place=request.links.place
    )
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits.allow(len(layout.nodes), streams=False)
    told: dict[str, str | None] = dict(programs.link_files(request, layout))
    return Prepared(layout, _jobs(request, layout, asked.host), told, open_files)


def _jobs(request: Request, layout: Plan, host: str) -> list[Job]:
    """Jobs whose nodes have their own folder in memory that is theirs alone, and ends with them.

    Within a folder that each has of its own: not the one where it starts, which is this host's.
    """
    name = f"wiretune-{secrets.token_hex(8)}"
    ways = [programs.jobs(request, layout, Path(root, name)) for root in PRIVATE]
    found = [
        next(one for one, root in zip(each, PRIVATE, strict=True) if one.folder != root)
        for each in zip(*ways, strict=True)
    ]
    programs.refuse_missing(found, host)
    return found
