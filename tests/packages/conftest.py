"""Examples of docs/exec.md, taken from there, and the packages that they name."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "exec.md"
REQUIRE = "WIRETUNE_REQUIRE_PACKAGES"
"""Set to 1 where these tests must not be skipped."""
LIMIT_S = 400
_INSTALL = re.compile(r"^    python -m venv (\S+) && \1/bin/pip install (.*)$", re.M)
_COMMAND = re.compile(r"^    (python cli\.py exec (?:.*\\\n)*.*)$", re.M)
_TELL_WORDS = "python() { printf '%s\\0' \"$@\"; }\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.packages)
            item.add_marker(pytest.mark.timeout(LIMIT_S + 1000))


@pytest.fixture
def example(
    userspace_links: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """``example(title, number)`` starts a command below that title, as the page has it.

    Its results lie where users have theirs, where nodes see those of others.
    """
    results = tempfile.TemporaryDirectory(prefix="example-", dir=ROOT / "results")
    request.addfinalizer(results.cleanup)
    # The environment of `make launch`, as its user has entered it.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def start(title: str, number: int = 0) -> Run:
        text = section(title)
        for folder, packages in _INSTALL.findall(text):
            installed(ROOT / folder, shlex.split(packages))
        command = _COMMAND.findall(text)[number]
        shell = ["sh", "-c", _TELL_WORDS + command]
        told = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True)
        words = told.stdout.split("\0")[2:-1]
        run = Run(Path(results.name) / "out", *words, command="exec", limit_s=LIMIT_S)
        request.addfinalizer(run.end)
        return run

    return start


def section(title: str) -> str:
    """What the page has below a title, to the next of any."""
    _, head, rest = PAGE.read_text().partition(f"\n### {title}\n")
    assert head, f"{PAGE} has no {title}"
    return re.split(r"^##", rest, maxsplit=1, flags=re.M)[0]


def installed(folder: Path, packages: list[str]) -> None:
    """Skip, or fail where that is asked for, where the packages cannot be had."""
    spec = importlib.util.spec_from_file_location("peers", ROOT / "benchmarks/peers/__init__.py")
    assert spec is not None and spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    folder.parent.mkdir(exist_ok=True)
    try:
        peers.environment(folder, *packages)
    except peers.NoPeer as error:
        (pytest.fail if os.environ.get(REQUIRE) == "1" else pytest.skip)(str(error))


@pytest.fixture(scope="session")
def install() -> Callable[[Path, list[str]], None]:
    """``install(folder, packages)`` makes an environment with them, or skips."""
    return installed
