"""Differences of networks that no name tells: a profile's version, and congestion control."""

import re
from collections import defaultdict
from collections.abc import Sequence

from testbed.record.run_summary import Summary
from testbed.report.text import few

UNTOLD = "untold"
"""The version of a profile in a run that was made before versions were recorded."""


def told_apart(runs: Sequence[Summary]) -> list[str]:
    """A text for each run, to be put after its place, that tells its network from the others'; ""
    where they are alike."""
    versions, controls = _versions(runs), _controls(runs)
    found = []
    for n in range(len(runs)):
        parts = [f"{name} of version {each[n]}" for name, each in versions.items() if n in each]
        parts += [controls[n]] if n in controls else []
        found.append("".join(f", {part}" for part in parts))
    return found


def notes(runs: Sequence[Summary], names: Sequence[str]) -> list[str]:
    """Warnings, in sentences; ``names`` are the runs'."""
    said = [
        f"Profile {profile} is not the same link in all runs: "
        f"{_by_value(each, names, 'version ')}. Their minutes and bytes are not comparable."
        for profile, each in _versions(runs).items()
    ]
    if controls := _controls(runs):
        said.append(
            f"TCP's congestion control was not the same in all runs: {_by_value(controls, names)}. "
            "Where a link loses packets or its delay varies, minutes differ by that alone."
        )
    return said


def _by_value(values: dict[int, str], names: Sequence[str], before: str = "") -> str:
    """ "bbr in a, b; cubic in c" """
    runs: dict[str, list[str]] = defaultdict(list)
    for n, value in values.items():
        runs[value].append(names[n])
    return "; ".join(f"{before}{value} in {few(own)}" for value, own in runs.items())


def _versions(runs: Sequence[Summary]) -> dict[str, dict[int, str]]:
    """Versions of each profile that has several, by the run's number."""
    told = [run.profile_versions for run in runs]
    found: dict[str, dict[int, str]] = {}
    for name in dict.fromkeys(name for versions in told for name in versions):
        own = {n: versions[name] for n, versions in enumerate(told) if name in versions}
        for n, run in enumerate(runs):
            if not told[n] and name in _profiles(run):
                own[n] = UNTOLD
        if len(set(own.values())) > 1:
            found[name] = own
    return found


def _profiles(run: Summary) -> set[str]:
    """Names of a run's profiles out of its mix, as "4g:12,wifi:5"."""
    mix = [run.profile, run.server_profile]
    return {name for text in mix if text for name in (text, *re.split("[:,]", text))}


def _controls(runs: Sequence[Summary]) -> dict[int, str]:
    """The congestion control in each run that has one; empty where all have the same."""
    found = {}
    for n, run in enumerate(runs):
        # Runs of earlier versions only counted it.
        counted = ", ".join(sorted(run.connections))
        used = run.congestion or counted
        if used and run.links != "loopback":
            found[n] = used
    return found if len(set(found.values())) > 1 else {}
