"""The exact set of packages: pins, their hashes, and the SBOM of what is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from importlib.metadata import Distribution, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from testbed import extras

ROOT = Path(__file__).parents[2]
LOCKED = ("requirements.txt", "requirements-torch.txt", "requirements-torch-cpu.txt")
HASH = r" \\\n    --hash=sha256:[0-9a-f]{64}"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


sbom, lock = script("sbom"), script("lock")


def pins(text: str) -> dict[str, Requirement]:
    found = [Requirement(line) for line in text.splitlines() if line and line[0] not in "# "]
    return {sbom.normal(each.name): each for each in found}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text())


def locked(name: str) -> dict[str, Requirement]:
    return pins(re.sub(r" \\\n.*", "", (ROOT / name).read_text()))


@pytest.mark.parametrize("name", LOCKED)
def test_each_package_has_its_hashes(name: str) -> None:
    text = (ROOT / name).read_text().removeprefix(lock.HEAD)
    entries = list(lock.entries(text))
    assert "".join(entries) == text and entries
    for entry in entries:
        assert re.fullmatch(rf"[a-z0-9._-]+==[^\s;]+( ; [^\n\\]+)?({HASH})+\n", entry), entry


def test_what_has_hashes_is_the_exact_set() -> None:
    """Beside it what torch has for CUDA, and what other platforms need."""
    everything, with_cuda, cpu = map(locked, LOCKED)
    one = everything | {"torch": with_cuda["torch"]}
    assert one.keys() >= CONSTRAINTS.keys()
    for name, found in one.items():
        if name in CONSTRAINTS:
            assert found.specifier == CONSTRAINTS[name].specifier, name
        else:
            assert found.marker is not None, f"{name} is in no line of constraints.txt"
    assert [str(each.specifier) for each in cpu.values()] == [f"{one['torch'].specifier}+cpu"]
    others = with_cuda.keys() - {"torch"}
    assert all(re.match("nvidia-|cuda-|triton$", name) for name in others)
    assert all("linux" in str(with_cuda[name].marker) for name in others)


def test_what_the_project_asks_for_is_pinned() -> None:
    """Without Ray, with which no tests have passed: a stand-in has its place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = dict(project["optional-dependencies"])
    assert extra.pop("hosts") == ["ray>=2.40"]
    asked = [project["dependencies"], *extra.values()]
    for one in (Requirement(text) for texts in asked for text in texts):
        if one.name == "wiretune":
            continue
        (pin,) = CONSTRAINTS[sbom.normal(one.name)].specifier
        assert pin.operator == "==" and one.specifier.contains(pin.version), one


def test_the_core_has_nothing_that_only_training_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core, extra = (
        {sbom.normal(Requirement(text).name) for text in texts}
        for texts in (project["dependencies"], project["optional-dependencies"]["train"])
    )
    assert {"torch", "peft", "safetensors", "huggingface-hub"} <= extra and not core & extra
    imported = {"PIL": "pillow"}
    known = {sbom.normal(imported.get(name, name)) for name in extras.PACKAGES["train"]}
    # The stage that compresses by it says so itself.
    assert known == extra - {"backports-zstd"}


# The SBOM


def test_it_has_what_is_installed_and_needed() -> None:
    found = sbom.document()
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    own = found["metadata"]["component"]
    assert (own["name"], own["version"]) == ("wiretune", version("wiretune"))
    parts = {each["name"].lower(): each for each in found["components"]}
    for name in ("msgspec", "pyzmq"):
        assert parts[name]["version"] == version(name) and parts[name]["scope"] == "required"
    # By way of others.
    assert parts["pygments"]["scope"] == "required" and "pip" not in parts
    assert parts["pytest"]["scope"] == "optional" and "sympy" in parts
    assert parts["torch"]["purl"].startswith("pkg:pypi/torch@2")
    assert "+" not in parts["torch"]["purl"]


def test_its_references_lead_somewhere() -> None:
    found = sbom.document()
    parts = [found["metadata"]["component"], *found["components"]]
    references = [each["bom-ref"] for each in parts]
    assert len(set(references)) == len(references)
    assert {each["ref"] for each in found["dependencies"]} == set(references)
    assert {ref for each in found["dependencies"] for ref in each["dependsOn"]} < set(references)
    assert json.dumps(sbom.document()) == json.dumps(found)


class Made(Distribution):
    def __init__(self, text: str) -> None:
        self._text = text

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("lines", "licences"),
    [
        (["License-Expression: MIT", "License: Other"], [{"expression": "MIT"}]),
        (["License: BSD-3-Clause"], [{"license": {"name": "BSD-3-Clause"}}]),
        (
            [
                *("License: Copyright (c) 2001 Somebody.", "        All rights reserved."),
                "Classifier: License :: OSI Approved :: BSD License",
            ],
            [{"license": {"name": "BSD License"}}],
        ),
        (["License: Copyright (c) 2001 Somebody.", "        All rights reserved."], None),
        ([], None),
    ],
)
def test_a_licence_is_a_name_and_no_text(lines: list[str], licences: object) -> None:
    found = Made("\n".join(["Name: a", "Version: 1", *lines]))
    assert sbom.component(found, "library", "required").get("licenses") == licences


def test_markers_and_extras_are_heeded() -> None:
    lines = ["Name: a", "Version: 1", "Requires-Dist: B[x]>=1", "Requires-Dist: c; extra == 'y'"]
    lines += [f"Requires-Dist: d; sys_platform != '{sys.platform}'"]
    found = Made("\n".join(lines))
    assert sbom.needs(found, set()) == {"b": {"x"}}
    assert sbom.needs(found, {"y"}) == {"b": {"x"}, "c": set()}
