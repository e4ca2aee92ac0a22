"""Wi-Fi by distance: Mininet-WiFi's numbers, movement in steps, and what each mistake is told."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed.config_error import ConfigError
from testbed.network import positions
from testbed.network.direction import Direction
from testbed.network.positions import wifi
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State

POINT = "[access_point]\nposition = [0, 0, 0]\nmode = 'g'\nrange_m = 100\n"


def links(text: str) -> list[LinkProfile]:
    return positions.profiles("walk", tomllib.loads(text))


def cut(direction: Direction) -> Direction:
    return msgspec.structs.replace(direction, outage=True)


# Distance


@pytest.mark.parametrize(
    ("distance", "mbit", "latency_ms", "loss_percent"),
    [(10, 9.9582, 0.5, 0), (50, 6.6884, 2.5, 0), (100, 4.0668, 5, 0.2)],
)
def test_mode_g_is_as_mininet_wifi_has_it(
    distance: float, mbit: float, latency_ms: float, loss_percent: float
) -> None:
    link = wifi("g", distance)
    assert link.rate_kbit == pytest.approx(1000 * mbit, abs=0.051)
    assert (link.delay_ms, link.loss_percent) == (latency_ms, loss_percent)


@pytest.mark.parametrize(
    ("mode", "mbit"), [("a", 11), ("b", 3), ("g", 11), ("n", 600), ("ac", 1000), ("ax", 1000)]
)
def test_at_the_access_point_each_mode_has_its_rate(mode: str, mbit: int) -> None:
    assert wifi(mode, 0) == Direction(rate_kbit=1000 * mbit)


def test_small_figures_are_none_and_the_rate_has_a_floor() -> None:
    # A latency of 0.1 ms and a loss of 0.1 % are left out: both must be more.
    assert wifi("g", 2).delay_ms == 0 and wifi("g", 2.2).delay_ms == 0.11
    assert wifi("g", 50).loss_percent == 0 and wifi("g", 55).loss_percent == 0.1
    # 11 * 1.01^-473 = 0.0994
    assert wifi("g", 473).rate_kbit == 100 and wifi("g", 472).rate_kbit == pytest.approx(100.4)


# Standing and moving


def test_a_station_that_stands_has_one_link_for_good() -> None:
    (profile,) = links(POINT + "[[station]]\nposition = [30, 40, 0]")
    assert profile == LinkProfile(name="walk", up=wifi("g", 50), down=wifi("g", 50))


def test_a_height_may_be_left_out() -> None:
    flat, high = links(POINT + "[[station]]\nposition = [3, 4]\n[[station]]\nposition = [0, 3, 4]")
    assert flat == high


def test_between_waypoints_a_station_moves_straight_and_evenly() -> None:
    (profile,) = links(
        POINT + "[[station]]\npath = [[2, 10, 0, 0], [4, 30, 0, 0], [5, 30, 0, 0], [7, 30, 40, 0]]"
    )
    assert profile.up == profile.down == wifi("g", 10)
    # At 3 s half of the way, then a stop until 5 s, then over (30, 20) to (30, 40).
    distances = {3: 20, 4: 30, 6: (30**2 + 20**2) ** 0.5, 7: 50}
    expected = [(at_s, wifi("g", metres)) for at_s, metres in distances.items()]
    assert profile.schedule == tuple(State(at_s, link, link) for at_s, link in expected)


def test_the_last_step_ends_at_the_last_waypoint() -> None:
    (profile,) = links("step_s = 2\n" + POINT + "[[station]]\npath = [[0, 0, 0], [5, 50, 0]]")
    assert [state.at_s for state in profile.schedule] == [2, 4, 5]
    assert profile.schedule[-1].up == wifi("g", 50)


def test_past_the_range_a_station_is_cut_off() -> None:
    (profile,) = links(POINT + "[[station]]\npath = [[0, 98, 0], [4, 102, 0], [8, 98, 0]]")
    edge = wifi("g", 100)
    states = {state.at_s: state.up for state in profile.schedule}
    # At 100 m itself it is still there; out of range nothing changes until it is back.
    assert states[2] == edge and states[3] == cut(edge) and states[6] == edge
    assert list(states) == [1, 2, 3, 6, 7, 8]


def test_a_station_that_begins_out_of_range_can_join_at_its_edge() -> None:
    far, coming = links(
        POINT + "[[station]]\nposition = [200, 0]\n[[station]]\npath = [[0, 200, 0], [2, 0, 0]]"
    )
    edge = wifi("g", 100)
    assert far == LinkProfile(
        name="walk", up=edge, down=edge, schedule=(State(0, cut(edge), cut(edge)),)
    )
    near = wifi("g", 0)
    assert coming.up == edge
    assert coming.schedule == (
        State(0, cut(edge), cut(edge)),
        State(1, edge, edge),
        State(2, near, near),
    )


def test_a_files_name_is_its_links(tmp_path: Path) -> None:
    file = tmp_path / "park.toml"
    file.write_text(POINT + "[[station]]\nposition = [1, 1]\n" * 2)
    assert [profile.name for profile in positions.load(file)] == ["park@3ce6b8"] * 2


# Mistakes


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("access_point = None: must be a table [access_point] (it is missing)",)),
        ("access_point = 5", ("access_point = 5: must be a table",)),
        (POINT, ("station = None: must be [[station]] tables, one a client (there is none)",)),
        (POINT + "[station]\nposition = [1, 1]", ("must be [[station]] tables",)),
        (POINT + "[[stations]]", ("stations = ", "did you mean station?")),
        (POINT.replace("'g'", "'z'"), ("access_point.mode = 'z': must be one of a, b, g, n",)),
        (POINT.replace("mode = 'g'", ""), ("access_point.mode = None: must be one of",)),
        (
            POINT.replace("100", "-1"),
            ("access_point.range_m = -1: must be above 0 m, at most 10000",),
        ),
        (POINT.replace("range_m", "range"), ("range = 100: is no key", "mean range_m?")),
        (POINT.replace("[0, 0, 0]", "[0]"), ("access_point.position = [0]: must be [x, y, z]",)),
        (POINT.replace("100", "20000"), ("range_m = 20000: must be above 0 m, at most 10000",)),
        (POINT.replace("100", "9" * 400), (": must be above 0 m, at most 10000",)),
        ("step_s = 0\n" + POINT, ("step_s = 0: must be 0.001 to 1000000 s",)),
        ("step_s = '1s'\n" + POINT, ("step_s = '1s': must be 0.001 to 1000000 s",)),
        (POINT + "[[station]]", ("station 1: says nothing; write position = [x, y, z] or",)),
        (
            POINT + "[[station]]\nposition = [1, 1]\n[[station]]\nposition = [1, 1]\npath = []",
            ("station 2: has both position and path",),
        ),
        (POINT + "[[station]]\nposition = 5", ("station 1: position = 5: must be [x, y, z]",)),
        (POINT + "[[station]]\nposition = [1, '2m']", ("position = '2m': must be a number",)),
        (POINT + "[[station]]\nposition = [1, nan]", ("position = nan: must be a number",)),
        (POINT + "[[station]]\nmode = 'g'", ("station 1: mode = 'g': is no key here",)),
        (POINT + "[[station]]\npath = []", ("station 1: path = []: must be a list of [at_s,",)),
        (
            POINT + "[[station]]\npath = [[0, 1]]",
            ("station 1: path: waypoint 1 = [0, 1]: must be [at_s, x, y, z]",),
        ),
        (
            POINT + "[[station]]\npath = [[-1, 1, 1]]",
            ("station 1: path: waypoint 1: at_s = -1: must be 0 s or more",),
        ),
        (
            POINT + "[[station]]\npath = [[5, 1, 1], [5, 2, 2]]",
            ("waypoint 2 = [5, 2, 2]: is not after 5 s", "times must ascend"),
        ),
        (
            "step_s = 0.001\n" + POINT + "[[station]]\npath = [[0, 0, 0], [1000, 9, 0]]",
            ("step_s = 0.001: makes 1000000 steps of all stations; at most 500000",),
        ),
    ],
)
def test_a_mistake_names_key_value_and_what_is_right(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        links(text)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "walk.toml"
    cases: dict[str, Any] = {"[[station": "is not TOML: ", POINT: "station = None"}
    for text, right in cases.items():
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            positions.load(file)
        assert str(caught.value).startswith(f"{file}: {right}")
    file.unlink()
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        positions.load(file)
