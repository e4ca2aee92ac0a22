"""Folders of models and data that their reader may not look into."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodes.workload import hub_data, saved
from nodes.workload.text import files
from testbed.config_error import ConfigError

NOBODY = 65534
READERS = {
    "model": lambda path: saved.find(path, weights=True),
    "images": lambda path: hub_data.find("cifar10", path),
    "texts": files.find,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        found = Path(above, "own")
        found.mkdir()
        yield found
        found.chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_it_is_refused_with_the_reason(
    reader: Callable[[str], object], mode: int, folder: Path
) -> None:
    pytest.importorskip("datasets")
    folder.chmod(mode)
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        with pytest.raises(ConfigError, match=f"{folder}: is no folder to be listed: Permission"):
            reader(str(folder))
    finally:
        os.seteuid(user)
