"""Folders of results in which others end while they are listed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from testbed.report import listing


def test_what_ends_meanwhile_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder beneath the first is gone by the time that it is looked into."""
    for name in ("a", "b/run", "bench/cell/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").touch()
    assert len(listing.rows(tmp_path)) == 3
    scandir, ended = os.scandir, []

    def ending(path: Any = ".") -> Any:
        if Path(os.fsdecode(path)) != tmp_path and os.fsdecode(path).startswith(str(tmp_path)):
            ended.append(path)
            monkeypatch.setattr(os, "scandir", scandir)
            shutil.rmtree(path)
            monkeypatch.setattr(os, "scandir", ending)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", ending)
    assert listing.rows(tmp_path) == []
    assert len(ended) == 3
