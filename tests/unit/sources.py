"""Sources of the project as laws read them: each parsed and walked once for all that is asked."""

import ast
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("testbed", "nodes", "methods", "experiments")
TENSORS = {"testbed/transport/wire.py", "testbed/transport/gloo.py"}
"""What makes bytes of tensors, for nodes alone; with torch in it, as they have."""
Named = ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """What laws may ask of a file."""

    named: list[Named]
    """What it imports, and what has a name and a docstring there."""
    calls: set[str]
    """Every plain or dotted name that it calls."""
    attributes: list[tuple[int, str, str]]
    """Line, name and attribute of each attribute of a plain name."""

    @property
    def imports(self) -> set[str]:
        """Every module that it imports anywhere, and every name that it takes out of one."""
        found = set()
        for node in self.named:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module and not node.level, "imports are absolute here"
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found


def kept(*folders: str) -> list[str]:
    """Files of the repository, and those that are yet to be added, from its top."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in found.stdout.split("\n") if name and (ROOT / name).exists()]


SOURCES = [name for name in kept(*ROOMS, "cli.py") if name.endswith(".py")]
MODULES = {
    name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in SOURCES
}


def inside(*folders: str) -> list[str]:
    """Those of ``SOURCES`` that lie in these folders."""
    found = [name for name in SOURCES if name.startswith(tuple(f"{each}/" for each in folders))]
    assert len(found) >= 5, "the walk has lost its way"
    return found


def of(found: set[str], forbidden: set[str]) -> set[str]:
    """Those of ``found`` that are a forbidden module or lie in one."""
    return {name for name in found if any(f"{name}.".startswith(f"{bad}.") for bad in forbidden)}


@functools.cache
def read(name: str) -> Source:
    return parsed((ROOT / name).read_text())


def parsed(text: str) -> Source:
    named: list[Named] = []
    calls = set()
    attributes = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=func):
                calls.add(_dotted(func))
            case ast.Attribute(value=ast.Name(id=name)):
                attributes.append((node.lineno, name, node.attr))
            case _ if isinstance(node, Named):
                named.append(node)
    return Source(named, calls - {""}, attributes)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    before = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return before and f"{before}.{node.attr}"  # type: ignore[attr-defined]
