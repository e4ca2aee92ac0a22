"""What modules may import and call, held by reading them and not by running them."""

import ast
import importlib
import re
from collections.abc import Iterator

import pytest
from sources import MODULES, ROOT, SOURCES, TENSORS, inside, of, parsed, read

from testbed import extras

WINGS = (
    *("testbed", "testbed.network", "testbed.processes", "testbed.links"),
    *("testbed.probing", "testbed.metering", "testbed.fidelity", "testbed.record"),
    *("testbed.transport", "testbed.run", "testbed.report", "testbed.exec"),
    *("testbed.calibration", "testbed.machine", "testbed.library"),
    *("methods", "nodes", "experiments", "cli"),
)
"""Each imports of those before it alone; ``testbed`` are the files at its top."""
UNPICKLERS = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("torch.load", "numpy.load"),
}
CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "builtins.eval", "builtins.exec"}
NETWORK_AND_TIME = {
    *("socket", "ssl", "select", "selectors", "http", "urllib", "requests", "zmq", "pyroute2"),
    *("time", "datetime", "sched", "signal", "os", "ctypes", "fcntl", "subprocess"),
    *("multiprocessing", "threading", "nodes.fleet", "nodes.peer", "testbed.links"),
    *(
        "testbed.transport.sockets",
        "testbed.processes.channel",
        "testbed.processes.child",
        "testbed.run.zygote",
    ),
    *("testbed.run.supervisor", "testbed.metering.meter"),
}


def wing(module: str) -> str:
    parts = module.split(".")
    if parts[0] != "testbed":
        return parts[0]
    inside = len(parts) > 2 or MODULES[module].endswith("/__init__.py")
    return ".".join(parts[:2]) if inside else "testbed"


def imported(name: str) -> Iterator[str]:
    """Modules of ours that a file imports anywhere, for types alone too."""
    for node in read(name).named:
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


def test_no_import_of_a_module_by_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has these modules below a name of its own, and rewrites ``from ... import``."""
    pytest.importorskip("hatchling")
    monkeypatch.syspath_prepend(str(ROOT))
    hatch = importlib.import_module("hatch_build")
    own = re.compile(rf"^\s*(?:from|import)\s+(?:{'|'.join(hatch.MODULES)})\b", re.MULTILINE)
    for name in SOURCES:
        assert not own.search(hatch.inside_package((ROOT / name).read_text())), name
    assert own.search("    from nodes import peer") and own.search("import cli")


@pytest.mark.parametrize("folder", ["testbed", "nodes", "methods", "experiments"])
def test_nothing_unpickles_or_evaluates(folder: str) -> None:
    for name in inside(folder):
        assert not of(read(name).imports, UNPICKLERS), name
        assert not read(name).calls & CALLS, name


def test_the_testbed_makes_bytes_of_tensors_at_one_place() -> None:
    packages = {name for names in extras.PACKAGES.values() for name in names}
    # The endpoints name their tensors' type, and one report is written by torch.
    others = {"testbed/transport/sockets.py", "testbed/report/tensorboard.py"}
    found = {name for name in inside("testbed") if of(read(name).imports, packages)}
    assert found == TENSORS | others


def test_methods_import_no_network_clock_or_namespace() -> None:
    for name in inside("methods"):
        assert not of(read(name).imports, NETWORK_AND_TIME), name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import dill.source",
        "from torch import load",
    ],
)
def test_an_import_is_seen(text: str) -> None:
    assert of(parsed(text).imports, UNPICKLERS)


def test_a_call_is_seen_and_what_only_sounds_like_it_is_left_alone() -> None:
    text = "x = [eval(a) for a in b]\ntorch.load(f)\nf(1)(2)\na[0].exec()"
    assert parsed(text).calls & CALLS == {"eval", "torch.load"}
    assert not parsed("model.eval()\nmethods.load(name)").calls & CALLS
    text = "import timeit\nfrom testbed.transport.wire import Message"
    assert not of(parsed(text).imports, NETWORK_AND_TIME)
