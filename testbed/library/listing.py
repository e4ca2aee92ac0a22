"""Listings of networks that stay, and of the nodes of one, as tables."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.table import Table

from testbed.library.lines import About


class Listed(NamedTuple):
    """A network by its folder; None where its keeper did not say what it is."""

    folder: Path
    about: About | None


def networks(found: Iterable[Listed]) -> Table:
    shown = Table("network", "profile", "links", "checked", "up since", title_justify="left")
    for name in ("clients", "programs"):
        shown.add_column(name, justify="right")
    for folder, about in found:
        if about is None:
            shown.add_row(folder.name, "begins or ends", *[""] * 5)
            continue
        links = about.links.removeprefix("links: ").split()[0].rstrip(",")
        programs = sum(node.programs for node in about.nodes)
        counts = [str(len(about.nodes) - 1), str(programs)]
        checked = about.verdict or ""
        shown.add_row(folder.name, _mix(about), links, checked, about.began, *counts)
    return shown


def _mix(about: About) -> str:
    counts = Counter(node.profile for node in about.nodes[1:])
    if len(counts) == 1:
        return str(*counts)
    return ",".join(f"{name}:{count}" for name, count in counts.items())


def nodes(about: About) -> Table:
    shown = Table("node", "address", "link", title_justify="left")
    for name in ("bytes up", "bytes down"):
        shown.add_column(name, justify="right")
    for node in about.nodes:
        link = node.profile or "without limits"
        shown.add_row(node.name, node.address, link, str(node.up), str(node.down))
    return shown


def data(found: Iterable[Listed]) -> list[dict[str, Any]]:
    """The same as ``networks``, for scripts."""
    return [
        {"name": folder.name, "folder": str(folder), **(msgspec.to_builtins(about) or {})}
        for folder, about in found
    ]
