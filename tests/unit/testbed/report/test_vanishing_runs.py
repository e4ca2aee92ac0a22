"""Folders of results in which others end while they are listed."""

import sys
from pathlib import Path

import pytest

from testbed.report import listing


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_what_ends_meanwhile_is_no_run() -> None:
    """Threads' own folders in /proc end as soon as they are looked into."""
    assert listing.rows(Path("/proc")) == []
