"""The agent of a host: what a run's configuration is there."""

import sys

import msgspec

from experiments import programs_hosts
from experiments.hosts import address_of, digests
from testbed import extras
from testbed.config_error import ConfigError
from testbed.exec.hosts import part as programs_part
from testbed.exec.hosts.messages import CheckPrograms, Order
from testbed.links import choice
from testbed.links.dilation import plan as dilated
from testbed.links.interface import LinkError
from testbed.links.userspace import backend as userspace
from testbed.machine import limits
from testbed.network.profiles import load as load_profile
from testbed.network.topology import plan
from testbed.run import client_links
from testbed.run.config import RunConfig, pace
from testbed.run.hosts.agent import Agent
from testbed.run.hosts.captures import refuse_full_disk
from testbed.run.hosts.line import Line
from testbed.run.hosts.part import Prepared
from testbed.transport import congestion


def run(listen: str, token: bytes, *, until_input_ends: bool) -> None:
    """Be the agent that listens there until it is asked to end.

    Raises:
        ConfigError: it cannot listen there.
    """
    try:
        agent = Agent(*address_of(listen), token, prepared, load, {CheckPrograms: carry_out}, Order)
    except LinkError as error:
        raise ConfigError(f"--listen={listen}: {error}") from error

    def say(text: str) -> None:
        sys.stdout.write(f"agent: {text}\n")
        sys.stdout.flush()

    agent.serve(say, sys.stdin.fileno() if until_input_ends else None)


def carry_out(line: Line, token: bytes, asked: CheckPrograms) -> None:
    """Have a part in a run of programs."""
    programs_part.carry_out(line, token, asked, programs_hosts.prepared)


def load() -> None:
    """Import torch and what needs it, which takes seconds and is not the agent's own to hold.

    Raises:
        ConfigError: it is not there.
    """
    extras.require("a part of a run that trains", "train")
    from nodes import program  # noqa: F401
    from nodes.checkpoint import posting  # noqa: F401


def prepared(config: RunConfig) -> Prepared:
    """A run as it is on this host; ``config`` is as its driver has written it.

    Raises:
        ConfigError: this host cannot have a part in it.
    """
    from nodes.checkpoint.posting import Posted
    from nodes.program import FineTuning

    limits.require_proc()
    if config.pcap:
        refuse_full_disk()
    profiles = client_links.client_links(config)
    server = None if config.server_profile is None else load_profile(config.server_profile)
    layout = plan(profiles, server, client_links.times_away(config, len(profiles)))
    layout = msgspec.structs.replace(layout, congestion=config.congestion)
    choice.choose(userspace.name, dilated(layout, pace(config)))
    if config.congestion is not None:
        congestion.check(config.congestion, userspace.name)
    program = FineTuning(config, len(profiles))
    limits.allow(len(layout.nodes), streams=False)
    links = [*profiles, *([server] if server else [])]
    told = digests(config, program.task.fingerprint(), client_links.files(config, links))
    return Prepared(program, layout, told, lambda *states: program.keep(Posted(*states)))
