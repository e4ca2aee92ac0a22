"""A run's links for people who know tc: its qdiscs as commands, and the way to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from testbed.config_error import ConfigError
from testbed.links import dilation
from testbed.links.interface import LinkError
from testbed.links.netem import qdisc, tc
from testbed.network.direction import WAYS, Direction
from testbed.network.topology import SERVER
from testbed.record.events import known
from testbed.record.reading import EVENTS, Damaged
from testbed.report.read import Story, read, refusing
from testbed.report.text import one_line


class Links(NamedTuple):
    """A run's links: their qdiscs as commands, and the ways in."""

    backend: str
    commands: dict[str, list[str]]
    """By node, ``tc`` commands in the link namespace; a change's begins with its time."""
    enter: dict[str, str]
    """By node, and "links" for what is between them: how to enter, while the run goes on."""


def of(folder: Path) -> Links:
    """The links of the run in ``folder``.

    Raises:
        ConfigError: it is no run, or had no links yet.
    """
    story = read(folder)
    with refusing(f"RUN {folder}: {EVENTS}"):
        backend = story.summary.links
        if backend is None:
            raise ConfigError(f"RUN {folder}: it ended before it had links")
        found = commands(story)
        enter = _enter(story)
    return Links(backend, found, enter)


def commands(story: Story) -> dict[str, list[str]]:
    """Commands by node, where the links were netem's; else empty."""
    both = known(story.links.qdiscs) or [] if story.links else []
    found = {}
    for node, (name, installed) in enumerate(zip(_nodes(story), both, strict=False)):
        found[name] = [*tc.link(node, installed), *_changes(story, name, node, installed)]
    return found


def _changes(
    story: Story, name: str, node: int, installed: tuple[qdisc.Installed, qdisc.Installed]
) -> Iterator[str]:
    """Changes that the kernel was asked for on the way."""
    before = list(installed)
    for event in story.shaped.get(name, []):
        yield f"# at {event.at_s:g} s"
        for way, word in enumerate(WAYS):
            direction = msgspec.convert(getattr(event, word), Direction)
            slower = dilation.direction(direction, story.summary.dilation)
            try:
                after = qdisc.Installed(qdisc.netem(slower), direction.trace)
            except LinkError as error:
                raise Damaged(f"shaped: {error}") from error
            yield from tc.change(f"{word}{node}", before[way], after)
            before[way] = after


def _nodes(story: Story) -> list[str]:
    return [SERVER, *(row.name for row in story.summary.per_client)]


def _enter(story: Story) -> dict[str, str]:
    """None where the process that holds the namespaces is gone, or is another one by now."""
    held = known(story.links.namespaces) if story.links else None
    if held is None:
        return {}
    descriptors = dict(zip(_nodes(story), held.nodes, strict=False))
    if held.link is not None:
        descriptors = {"links": held.link, **descriptors}
    if not all(_is_namespace(held.pid, descriptor) for descriptor in descriptors.values()):
        return {}
    user = ""
    if held.user is not None:
        user = f"--user=/proc/{held.pid}/fd/{held.user} --preserve-credentials "
    return {
        name: f"nsenter {user}--net=/proc/{held.pid}/fd/{descriptor}"
        for name, descriptor in descriptors.items()
    }


def _is_namespace(pid: int, descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("net:[")
    except OSError:
        return False


def lines(links: Links) -> Iterator[str]:
    """Lines that a shell takes: everything but commands is a comment."""
    yield f"# links: {one_line(links.backend)}"
    if not links.commands:
        yield "# no qdiscs: a process of the run shapes these links, and tc has nothing to show"
    for name, command in links.enter.items():
        where = "the links' own namespace" if name == "links" else name
        yield f"# into {where}: {command} COMMAND"
    if "links" in links.enter:
        yield f"# such as: {links.enter['links']} tc -s qdisc"
    for name, found in links.commands.items():
        yield f"# {name}"
        yield from found


def document(links: Links) -> dict[str, Any]:
    return links._asdict()
