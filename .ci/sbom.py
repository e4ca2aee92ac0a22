"""The SBOM: what is installed for Wiretune, as CycloneDX JSON on standard output.

It is made from the metadata of the installed packages: those that Wiretune needs are "required",
those of its extras "optional". The same environment gives the same document, so it has no time.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement

NAME = "wiretune"


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def needs(found: Distribution, extras: set[str]) -> dict[str, set[str]]:
    """Packages that it needs with these extras, and the extras of each."""
    needed: dict[str, set[str]] = {}
    for text in found.requires or ():
        one = Requirement(text)
        asked = [{"extra": extra} for extra in ("", *sorted(extras))]
        if one.marker is None or any(one.marker.evaluate(each) for each in asked):
            needed.setdefault(normal(one.name), set()).update(one.extras)
    return needed


def reached(extras: set[str]) -> dict[str, tuple[Distribution, list[str]]]:
    """What is installed of all that Wiretune needs, by name, with what each needs itself."""
    found: dict[str, tuple[Distribution, list[str]]] = {}
    had: dict[str, set[str]] = {}
    waiting = {NAME: extras}
    while waiting:
        name, asked = waiting.popitem()
        try:
            own = distribution(name)
        except PackageNotFoundError:
            continue
        had[name] = had.get(name, set()) | asked
        needed = needs(own, had[name])
        found[name] = own, sorted(needed)
        for other, more in needed.items():
            if other not in had or not more <= had[other]:
                waiting[other] = waiting.get(other, set()) | more
    return found


def reference(found: Distribution) -> str:
    return f"pkg:pypi/{normal(found.metadata['Name'])}@{found.version.replace('+', '%2B')}"


def component(found: Distribution, kind: str, scope: str | None) -> dict[str, Any]:
    name = found.metadata["Name"]
    one: dict[str, Any] = {"type": kind, "bom-ref": reference(found), "name": name}
    one |= {"version": found.version, "purl": reference(found)}
    told = found.metadata.get_all("License-Expression")
    if told:
        one["licenses"] = [{"expression": told[0]}]
    else:
        names = found.metadata.get_all("License") or ()
        # Some have the licence's whole text there.
        names = [each for each in names if "\n" not in each.strip()]
        said = [*names, *_classified(found)]
        if said:
            one["licenses"] = [{"license": {"name": said[0].strip()[:200]}}]
    return one | ({} if scope is None else {"scope": scope})


def _classified(found: Distribution) -> list[str]:
    told = found.metadata.get_all("Classifier") or ()
    return [each.rpartition(" :: ")[2] for each in told if each.startswith("License ::")]


def document() -> dict[str, Any]:
    """Raises PackageNotFoundError where Wiretune itself is not installed."""
    own = distribution(NAME)
    required, everything = reached(set()), reached(set(own.metadata.get_all("Provides-Extra", [])))
    scopes = {name: "required" if name in required else "optional" for name in everything}
    others = {name: each for name, (each, _) in sorted(everything.items()) if name != NAME}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(own, "application", None)},
        "components": [component(each, "library", scopes[name]) for name, each in others.items()],
        "dependencies": [
            {
                "ref": reference(each),
                "dependsOn": [reference(everything[n][0]) for n in needed if n in everything],
            }
            for _, (each, needed) in sorted(everything.items())
        ],
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
    print()
