"""Lists of profiles in one text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import mix
from testbed.network.mix import Piece


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("4g", [Piece("4g", None)]),
        ("4g:12, wifi : 5", [Piece("4g", 12), Piece("wifi", 5)]),
        ("rate 10mbit delay 20ms", [Piece("rate 10mbit delay 20ms", None)]),
        ("bw=10,delay=5ms,loss=1:3,4g:2", [Piece("bw=10,delay=5ms,loss=1", 3), Piece("4g", 2)]),
        ('"Smith, J/own.toml":2,4g:1', [Piece("Smith, J/own.toml", 2), Piece("4g", 1)]),
        ('"a""b/x.toml"', [Piece('a"b/x.toml', None)]),
        ("2026-11-29T01:50/own.toml", [Piece("2026-11-29T01:50/own.toml", None)]),
        ("2026-11-29T01:50/own.toml:4", [Piece("2026-11-29T01:50/own.toml", 4)]),
    ],
)
def test_a_mix_is_its_pieces(text: str, pieces: list[Piece]) -> None:
    assert mix.parse(text) == pieces
    assert mix.parse(mix.written(pieces)) == pieces


def test_a_file_that_is_there_may_hold_commas_and_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("Smith, J", "a:1,b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.toml").touch()
    monkeypatch.chdir(tmp_path)
    found = mix.parse("Smith, J/own.toml:2,a:1,b/own.toml:3,4g:1")
    assert found == [Piece("Smith, J/own.toml", 2), Piece("a:1,b/own.toml", 3), Piece("4g", 1)]
    assert mix.listed("Smith, J/own.toml,wifi") == ["Smith, J/own.toml", "wifi"]


def test_lists_are_lists() -> None:
    assert mix.listed("fedpeft:variant=bias,kdfft, fedavg") == [
        "fedpeft:variant=bias",
        "kdfft",
        "fedavg",
    ]
    assert mix.listed("0,1,,2") == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4g,,wifi", "has an empty piece"),
        ("", "has an empty piece"),
        (":3", "lacks a name"),
        ('"x.toml', "lacks its closing quote"),
        ('"x.toml"y', "only :COUNT"),
        ("4g:0", "at least 1"),
        (f"4g:{'9' * 5000}", "must be a whole number"),
    ],
)
def test_a_mix_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        mix.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_mix_or_refused(text: str) -> None:
    try:
        found = mix.parse(text)
    except ConfigError:
        return
    assert mix.parse(mix.written(found)) == found
