"""Parts of the docs that say what the code says: `python docs/generate.py` writes them anew.

Each stands between two comments that name it; the rest of its page is written by hand.
"""

import ast
import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from methods import payload  # noqa: E402
from methods.payload.chain import Chain  # noqa: E402
from testbed.record import events  # noqa: E402
from testbed.record.run_summary import Summary  # noqa: E402

ROOMS = ("testbed", "nodes", "methods", "experiments")
WIDTH = 30
"""Of a name with its indent."""


def main() -> None:
    for page, name, text in parts():
        path = ROOT / page
        path.write_text(replaced(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def parts() -> Iterator[tuple[str, str, str]]:
    """Of each part its page, its name and what belongs there."""
    yield "CONTRIBUTING.md", "map", f"```\n{house()}```\n"
    yield "docs/events.md", "kinds", kinds()
    yield "docs/summary.md", "fields", fields()
    yield "docs/stages.md", "stages", stages()


def between(page: str, name: str) -> tuple[str, str, str]:
    """What stands before a part, the part, and what follows.

    Raises:
        ValueError: the page does not name it once at its begin and once at its end.
    """
    before, begin, rest = page.partition(f"<!-- {name}: by docs/generate.py -->\n")
    part, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        raise ValueError(f"no part {name!r}")
    return before + begin, part, end + after


def replaced(page: str, name: str, text: str) -> str:
    before, _, after = between(page, name)
    return before + text + after


def house() -> str:
    """Every file, below its folder, by the first line of its docstring."""
    lines = [_line("cli.py", 0, first_line(ROOT / "cli.py"))]
    for room in ROOMS:
        lines += _room(Path(room), 0)
    return "".join(f"{line}\n" for line in lines)


def _room(folder: Path, depth: int) -> list[str]:
    files = sorted((ROOT / folder).glob("*.py"))
    folders = sorted(path.parent for path in (ROOT / folder).glob("*/__init__.py"))
    lines = [_line(f"{folder.name}/", depth, first_line(ROOT / folder / "__init__.py"))]
    for path in files:
        if path.name != "__init__.py":
            lines.append(_line(path.name, depth + 1, first_line(path)))
    for path in folders:
        lines += _room(path.relative_to(ROOT), depth + 1)
    return lines


def _line(name: str, depth: int, says: str) -> str:
    return f"{'  ' * depth + name:{WIDTH}} {says}"


def first_line(path: Path) -> str:
    """Of a file's docstring, without its full stop. ValueError where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path}: has no docstring")
    return text.partition("\n")[0].removesuffix(".").replace("``", "`")


def kinds() -> str:
    """Every kind of event and its fields, as tables."""
    return "\n".join(_kind(kind) for kind in events.KINDS)


def _kind(kind: type[events.Event]) -> str:
    own = {name: hint for name, hint in _hints(kind).items() if name not in ("t", "node")}
    table = _table(own)
    says = " ".join((kind.__doc__ or "").split())
    if not table:
        says += " It has no further fields."
    lines = [f"## {kind.__struct_config__.tag}", "", says, "", *table]
    return "\n".join(lines).rstrip("\n") + "\n"


def fields() -> str:
    """Every field of summary.json, a table for each at its top that has fields of its own."""
    plain: dict[str, Any] = {}
    parts = []
    for name, hint in _hints(Summary).items():
        rows = list(_rows(name, hint))
        if len(rows) == 1:
            plain[name] = hint
        else:
            parts.append("\n".join(["", f"## {name}", "", *_table({name: hint}), ""]))
    return "\n".join([*_table(plain), ""]) + "".join(parts)


def stages() -> str:
    """Every payload stage: its options with range and default, and what is known of its bytes."""
    rows = []
    for name in payload.names():
        chain = Chain([name])
        module = importlib.import_module(f"methods.payload.{name}")
        defaults = {each.name: each.default for each in msgspec.structs.fields(module.Options)}
        told = [_option(key, hint, defaults[key]) for key, hint in _hints(module.Options).items()]
        lossy = "yes" if chain.lossy else "no"
        length = "values" if chain.by_values else "shape"
        file = f"[`{name}`](../methods/payload/{name}.py)"
        rows.append(f"| {file} | {lossy} | {length} | {'; '.join(told)} |")
    return "\n".join(["| stage | loses | bytes go by | options |", "|---|---|---|---|", *rows, ""])


def _option(name: str, hint: Any, default: Any) -> str:
    words = {True: "true", False: "false", None: "by the others"}
    own = words[default] if default is None or isinstance(default, bool) else str(default)
    plain = get_args(hint)[0] if getattr(hint, "__metadata__", None) else hint
    if get_origin(plain) is Literal:
        return f"`{name}` {' or '.join(get_args(plain))} ({own})"
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, msgspec.Meta):
            return f"`{name}` {_range(extra)} ({own})"
    return f"`{name}` ({own})"


def _range(meta: msgspec.Meta) -> str:
    low = f"{meta.ge}" if meta.ge is not None else f"above {meta.gt}"
    if meta.le is None and meta.lt is None:
        return f"{low} or more"
    return f"{low} to {meta.le}" if meta.le is not None else f"{low} to below {meta.lt}"


def _table(hints: Mapping[str, Any]) -> list[str]:
    rows = [row for name, hint in hints.items() for row in _rows(name, hint)]
    return ["| field | type | what |", "|---|---|---|", *rows] if rows else []


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _rows(path: str, hint: Any) -> Iterator[str]:
    """A line of a field, or one of each of a structure's within it."""
    says, plain = "", hint
    while extra := getattr(plain, "__metadata__", None):
        says = next((each for each in extra if isinstance(each, str)), says)
        plain = get_args(plain)[0]
    parts = [part for part in _alternatives(plain) if part is not msgspec.UnsetType]
    inner = next((part for part in parts if _is_struct(part)), None)
    if inner is None and get_origin(parts[0]) is list and _is_struct(get_args(parts[0])[0]):
        inner, path = get_args(parts[0])[0], f"{path}[]"
    if inner is None:
        found = list(dict.fromkeys(_name(part) for part in parts))
        yield f"| `{path}` | {' or '.join(found)} | {says} |"
        return
    in_a_list = inner.__struct_config__.array_like
    for place, (name, own) in enumerate(_hints(inner).items()):
        yield from _rows(f"{path}[{place}]" if in_a_list else f"{path}.{name}", own)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for part in get_args(hint) for inner in _alternatives(part)]
    return [hint]


def _name(hint: Any) -> str:
    """A type as JSON has it."""
    if getattr(hint, "__metadata__", None):
        return _name(get_args(hint)[0])
    origin = get_origin(hint) or hint
    if origin is Literal:
        return "string"
    if origin is list:
        return f"list of {_name(get_args(hint)[0])}s"
    if issubclass(origin, Mapping):
        return "map"
    if issubclass(origin, tuple):
        return "list"
    return {bool: "boolean", int: "number", float: "number", str: "string"}.get(origin, "null")


if __name__ == "__main__":
    main()
