"""A direction as a TOML table: every field, Mininet's names in its units, and each mistake."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import direction_table
from testbed.network.direction import Direction, GilbertElliott


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x.up").write_text("10\n20\n")
    (tmp_path / "empty").write_text("")
    return tmp_path


def read(folder: Path, base: Direction | None = None, **table: Any) -> Direction:
    return direction_table.read("up.", table, folder, base or Direction())


def test_every_field_but_an_outage_may_stand(folder: Path) -> None:
    bursts = {"good_to_bad_percent": 1, "bad_to_good_percent": 25}
    table = {
        "rate_kbit": 500,
        "delay_ms": 4,
        "jitter_ms": 2,
        "gilbert_elliott": bursts,
        "duplicate_percent": 1,
        "reorder_percent": 2,
        "corrupt_percent": 3,
        "max_packets": 9,
    }
    found = read(folder, **table)
    assert found == Direction(**{**table, "gilbert_elliott": GilbertElliott(**bursts)})
    more = {"trace": "x.up", "loss_percent": 2, "queue_ms": 70}
    assert table.keys() | more.keys() == set(direction_table.FIELDS)
    assert read(folder, **more) == Direction(**{**more, "trace": str(folder / "x.up")})


def test_a_traces_path_is_relative_to_its_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert read(folder, trace="x.up").trace == str(folder / "x.up")
    assert read(folder / "sub", trace="../x.up").trace == str(folder / "x.up")
    assert read(Path("/nowhere"), trace=str(folder / "x.up")).trace == str(folder / "x.up")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("bw", 10, "rate_kbit", 10_000),
        ("bw", 0.1, "rate_kbit", 100),
        ("delay", "5ms", "delay_ms", 5),
        ("delay", "1.5 s", "delay_ms", 1500),
        ("delay", "250us", "delay_ms", 0.25),
        ("loss", 2.5, "loss_percent", 2.5),
        ("max_queue_size", 80, "max_packets", 80),
    ],
)
def test_mininets_names_are_taken_in_its_units(
    folder: Path, name: str, value: Any, field: str, expected: float
) -> None:
    assert read(folder, **{name: value}) == Direction(**{field: expected})  # type: ignore[arg-type]


def test_mininets_jitter_stands_beside_a_delay(folder: Path) -> None:
    assert read(folder, delay="5ms", jitter="1ms") == Direction(delay_ms=5, jitter_ms=1)


def test_a_step_changes_what_it_names(folder: Path) -> None:
    base = Direction(rate_kbit=1000, delay_ms=20, loss_percent=1, queue_ms=50)
    assert read(folder, base, rate_kbit=500) == Direction(
        rate_kbit=500, delay_ms=20, loss_percent=1, queue_ms=50
    )
    assert read(folder, base) == base


def test_a_step_replaces_what_cannot_stand_beside_it(folder: Path) -> None:
    bursts = {"good_to_bad_percent": 1, "bad_to_good_percent": 25}
    plain = Direction(rate_kbit=1000, loss_percent=1, queue_ms=50)
    other = Direction(
        trace=str(folder / "x.up"), gilbert_elliott=GilbertElliott(**bursts), max_packets=9
    )
    assert read(folder, plain, trace="x.up", gilbert_elliott=bursts, max_packets=9) == other
    assert read(folder, other, bw=1, loss=1, queue_ms=50) == plain


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"bw": -8}, ("up.bw = -8: is rate_kbit = -8000: must be above 0 kbit/s",)),
        ({"bw": "10mbit"}, ("up.bw = '10mbit': must be a number, in Mbit/s",)),
        ({"bw": True}, ("up.bw = True: must be a number",)),
        ({"bw": 1, "rate_kbit": 1000}, ("up.rate_kbit = 1000: says the same as bw",)),
        ({"rate_kbit": 1000, "bw": 1}, ("up.bw = 1: says the same as rate_kbit",)),
        ({"delay": 5}, ("up.delay = 5: must be a text with its unit", '"5ms"')),
        ({"delay": "5"}, ("up.delay = '5': must be a text with its unit", '"5ms"')),
        ({"delay": "5min"}, ("up.delay = '5min': must be a text with its unit (us, ms, s)",)),
        ({"delay": "-5ms"}, ("up.delay = '-5ms': is delay_ms = -5.0: must be at least 0 ms",)),
        ({"delay": "1" * 400 + "s"}, ("must be a finite number",)),
        ({"jitter": "1ms"}, ("up.jitter = '1ms': is jitter_ms = 1.0: must be at most",)),
        ({"loss": "1%"}, ("up.loss = '1%': is loss_percent = '1%': must be a finite",)),
        ({"max_queue_size": 0}, ("up.max_queue_size = 0: is max_packets = 0: must be",)),
        ({"queue_ms": 1, "max_packets": 9}, ("up.max_packets = 9: stands instead of queue_ms",)),
        ({"outage": True}, ("up.outage = True: does not belong here", "[[schedule]]")),
        ({"trace": "empty"}, ("up.trace /", "empty: is empty; it needs one integer")),
        ({"trace": ""}, ("up.trace = '': must be the path of a file",)),
        ({"trace": "none"}, ("up.trace /", "none: cannot read it: No such file")),
        ({"trace": "x.up", "rate_kbit": 5}, ("up.rate_kbit = 5: leave it out",)),
        ({"reorder_percent": 1}, ("up.reorder_percent = 1: needs delay_ms above 0",)),
        ({"corrupt_percent": 101}, ("up.corrupt_percent = 101: must be from 0 to 100 %",)),
        ({"gilbert_elliott": 5}, ("up.gilbert_elliott = 5: must be a table",)),
        ({"gilbert_elliott": {}}, ("lacks good_to_bad_percent",)),
        (
            {"gilbert_elliott": {"good_to_bad_percent": 1, "bad_to_good_percent": 250}},
            ("up.gilbert_elliott.bad_to_good_percent = 250: must be from 0 to 100 %",),
        ),
        (
            {"gilbert_elliott": {"p": 1}},
            ("up.gilbert_elliott.p = 1: is no key here", "good_to_bad_percent, bad_to"),
        ),
        ({"rate": 5}, ("up.rate = 5: is no key here: did you mean rate_kbit",)),
        ({"bandwidth": 5}, ("up.bandwidth = 5: is no key here", "bw, delay, jitter, loss")),
    ],
)
def test_a_mistake_names_key_value_and_what_is_right(
    folder: Path, table: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(folder, **table)
    for part in parts:
        assert part in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["5ms", "x.up", 10**400, -(10**400), 1e308]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(GilbertElliott.__struct_fields__), inner, max_size=4)
    ),
    max_leaves=4,
)


@pytest.mark.thorough
@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(direction_table.KEYS), VALUES, max_size=4))
def test_any_table_is_a_direction_or_a_config_error(table: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        read(Path("/nowhere"), **table)


def test_a_step_that_leaves_the_profiles_own_jitter_too_large_says_whose_it_is(
    folder: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"up\.jitter_ms = 5.*it is the profile's own"):
        read(folder, Direction(delay_ms=9, jitter_ms=5), delay_ms=1)
