"""Choice of the clock: elastic where the links can go by it, else this machine's."""

from typing import Literal

from testbed.config_error import ConfigError
from testbed.network.topology import Plan
from testbed.processes import cores
from testbed.record.host_load import ELASTIC_LINKS
from testbed.run.config import RunConfig


def crowd(config: RunConfig, layout: Plan) -> str:
    """Nodes of an elastic run that are more than this machine's cores, in words; "": no such."""
    nodes = len(layout.nodes)
    if config.dilation != "elastic" or config.transport == "gloo" or nodes <= cores.usable():
        return ""
    return f"{nodes} nodes on {cores.words()}"


def possible(config: RunConfig, links: str, *, asked: bool) -> float | Literal["auto", "elastic"]:
    """The run's dilation as it can be over such ``links``: the machine's pace where need be.

    Raises:
        ConfigError: an elastic clock is ``asked`` for in so many words, and cannot be.
    """
    if config.dilation != "elastic":
        return config.dilation
    if config.transport == "gloo":
        reason = "gloo's time-outs are its own; take --transport=zmq"
    elif links not in ELASTIC_LINKS:
        reason = f"the queue of {links} links is the kernel's; take --links=userspace"
    else:
        return "elastic"
    if asked:
        raise ConfigError(f"dilation = 'elastic': {reason}, or --dilation=K")
    return 1.0
