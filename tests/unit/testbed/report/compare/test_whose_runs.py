"""Folders given to a comparison: copies of one run are told, and none is passed over unread."""

import os
import shutil
from pathlib import Path

import made_run
import pytest

from testbed.config_error import ConfigError
from testbed.report.compare import comparability, comparison


def test_a_copy_is_no_repeat(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made_run.folder(tmp_path / name, made_run.events())
    assert not [note for note in comparability.notes(comparison.runs([tmp_path])) if "one" in note]
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    notes = comparability.notes(comparison.runs([tmp_path]))
    places = f"{tmp_path / 'a'}, {tmp_path / 'c'}"
    assert f"{places} have the record of one run, a: none is a repeat of another." in notes


@pytest.mark.parametrize("within", ["run", "cell/run"])
def test_a_folder_that_is_shut_is_not_passed_over(
    within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_run.folder(tmp_path / "open", made_run.events())
    shut = made_run.folder(tmp_path / within, made_run.events())
    # Which no mode of a file is to root.
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != shut)
    with pytest.raises(ConfigError, match=f"RUN {shut}: cannot look into it: Permission denied"):
        comparison.runs([tmp_path])


def test_what_a_run_keeps_to_itself_may_be_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run.folder(tmp_path / "run", made_run.events())
    (run / "private").mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name != "private")
    assert [each.folder for each in comparison.runs([tmp_path])] == [run]
