"""docs/events.md as data, so that tests can hold real events against it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOC = Path(__file__).parents[1] / "docs" / "events.md"
OF_ALL = {"t", "node", "event"}
_TYPES = {
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "map": (dict,),
    "list": (list,),
    "null": (type(None),),
    "list of lists": (list,),
    "list of strings": (list,),
    "list of numbers": (list,),
}


def documented() -> dict[str, dict[str, str]]:
    """By kind of event, each field's path and type."""
    found: dict[str, dict[str, str]] = {}
    for section in DOC.read_text().split("\n## ")[1:]:
        head, _, text = section.partition("\n")
        fields = {}
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("| `"):
                fields |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1])
        for kind in head.split(", "):
            found[kind] = fields
    return found


def undocumented(events: Iterable[dict[str, Any]]) -> list[str]:
    """What events have that the document lacks, or has as another type; empty where all is well."""
    kinds = documented()
    wrong = set()
    for event in events:
        kind = event["event"]
        if kind not in kinds:
            wrong.add(kind)
            continue
        for path, value in paths_of(event, kinds[kind]):
            told = kinds[kind].get(path)
            if path in OF_ALL:
                continue
            if told is None:
                wrong.add(f"{kind}.{path}")
            elif not isinstance(
                value, tuple(t for part in told.split(" or ") for t in _TYPES[part])
            ):
                wrong.add(f"{kind}.{path}: {value!r} is no {told}")
    return sorted(wrong)


def paths_of(value: dict[str, Any], known: dict[str, str], before: str = "") -> Iterable[Any]:
    for name, own in value.items():
        path = f"{before}{name}"
        if isinstance(own, dict) and path not in known:
            yield from paths_of(own, known, f"{path}.")
        elif isinstance(own, list) and path not in known and own and isinstance(own[0], dict):
            for each in own:
                yield from paths_of(each, known, f"{path}[].")
        elif not (isinstance(own, list) and any(each.startswith(f"{path}[]") for each in known)):
            yield path, own
