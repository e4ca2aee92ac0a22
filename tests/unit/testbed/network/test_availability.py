"""When clients are away: what files and means say, and what is refused."""

import math
import statistics
from pathlib import Path

import pytest

from testbed.config_error import ConfigError
from testbed.network import availability
from testbed.network.availability import Away, load
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.topology import plan

FOREVER = math.inf


def read(folder: Path, name: str, text: str) -> list[tuple[Away, ...]]:
    """Of three clients."""
    file = folder / name
    file.write_text(text)
    return load(str(file), 3, 0, 1000)


def test_a_toml_file_names_clients_and_times(tmp_path: Path) -> None:
    text = """
        [[away]]
        clients = [1, 3]
        at_s = 30
        for_s = 60
        [[away]]
        at_s = 200
    """
    both, always = (30.0, 90.0), (200.0, FOREVER)
    assert read(tmp_path, "a.toml", text) == [(both, always), (always,), (both, always)]


def test_a_csv_file_is_a_trace(tmp_path: Path) -> None:
    text = "client,leaves_s,returns_s\n2,45.5,\n1,30,90\n1, 5 , 6\n"
    assert read(tmp_path, "a.csv", text) == [((5, 6), (30, 90)), ((45.5, FOREVER),), ()]


def test_times_that_overlap_or_touch_are_one(tmp_path: Path) -> None:
    text = "client,leaves_s,returns_s\n1,10,30\n1,20,25\n1,30,40\n1,50,60\n"
    assert read(tmp_path, "a.csv", text)[0] == ((10, 40), (50, 60))


def test_drawn_times_have_their_means_and_depend_on_seed_and_client_alone() -> None:
    away = load("on:30,off:10", 200, 7, 3600)
    assert away == load("on:30,off:10", 200, 7, 3600)
    assert away[:5] == load("on:30,off:10", 5, 7, 3600)
    assert away != load("on:30,off:10", 200, 8, 3600) and away[0] != away[1]
    off = [ends - begins for own in away for begins, ends in own]
    assert statistics.fmean(off) == pytest.approx(10, rel=0.05)
    assert sum(off) / (200 * 3600) == pytest.approx(0.25, abs=0.02)
    # A quarter is away at the beginning too.
    assert sum(own[0][0] == 0 for own in away) == pytest.approx(50, abs=20)
    assert all(begins < 3600 for own in away for begins, _ in own)


def test_a_file_may_draw_for_some(tmp_path: Path) -> None:
    text = "[churn]\nclients = [2]\non_s = 5\noff_s = 5\n[[away]]\nclients = [3]\nat_s = 1\n"
    none, drawn, given = read(tmp_path, "a.toml", text)
    assert none == () and len(drawn) > 50 and given == ((1, FOREVER),)
    assert drawn == load("on:5,off:5", 3, 0, 1000)[1]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.toml", "", "must be \\[\\[away\\]\\] entries, or \\[churn\\] be there"),
        ("a.toml", "[[away]]\nclients = [1]", "away entry 1: at_s = None.*it is missing"),
        ("a.toml", "[[away]]\nat_s = -1", "at_s = -1: must be 0 to 1000000 seconds"),
        ("a.toml", "[[away]]\nat_s = 1\nfor_s = 0", "for_s = 0: must be above 0 s"),
        ("a.toml", "[[away]]\nat_s = 1\nclients = [4]", "4 is no client; .* 1 to 3"),
        ("a.toml", "[[away]]\nat_s = 1\nclients = [true]", "True is no client"),
        ("a.toml", "[[away]]\nat_s = 1\nclients = 2", "must be a list of client numbers"),
        ("a.toml", "[[away]]\nat = 1", "at = 1: is no key here: did you mean at_s"),
        ("a.toml", "away = 3", "away = 3: must be"),
        ("a.toml", "[churn]\non_s = 5", "churn: off_s = None.*it is missing"),
        ("a.toml", "[churn]\non_s = 0\noff_s = 5", "on = 0: must be 0.1 to"),
        ("a.toml", "[churn", "is not TOML"),
        ("a.csv", "1,2,3\n", "first line must be client,leaves_s,returns_s"),
        ("a.csv", "client,leaves_s,returns_s\n1,2\n", "line 2: '1,2': must be"),
        ("a.csv", "client,leaves_s,returns_s\n\n1,2,3\n\n\n1,2\n", "line 6: '1,2': must be"),
        ("a.csv", "client,leaves_s,returns_s\n9,2,3\n", "client = '9': must be 1 to 3"),
        ("a.csv", "client,leaves_s,returns_s\n1,x,3\n", "leaves_s = 'x': must be 0 to"),
        ("a.csv", "client,leaves_s,returns_s\n1,nan,3\n", "leaves_s = nan: must be 0 to"),
        ("a.csv", "client,leaves_s,returns_s\n1,1_0,20\n", "leaves_s = '1_0': must be 0 to"),
        ("a.csv", "client,leaves_s,returns_s\n1,1,٣\n", "returns_s = '٣': must be 0 to"),
        ("a.csv", "client,leaves_s,returns_s\n", "no line after the first"),
        ("a.csv", "client,leaves_s,returns_s\n\n\n", "no line after the first"),
        ("a.csv", "client,leaves_s,returns_s\n1,3,3\n", "returns_s = 3: must be after leaves_s"),
    ],
)
def test_a_wrong_file_is_refused_with_place_value_and_remedy(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        read(tmp_path, name, text)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("on:120", "must be as on:120,off:30"),
        ("on:x,off:3", "on must be seconds"),
        ("on:inf,off:3", "on = inf: must be"),
        ("on:1_0,off:3", "on must be seconds"),
        ("on:1,off:٣", "off must be seconds"),
        ("on:1,off:nan", "off = nan: must be"),
        ("on:0.1,off:0.1", "times to draw .* take longer means"),
        ("churn", "must be on:120,off:30"),
        ("no.csv", "cannot read it: No such file"),
    ],
)
def test_wrong_words_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(text, 20, 0, 86400)


# In a plan

FAST, SLOW = Direction(rate_kbit=900), Direction(rate_kbit=100)


def test_a_client_that_is_away_has_no_link_and_then_what_its_schedule_says() -> None:
    profile = LinkProfile(name="p", up=FAST, down=FAST, schedule=(State(5, SLOW, FAST),))
    layout = plan([profile, profile], away=[((2, 8), (20, FOREVER)), ()])
    first, second = layout.clients
    assert first.away == ((2, 8), (20, FOREVER)) and second.away == ()
    assert second.profile is profile
    assert first.profile is not None
    told = [
        (state.at_s, state.up.outage, state.down.outage, state.up.rate_kbit)
        for state in first.profile.schedule
    ]
    assert told == [(2, True, True, 900), (8, False, False, 100), (20, True, True, 100)]


@pytest.mark.parametrize("ending", ["toml", "csv"])
def test_more_times_than_a_run_can_hold_are_refused_as_drawn_ones_are(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "MOST_CHANGES", 6)
    head, row, place = {
        "toml": ("", "[[away]]\nat_s = 5\nfor_s = 1\n", "away entry 2"),
        "csv": ("client,leaves_s,returns_s\n", "1,5,6\n2,5,6\n3,5,6\n", "line 5"),
    }[ending]
    assert read(tmp_path, f"a.{ending}", head + row) == [((5, 6),)] * 3
    with pytest.raises(ConfigError, match=f"{place}: makes more than 3 times away of all clients"):
        read(tmp_path, f"a.{ending}", head + 2 * row)
