"""One boot of User-Mode Linux for all tests of this folder, and what was found in it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import uml

HERE = Path(__file__).parent
REQUIRE = "WIRETUNE_REQUIRE_UML"
"""Set to 1 where these tests must not be skipped."""


@pytest.fixture(scope="session")
def found(uml_here: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``guest.py`` wrote, by backend and measure."""
    folder = tmp_path_factory.mktemp("uml")
    results = folder / "results.json"
    uml.run(HERE / "guest.py", [str(results)], folder, uml.LIMIT_S)
    return json.loads(results.read_text())


@pytest.fixture(scope="session")
def launched(uml_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``launches.py`` left its runs, and what it told of them."""
    folder = tmp_path_factory.mktemp("launches")
    results = folder / "results"
    results.mkdir()
    uml.run(HERE / "launches.py", [str(results)], folder, uml.LAUNCHES_LIMIT_S)
    return results


@pytest.fixture(scope="session")
def uml_here() -> None:
    """Skip, or fail where that is asked for, without User-Mode Linux."""
    missing = uml.missing()
    if missing is not None:
        reason = f"User-Mode Linux is not here: {missing}"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{reason} ({REQUIRE}=1)")
        pytest.skip(reason)
