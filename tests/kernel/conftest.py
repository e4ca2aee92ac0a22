"""One boot of User-Mode Linux for all tests of this folder, and what was found in it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import uml

GUEST = Path(__file__).with_name("guest.py")
REQUIRE = "WIRETUNE_REQUIRE_UML"
"""Set to 1 where these tests must not be skipped."""


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``guest.py`` wrote, by backend and measure."""
    missing = uml.missing()
    if missing is not None:
        reason = f"User-Mode Linux is not here: {missing}"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{reason} ({REQUIRE}=1)")
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("uml")
    results = folder / "results.json"
    uml.run(GUEST, [str(results)], folder, uml.LIMIT_S)
    return json.loads(results.read_text())
