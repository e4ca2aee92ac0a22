"""Choice of the clock: elastic where the links can go by it, else this machine's."""

from typing import Literal

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


def possible(config: RunConfig, links: str) -> float | Literal["auto", "elastic"]:
    """The run's dilation as it can be over such ``links``.

    The queue of netem is the kernel's, and so are the time-outs of gloo.
    """
    can = links in ELASTIC_LINKS and config.transport != "gloo"
    return config.dilation if can or config.dilation != "elastic" else 1.0
