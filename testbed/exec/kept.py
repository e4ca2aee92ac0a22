"""Paths of private folders that a node's program is to find there still.

A node's /tmp is its own and empty, but where its user works in this machine's. What a command names
there is found in its text, where names may have spaces and be quoted: what is there tells how far a
name goes.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME")
"""Whose folders stay to be had."""
PRIVATE = ("/tmp", "/dev/shm")
"""Folders that each node has of its own, empty."""
LONGEST_NAME = 255
_NAME = re.compile(r"/[^\s'\"=:;,|&<>()]+")
_NAMES_END = re.compile(r"[\s'\"=:;,|&<>()]|\Z")


def kept_paths(
    folders: Iterable[str], words: Iterable[str], environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Paths inside private folders, none within another: ``folders`` of the program's own, and what
    its ``words`` or its ``environment`` name.

    A private folder itself is one where it is the first of ``folders``, in which the program
    starts. Of programs in X/bin it is X, by which they find what they need.
    """
    begins, *others = folders
    named = [begins, *others]
    for word in words:
        named += _named(word)
    for name in VARIABLES:
        named += environment.get(name, "").split(":")
    found: list[str] = []
    for path in sorted({_whole(Path(each)) for each in named if each.startswith("/")}):
        if (_inside(path) or path == begins in PRIVATE) and not any(
            path == above or path.startswith(f"{above}/") for above in found
        ):
            found.append(path)
    return tuple(found)


def _inside(path: str) -> bool:
    return path.startswith(tuple(f"{private}/" for private in PRIVATE))


def _whole(path: Path) -> str:
    """The installation that a program is of."""
    for above in (path, path.parent):
        if above.name == "bin" and _inside(str(above.parent)):
            return str(above.parent)
    return str(path)


def _named(text: str) -> Iterator[str]:
    """Paths that a word of a command names, which may be a shell's line; of what is not there yet,
    the folder that it will be in."""
    for each in (text, *(each for each in unquoted(text) if each not in text)):
        for found in _NAME.finditer(each):
            if _inside(found.group()):
                yield _there(each[found.start() :])


def unquoted(text: str) -> list[str]:
    """Words of what may be a shell's line; none of what is none."""
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _there(text: str) -> str:
    """The longest path at the beginning of ``text``, by names, that is there."""
    path = ""
    while text.startswith("/"):
        name, _, _ = text[1:].partition("/")
        ends = [len(name)] + [
            end.start() for end in _NAMES_END.finditer(name[: LONGEST_NAME + 1]) if end.start()
        ]
        for length in sorted(set(ends), reverse=True):
            if os.path.lexists(further := f"{path}/{name[:length]}"):
                break
        else:
            return path
        path, text = further, text[1 + length :]
    return path
