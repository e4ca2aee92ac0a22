"""From a configuration to its clients' links: mixes, positions, schedules, and their quarrels."""

import re
from pathlib import Path
from typing import Any

import pytest

from testbed.config_error import ConfigError
from testbed.network import profiles
from testbed.network.direction import Direction
from testbed.network.schedule import State
from testbed.run import client_links as access
from testbed.run.client_links import client_links, repeatable
from testbed.run.config import DEFAULT_CLIENTS, DEFAULT_PROFILE, RunConfig, load, write

OWN = """\
title = "Mine"
summary = "A link of my own."
sources = ["nobody"]
[up]
trace = "x.up"
[down]
rate_kbit = 8000
[provenance]
up.trace = "assumed: for a test"
down.rate_kbit = "assumed: for a test"
"""
SCHEDULED = OWN.replace(
    "[provenance]",
    '[[schedule]]\nat_s = 4\ndown = { bw = 1 }\n[provenance]\nschedule = "assumed: for a test"',
)
POSITIONS = """\
[access_point]
position = [0, 0, 0]
mode = "g"
range_m = 100
[[station]]
position = [10, 0, 0]
[[station]]
path = [[0, 10, 0, 0], [1, 20, 0, 0]]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "x.up": "10\n",
        "own.toml": OWN,
        "scheduled.toml": SCHEDULED,
        "walk.toml": POSITIONS,
        "some.toml": "schedule = [{ at_s = 2, up = { bw = 1 }, clients = [2] }]",
        "all.toml": "schedule = [{ at_s = 2, outage_s = 3 }]",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        client_links(RunConfig(**fields))
    return str(caught.value)


def names(**fields: Any) -> list[str]:
    return [profile.name for profile in client_links(RunConfig(**fields))]


def test_without_a_word_it_is_the_default() -> None:
    assert names() == [DEFAULT_PROFILE] * DEFAULT_CLIENTS


def test_a_mix_or_positions_give_the_clients(folder: Path) -> None:
    wifi, own, again = names(profile="wifi:1,own.toml:2")
    assert wifi == "wifi" and own == again and re.fullmatch("own@[0-9a-f]{6}", own)
    walk = names(positions="walk.toml")
    assert walk == names(positions="walk.toml", clients=2) and walk[0].startswith("walk@")


def test_profile_and_positions_together_are_refused(folder: Path) -> None:
    text = refusal(profile="wifi", positions="walk.toml")
    assert "positions = 'walk.toml'" in text and "profile = 'wifi'; leave one out" in text


def test_clients_must_agree_with_the_stations(folder: Path) -> None:
    text = refusal(positions="walk.toml", clients=3)
    assert text.startswith("clients = 3: walk.toml has 2 stations, one a client; make them agree")


def test_a_schedule_is_for_all_clients_or_those_it_names(folder: Path) -> None:
    wifi = profiles.load("wifi")
    one, two, three = client_links(RunConfig(profile="wifi", clients=3, schedule="some.toml"))
    assert one == three == wifi
    up = Direction(rate_kbit=1000, delay_ms=12.5, jitter_ms=5)
    assert two.schedule == (State(2, up, wifi.down),)
    cut = client_links(RunConfig(profile="wifi:2,own.toml:1", schedule="all.toml"))
    assert [[state.at_s for state in profile.schedule] for profile in cut] == [[2, 5]] * 3
    assert cut[0].schedule is cut[1].schedule
    # Each client's own link goes on after it.
    assert cut[2].schedule[1] == State(5, cut[2].up, cut[2].down)


def test_two_schedules_for_one_client_are_refused(folder: Path) -> None:
    text = refusal(profile="wifi:1,scheduled.toml:2", schedule="some.toml")
    assert text.startswith(
        "some.toml: schedule entry 1: client 2 has a schedule already, that of scheduled@"
    )
    # A station that moves has one, too; one that stands does not.
    assert "that of walk" in refusal(positions="walk.toml", schedule="all.toml")
    assert names(profile="scheduled.toml:1,wifi:1", schedule="some.toml") == [
        profiles.load("scheduled.toml").name,
        "wifi",
    ]


def test_a_mistake_in_a_step_names_the_file(folder: Path) -> None:
    (folder / "bad.toml").write_text("schedule = [{ at_s = 2, up = { loss = 200 } }]")
    text = refusal(profile="wifi", schedule="bad.toml")
    assert text.startswith("bad.toml: schedule entry 1: up.loss = 200: is loss_percent = 200: ")


def test_a_schedule_for_a_client_that_is_not_there_is_refused(folder: Path) -> None:
    text = refusal(profile="wifi", clients=1, schedule="some.toml")
    assert text.startswith("some.toml: schedule entry 1: clients = [2]: 2 is no client")


# The same run again


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"profile": "own.toml:1,wifi:1", "server_profile": "scheduled.toml"},
        {"profile": "own.toml", "schedule": "all.toml"},
        {"positions": "walk.toml"},
    ],
    ids=str,
)
def test_what_is_written_is_the_same_run_from_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    config = RunConfig(**fields)
    links = client_links(config)
    write(repeatable(config), folder / "config.toml")
    monkeypatch.chdir("/")
    again = load(folder / "config.toml", {})
    assert client_links(again) == links
    assert repeatable(again) == again
    if config.server_profile:
        assert profiles.load(again.server_profile or "").name.startswith("scheduled@")


def test_a_path_with_a_mixs_own_marks_is_quoted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awkward = folder / "a,b:c"
    awkward.mkdir()
    monkeypatch.chdir(awkward)
    for name in ("own.toml", "x.up"):
        (awkward / name).write_text((folder / name).read_text())
    again = profiles.absolute_mix("own.toml:2,wifi:1")
    assert again == f'"{awkward}/own.toml":2,wifi:1'
    monkeypatch.chdir("/")
    assert [one.name[:4] for one in profiles.parse_mix(again)] == ["own@", "own@", "wifi"]
    # Unquoted too, where the file is there.
    assert profiles.parse_mix(f"{awkward}/own.toml:2,wifi:1") == profiles.parse_mix(again)


def test_stations_that_stand_take_a_schedule(folder: Path) -> None:
    (folder / "still.toml").write_text(POSITIONS[: POSITIONS.rindex("[[station]]")])
    (link,) = access.client_links(RunConfig(positions="still.toml", schedule="all.toml"))
    assert [state.at_s for state in link.schedule] == [2, 5]
