"""Runs over networks of one name that are not the same: told apart, and warned of in words."""

from pathlib import Path
from typing import Any

import pytest
from made_run import events, folder, summary
from msgspec.structs import replace

from testbed.report.compare import comparability, comparison
from testbed.report.compare.comparison import Run


def run(path: Path, used: str | None = "cubic", links: str = "userspace", **told: Any) -> Path:
    """A run; ``told``: fields of its "run" event."""
    found = events(profile=told.pop("profile", "4g"))
    for event in found:
        event |= told if event["event"] == "run" else {}
        event |= {"facts": {"backend": links}} if event["event"] == "links" else {}
    if used is not None:
        found.insert(-1, {"t": 98, "node": "server", "event": "connection", "congestion": used})
    return folder(path, found)


def compared(*paths: Path) -> tuple[list[str], list[str]]:
    found: list[Run] = comparison.runs(paths)
    notes = [note for note in comparability.notes(found) if not note.startswith("Links were not")]
    return notes, [row.where for row in comparison.compare(found, None)[0]]


PLACE = "4g with 2 clients, digits"
NOW, BEFORE = {"4g": "2 (5c144e)"}, {"4g": "1 (0f0f0f)"}


def test_other_versions_of_a_profile_are_warned_of_and_are_no_rivals(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / "a", profile_versions=NOW),
        run(tmp_path / "b", profile_versions=BEFORE),
        run(tmp_path / "c", profile_versions={}),
    ]
    notes, where = compared(*paths)
    assert notes == [
        "Profile 4g is not the same link in all runs: version 2 (5c144e) in a; version "
        "1 (0f0f0f) in b; version untold in c. Their minutes and bytes are not comparable."
    ]
    versions = ("2 (5c144e)", "1 (0f0f0f)", "untold")
    assert where == [f"{PLACE}, 4g of version {version}" for version in versions]


def test_a_version_is_that_of_a_profile_within_a_mix(tmp_path: Path) -> None:
    mix = {"profile": "4g:1,wifi:1"}
    paths = [
        run(tmp_path / "a", **mix, profile_versions=NOW | {"wifi": "1 (1833cb)"}),
        run(tmp_path / "b", **mix, profile_versions=BEFORE | {"wifi": "1 (1833cb)"}),
        run(tmp_path / "c", profile="3g", profile_versions={"3g": "1 (0c4bbc)"}),
    ]
    (note,), where = compared(*paths)
    assert note.startswith("Profile 4g is") and "wifi" not in note
    assert where[2] == "3g with 2 clients, digits"


def test_other_congestion_control_is_warned_of(tmp_path: Path) -> None:
    paths = [run(tmp_path / "a"), run(tmp_path / "b", "bbr")]
    notes, where = compared(*paths)
    assert notes == [
        "TCP's congestion control was not the same in all runs: cubic in a; bbr in b. "
        "Where a link loses packets or its delay varies, minutes differ by that alone."
    ]
    assert where == [f"{PLACE}, cubic", f"{PLACE}, bbr"]


def test_connections_of_earlier_versions_tell_it_too() -> None:
    from testbed.report.compare import different_networks

    run = replace(summary([]), profile="4g", links="netem")
    old = replace(run, connections={"bbr": 4})
    new = replace(run, connections={"cubic": 4}, congestion="cubic")
    assert different_networks.told_apart([old, new]) == [", bbr", ", cubic"]


@pytest.mark.parametrize(
    "others",
    [{}, {"used": None}, {"used": "bbr", "links": "loopback"}],
    ids=["alike", "never connected", "no TCP of its own"],
)
def test_the_same_network_is_warned_of_by_nobody(tmp_path: Path, others: dict[str, Any]) -> None:
    paths = [
        run(tmp_path / "a", profile_versions=NOW),
        run(tmp_path / "b", profile_versions=NOW, **others),
    ]
    notes, where = compared(*paths)
    assert not [note for note in notes if "Profile" in note or "congestion" in note]
    assert not [place for place in where if "version" in place or "cubic" in place]
