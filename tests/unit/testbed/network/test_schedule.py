"""Schedules: entries to states worked out by hand, and what each mistake is told."""

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import schedule
from testbed.network.direction import Direction
from testbed.network.schedule import State

UP = Direction(rate_kbit=1000, delay_ms=20)
DOWN = Direction(rate_kbit=8000, delay_ms=20, loss_percent=1)


def cut(direction: Direction) -> Direction:
    return msgspec.structs.replace(direction, outage=True)


def compiled(text: str, up: Direction = UP, down: Direction = DOWN) -> tuple[State, ...]:
    entries = schedule.read(tomllib.loads(text)["schedule"], Path())
    return schedule.states(entries, up, down)


# What becomes of a link


def test_each_step_changes_the_profile_and_not_the_step_before() -> None:
    states = compiled(
        """
        [[schedule]]
        at_s = 10
        up = { rate_kbit = 500, delay_ms = 80 }
        [[schedule]]
        at_s = 20.5
        up = { bw = 0.25 }
        down = { loss = 2 }
        [[schedule]]
        at_s = 30
        up = {}
        """
    )
    lossy = Direction(rate_kbit=8000, delay_ms=20, loss_percent=2)
    assert states == (
        State(10, Direction(rate_kbit=500, delay_ms=80), DOWN),
        State(20.5, Direction(rate_kbit=250, delay_ms=20), lossy),
        State(30, UP, DOWN),
    )


def test_after_an_outage_goes_on_what_held_before() -> None:
    states = compiled(
        """
        [[schedule]]
        at_s = 0
        outage_s = 5
        [[schedule]]
        at_s = 10
        up = { rate_kbit = 500 }
        [[schedule]]
        at_s = 20
        outage_s = 0.5
        """
    )
    slow = Direction(rate_kbit=500, delay_ms=20)
    assert states == (
        State(0, cut(UP), cut(DOWN)),
        State(5, UP, DOWN),
        State(10, slow, DOWN),
        State(20, cut(slow), cut(DOWN)),
        State(20.5, slow, DOWN),
    )


def test_outages_that_overlap_are_one() -> None:
    states = compiled(
        """
        schedule = [
            { at_s = 1, outage_s = 10 },
            { at_s = 1, outage_s = 2 },
            { at_s = 2, outage_s = 3 },
            { at_s = 8, outage_s = 4 },
            { at_s = 12, outage_s = 1 },
        ]
        """
    )
    assert states == (State(1, cut(UP), cut(DOWN)), State(13, UP, DOWN))


def test_a_step_within_an_outage_shows_at_its_end() -> None:
    states = compiled(
        """
        schedule = [
            { at_s = 1, outage_s = 10 },
            { at_s = 5, up = { rate_kbit = 500 } },
            { at_s = 7, down = { rate_kbit = 4000 } },
            { at_s = 12, up = { rate_kbit = 500 } },
        ]
        """
    )
    up = Direction(rate_kbit=500, delay_ms=20)
    down = Direction(rate_kbit=4000, delay_ms=20, loss_percent=1)
    assert states == (State(1, cut(UP), cut(DOWN)), State(11, UP, down), State(12, up, DOWN))


def test_an_entry_may_be_both_an_outage_and_the_step_after_it() -> None:
    states = compiled("schedule = [{ at_s = 1, outage_s = 2, up = { rate_kbit = 500 } }]")
    slow = Direction(rate_kbit=500, delay_ms=20)
    assert states == (State(1, cut(slow), cut(DOWN)), State(3, slow, DOWN))


def test_what_changes_nothing_is_no_state() -> None:
    assert compiled("schedule = [{ at_s = 1, up = { rate_kbit = 1000 } }]") == ()


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 12), st.none() | st.integers(1, 3)),
        max_size=12,
    )
)
def test_any_schedule_is_the_link_at_every_moment(rows: list[tuple[int, int, int | None]]) -> None:
    """Against the rule itself, moment by moment: in an outage, or as the last step says."""
    by_time = {at_s: (at_s, outage_s, step) for at_s, outage_s, step in sorted(rows, key=str)}
    entries = []
    for at_s, outage_s, step in sorted(by_time.values()):
        entry: dict[str, Any] = {"at_s": at_s}
        entry |= {"outage_s": outage_s} if outage_s else {}
        entry |= {"up": {"rate_kbit": step}} if step or not outage_s else {}
        if step is None and "up" in entry:
            entry["up"] = {}
        entries.append(entry)
    if not entries:
        return
    states = schedule.states(schedule.read(entries, Path()), UP, DOWN)
    assert [state.at_s for state in states] == sorted({state.at_s for state in states})
    for moment in range(60):
        said = [entry["up"] for entry in entries if "up" in entry and entry["at_s"] <= moment]
        up = msgspec.structs.replace(UP, **(said[-1] if said else {}))
        out = any(
            entry["at_s"] <= moment < entry["at_s"] + entry.get("outage_s", 0) for entry in entries
        )
        shown = [(state.up, state.down) for state in states if state.at_s <= moment]
        now = shown[-1] if shown else (UP, DOWN)
        assert (now[0].outage, now[1].outage) == (out, out)
        assert out or now == (up, DOWN)


