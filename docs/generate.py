"""Parts of the docs that say what the code says: `python docs/generate.py` writes them anew.

Each stands between two comments that name it; the rest of its page is written by hand.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


if __name__ == "__main__":
    main()
