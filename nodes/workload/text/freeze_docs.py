"""Freezes the texts of the `docs` data set: `python -m nodes.workload.text.freeze_docs`.

From wheels, whose code is read and not run: docstrings by sub-package, such as "scipy.stats".
"""

from __future__ import annotations

import ast
import inspect
import json
import lzma
import random
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import click

SHORTEST, LONGEST = 300, 6_000
"""Characters of a text that is kept."""
GROUP = 48_000
"""Characters of each sub-package; those with fewer are left out."""
_NOT_DOCUMENTATION = {"tests", "test", "testing", "externals", "_vendor", "conftest.py"}
_PRIVATE = ("._", ".utils")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def of_wheel(wheel: Path) -> dict[str, list[str]]:
    """Texts of a wheel by sub-package, in the order of its files."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".py"))
        return of_files({name: archive.read(name) for name in names})


def of_files(files: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Texts of modules, by their paths, by sub-package."""
    found: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for name, content in files.items():
        path = PurePosixPath(name)
        if _NOT_DOCUMENTATION & set(path.parts):
            continue
        group = ".".join(path.with_suffix("").parts[:2])
        for text in _texts(content):
            if text not in seen:
                seen.add(text)
                found[group].append(text)
    return dict(found)


def _texts(content: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        text = None
        if isinstance(node, _DOCUMENTED):
            text = ast.get_docstring(node)
        elif isinstance(node, ast.Call):
            # Functions of compiled modules are documented by a call.
            strings = [each.value for each in node.args if isinstance(each, ast.Constant)]
            longest = max((each for each in strings if isinstance(each, str)), key=len, default="")
            text = inspect.cleandoc(longest) if " " in longest else None
        if text and len(text) >= SHORTEST and text.isascii():
            yield text


def chosen(group: str, texts: list[str]) -> list[str]:
    """Texts of a group up to so many characters, in an order drawn from its name; none of few."""
    texts = [text for text in texts if len(text) <= LONGEST]
    if sum(map(len, texts)) < GROUP or any(part in group for part in _PRIVATE):
        return []
    random.Random(f"docs {group}").shuffle(texts)
    kept, size = [], 0
    for text in texts:
        if size + len(text) <= GROUP:
            kept.append(text)
            size += len(text)
    return kept


@click.command()
@click.argument("wheels", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(wheels: tuple[Path, ...], out: Path) -> None:
    """Write the texts of WHEELS as JSON lines, a group and a text each, compressed by xz."""
    lines = []
    for wheel in wheels:
        for group, texts in sorted(of_wheel(wheel).items()):
            lines += [json.dumps({"group": group, "text": text}) for text in chosen(group, texts)]
    content = "".join(f"{line}\n" for line in lines).encode()
    out.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    click.echo(f"{len(lines)} texts, {len(content):,} bytes; wrote {out.stat().st_size:,}")


if __name__ == "__main__":
    main()
