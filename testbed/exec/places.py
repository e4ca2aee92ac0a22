"""Places in a node's own folder that come from another host, and how much may.

A path is bytes, as the system has it. What is checked here is checked where a folder is read, so
that what is left out can be told, and again where it is written: there whoever sent it may lie.
"""

MOST_BYTES = 1 << 30
"""Of a node's files in a run."""
MOST_PLACES = 10_000
"""Files, folders and links of a node's."""
MOST_DEEP = 64
"""Folders within one another."""
MOST_PATH_BYTES = 4096
_MOST_NAME_BYTES = 255
_HERE, _ABOVE = b".", b".."


def names(path: bytes) -> list[bytes]:
    """The folders on the way to a place, and its own name.

    Raises:
        ValueError: it is no place in any folder; the text says why.
    """
    found = path.split(b"/")
    if len(path) > MOST_PATH_BYTES or len(found) > MOST_DEEP:
        raise ValueError("a path that is too long")
    for name in found:
        if name in (b"", _HERE, _ABOVE) or b"\0" in name or len(name) > _MOST_NAME_BYTES:
            raise ValueError("a path that is none within a folder")
    return found


def leads_out(link: bytes, target: bytes) -> bool:
    """Whether the link at that path may lead out of the folder.

    What goes up goes no further than to the folder, and nothing goes up again after a name, which
    may be another link's; so does no chain of such links lead out.
    """
    steps = target.split(b"/")
    ups = 0
    while ups < len(steps) and steps[ups] == _ABOVE:
        ups += 1
    if not target or len(target) > MOST_PATH_BYTES or b"\0" in target or ups > link.count(b"/"):
        return True
    return target.startswith(b"/") or _ABOVE in steps[ups:]
