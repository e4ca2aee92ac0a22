"""Launches into a node of a network: the words and the environment of a program that joins it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from testbed.config_error import ConfigError
from testbed.exec import jobs
from testbed.library import join
from testbed.network.topology import Node, Plan


class Launch(NamedTuple):
    """A process that is to its parent what the program in the node is."""

    words: list[str]
    environment: dict[str, str]


def launch(
    layout: Plan,
    node: Node,
    init: int,
    command: str | tuple[str, ...],
    environment: Mapping[str, str],
    own: Mapping[str, str],
    folder: str,
) -> Launch:
    """The launch of ``command``, a line for a shell or words, into the node that ``init`` holds.

    ``environment``: the caller's; ``own``: what was asked for beside.

    Raises:
        ConfigError: there is no command.
    """
    if not command:
        raise ConfigError(f"{node.name}: command = {command!r}: is none; `true` does nothing")
    job = jobs.job(layout, node, command, environment, own, [folder], Path(folder))
    # Nobody has made a folder for the node.
    del job.environment["WIRETUNE_DIR"]
    words = [sys.executable, "-I", "-S", join.__file__, str(init), *job.words]
    return Launch(words, job.environment)