# Mistakes


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (None, ("schedule = None: must be [[schedule]] entries (there is none)",)),
        ([], ("schedule = []: must be [[schedule]] entries",)),
        ({"at_s": 1}, ("must be [[schedule]] entries",)),
        ([5], ("must be [[schedule]] entries",)),
        (
            [{"outage_s": 1}],
            ("entry 1: at_s = None: must be 0 to 1000000 seconds (it is missing)",),
        ),
        ([{"at_s": -1, "outage_s": 1}], ("entry 1: at_s = -1: must be 0 to",)),
        ([{"at_s": "30s", "outage_s": 1}], ("entry 1: at_s = '30s': must be 0 to",)),
        ([{"at_s": True, "outage_s": 1}], ("entry 1: at_s = True: must be",)),
        ([{"at_s": float("nan"), "outage_s": 1}], ("entry 1: at_s = nan: must be",)),
        ([{"at_s": 1e7, "outage_s": 1}], ("entry 1: at_s = 10000000.0: must be 0 to",)),
        (
            [{"at_s": 20, "outage_s": 1}, {"at_s": 10, "outage_s": 1}],
            ("entry 2: at_s = 10: is before 20 of entry 1", "in the order of their times"),
        ),
        ([{"at_s": 1, "outage_s": 0}], ("entry 1: outage_s = 0: must be above 0 s",)),
        ([{"at_s": 1, "outage_s": -2}], ("entry 1: outage_s = -2: must be 0 to",)),
        ([{"at_s": 1}], ("entry 1: at_s = 1: says nothing", "up, down or outage_s")),
        ([{"at_s": 1, "up": 5}], ("entry 1: up = 5: must be a table",)),
        ([{"at_s": 1, "rate_kbit": 5}], ("entry 1: rate_kbit = 5: is no key here",)),
        ([{"at": 1, "outage_s": 1}], ("entry 1: at = 1: is no key here: did you mean at_s?",)),
        ([{"at_s": 1, "outage": 1}], ("outage = 1: is no key here: did you mean outage_s?",)),
        (
            [{"at_s": 1, "outage_s": 1, "clients": [1]}],
            ("entry 1: clients = [1]: is only for a file of --schedule",),
        ),
        (
            [{"at_s": 1, "outage_s": 1}, {"at_s": 2, "up": {"rate_kbit": -5}}],
            ("entry 2: up.rate_kbit = -5: must be above 0 kbit/s",),
        ),
        (
            [{"at_s": 2, "down": {"rate_mbit": 5}}],
            ("entry 1: down.rate_mbit = 5: is no key here: did you mean rate_kbit",),
        ),
        (
            [{"at_s": 2, "up": {"rate_kbit": 5}}, {"at_s": 2, "down": {"rate_kbit": 5}}],
            ("entry 2: at_s = 2: the link has a step at that time already",),
        ),
    ],
)
def test_a_mistake_names_entry_key_value_and_what_is_right(
    rows: object, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule.states(schedule.read(rows, Path()), UP, DOWN)
    assert str(caught.value).startswith("schedule ")
    for part in parts:
        assert part in str(caught.value)


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "at_s": st.sampled_from([0, 1.5, 7, -1, 10**400, "1s", None, float("inf")]),
        "outage_s": st.sampled_from([1, 0.5, 0, 10**400, float("nan"), True, []]),
        "up": st.sampled_from([{}, {"bw": 1}, {"bw": 10**400}, {"delay": "5ms"}, 5, None]),
        "clients": st.sampled_from([[1], [2, 3], [10**400], [], 1, None, [True]]),
    },
)


@settings(derandomize=True, deadline=None)
@given(st.lists(ROWS, max_size=4), st.sampled_from([None, 3]))
def test_any_rows_are_a_schedule_or_a_config_error(
    rows: list[dict[str, Any]], clients: int | None
) -> None:
    with contextlib.suppress(ConfigError):
        assert schedule.states(schedule.read(rows, Path(), clients), UP, DOWN) is not None


# A file for all clients


def refusal(file: Path, text: str, clients: int = 3) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        schedule.load(file, clients)
    return str(caught.value)


def test_an_entry_may_be_for_some_clients(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        "schedule = [{ at_s = 1, outage_s = 1, clients = [1.0, 3] }, { at_s = 1, outage_s = 2 }]"
    )
    assert [entry.clients for entry in schedule.load(file, 3)] == [(1, 3), None]


@pytest.mark.parametrize(
    "clients", ["[4]", "[0]", "[-1]", "[1.5]", "[1e308]", "[true]", '["client-1"]']
)
def test_an_unknown_client_is_told_the_numbers(tmp_path: Path, clients: str) -> None:
    file = tmp_path / "s.toml"
    row = f"schedule = [{{ at_s = 1, outage_s = 1, clients = {clients} }}]"
    text = refusal(file, row)
    assert text.startswith(f"{file}: schedule entry 1: clients = ")
    assert "is no client; must be a list of client numbers, 1 to 3" in text


@pytest.mark.parametrize("clients", ["[]", "2"])
def test_clients_are_a_list(tmp_path: Path, clients: str) -> None:
    row = f"schedule = [{{ at_s = 1, outage_s = 1, clients = {clients} }}]"
    assert "must be a list of client numbers, 1 to 3" in refusal(tmp_path / "s.toml", row)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    assert refusal(file, "[[schedule]").startswith(f"{file}: is not TOML: ")
    assert "(there is none)" in refusal(file, "")
    assert "title = 'x': is no key here" in refusal(file, "title = 'x'")
    file.unlink()
    with pytest.raises(ConfigError, match=r"cannot read it: No such file"):
        schedule.load(file, 3)
