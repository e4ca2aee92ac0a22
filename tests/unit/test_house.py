"""The house's laws: where things stand, what may import what, and what docs say of it."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("testbed", "nodes", "methods", "experiments")
WINGS = (
    *("testbed", "testbed.network", "testbed.processes", "testbed.links"),
    *("testbed.probing", "testbed.metering", "testbed.fidelity", "testbed.record"),
    *("testbed.transport", "testbed.run", "testbed.report", "testbed.exec"),
    *("testbed.calibration", "testbed.machine", "testbed.library"),
    *("methods", "nodes", "experiments", "cli"),
)
"""Each imports of those before it alone; ``testbed`` are the files at its top."""
MOST_LINES = 400
LONGER = {
    "nodes/fleet.py": "one side of the method contract, whole",
    "testbed/record/events.py": "the schema of every kind of event",
    "testbed/record/summary.py": "one builder, an event after the other",
    "testbed/run/config.py": "every field of a run, with what its option says",
}
"""Files of more lines, and why."""


def kept(*folders: str) -> list[str]:
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


def wing(module: str) -> str:
    parts = module.split(".")
    if parts[0] != "testbed":
        return parts[0]
    inside = len(parts) > 2 or MODULES[module].endswith("/__init__.py")
    return ".".join(parts[:2]) if inside else "testbed"


Named = ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def nodes_of(name: str) -> list[Named]:
    """What a file imports and what has a docstring there, read once for all that is asked of it."""
    found = ast.walk(ast.parse((ROOT / name).read_text()))
    return [node for node in found if isinstance(node, Named)]


def imported(name: str) -> Iterator[str]:
    """Modules of ours that a file imports anywhere, for types alone too."""
    for node in nodes_of(name):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                found = inner if inner in MODULES else node.module
                if found in MODULES:
                    yield found
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in MODULES)


def test_a_file_imports_from_wings_before_its_own() -> None:
    found = {}
    for module, name in MODULES.items():
        before = WINGS[: WINGS.index(wing(module)) + 1]
        found[name] = [other for other in imported(name) if wing(other) not in before]
    assert {name: others for name, others in found.items() if others} == {}


def test_every_wing_has_its_place() -> None:
    assert {wing(module) for module in MODULES} == set(WINGS)


def test_files_of_a_folder_import_one_another_in_no_circle() -> None:
    """A package's files may know its ``__init__`` for types, which imports them."""
    left = {
        module: {other for other in imported(name) if MODULES[other][-11:] != "__init__.py"}
        for module, name in MODULES.items()
    }
    while free := [module for module, needs in left.items() if not needs & left.keys() - {module}]:
        for module in free:
            del left[module]
    assert sorted(left) == []


def test_a_long_file_has_its_reason() -> None:
    lengths = {name: (ROOT / name).read_text().count("\n") for name in SOURCES}
    assert {name for name, count in lengths.items() if count > MOST_LINES} == set(LONGER)


def test_docs_have_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate

    parts = list(generate.parts())
    for page, name, text in parts:
        _, found, _ = generate.between((ROOT / page).read_text(), name)
        assert found == text, f"{page}: {name} is not as the code is; run docs/generate.py"
    house = dict((name, text) for _, name, text in parts)["map"]
    for name in SOURCES:
        leaf = Path(name).parent.name + "/" if name.endswith("__init__.py") else Path(name).name
        assert re.search(rf"^ *{re.escape(leaf)} ", house, re.M), name


def test_what_docs_and_comments_name_is_there() -> None:
    """Paths from the top of the repository, in our own words: not in profiles' sources."""
    path = re.compile(r"(?<![\w/.:-])(?:" + "|".join(ROOMS) + r"|tests|benchmarks|docs)/[\w./-]*\w")
    wrong = []
    for name in kept():
        if not name.endswith((".py", ".md", "Makefile")) or name.startswith("netem_profiles/"):
            continue
        for found in path.findall((ROOT / name).read_text()):
            if not (ROOT / found).exists() and not (ROOT / f"{found}.py").exists():
                wrong.append(f"{name}: {found}")
    made_up = {"NAME", "halves", "methods/fedavg"}
    assert [each for each in wrong if not any(word in each for word in made_up)] == []


def test_no_import_of_a_module_by_a_name_that_is_none() -> None:
    """A wheel has these modules below a name of its own, and rewrites ``from ... import``."""
    sys.path.insert(0, str(ROOT))
    try:
        hatch = pytest.importorskip("hatchling") and __import__("hatch_build")
    finally:
        sys.path.remove(str(ROOT))
    for name in SOURCES:
        inside = hatch.inside_package((ROOT / name).read_text())
        for node in ast.walk(ast.parse(inside)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                assert node.module.partition(".")[0] not in hatch.MODULES, name


INVERTED = {
    *("As", "At", "Between", "By", "For", "From", "In", "Into", "Of", "On", "Once", "Out", "To"),
    *("What", "Where", "Who", "Whose", "With"),
}


def test_a_docstring_begins_with_its_subject() -> None:
    """Of events, whose docs say first by whom they come, the kinds are left out."""
    found = []
    for name in SOURCES:
        for node in nodes_of(name):
            if isinstance(node, ast.Import | ast.ImportFrom):
                continue
            says = ast.get_docstring(node) or "-"
            is_kind = name == "testbed/record/events.py" and says.startswith("By ")
            if says.split()[0] in INVERTED and not is_kind:
                found.append(f"{name}: {node.name}: {says.splitlines()[0]}")
    assert found == []


def test_tests_that_run_alone_are_where_make_test_looks_for_them() -> None:
    (folders,) = re.findall(r"^QUIET := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    mark = ".".join(("pytest", "mark", "quiet"))
    marked = [name for name in kept("tests/*.py") if mark in (ROOT / name).read_text()]
    assert marked
    assert [name for name in marked if not name.startswith(tuple(folders.split()))] == []
