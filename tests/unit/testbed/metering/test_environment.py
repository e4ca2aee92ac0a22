"""Whose commit a run's record names."""

import subprocess
from pathlib import Path

import pytest

from testbed.metering import meter


def commit(folder: Path) -> str:
    own = ["-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], ["add", "."], [*own, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return found.stdout[:12]


def test_it_is_the_projects_own_or_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    installed = other / "lib" / "site-packages"
    for folder in (own, installed):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    at, elsewhere = commit(own), commit(other)
    monkeypatch.setattr(meter, "PROJECT", own)
    assert meter.environment()["git"] == at != elsewhere
    # As within a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert meter.environment()["git"] == at
    (own / "file").write_text("y")
    assert meter.environment()["git"] == f"{at}+changes"
    for folder in (installed, tmp_path):
        monkeypatch.setattr(meter, "PROJECT", folder)
        assert meter.environment()["git"] is None


def test_the_projects_version_is_there() -> None:
    assert "wiretune" in meter.environment()["packages"]
