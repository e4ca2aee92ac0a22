"""Runs that end with their test or module, and whose events are all documented."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documented_events import undocumented
from running import Run

from testbed.links.userspace import backend as userspace

Launch = Callable[..., Run]


@contextlib.contextmanager
def launching(folder: Path) -> Iterator[Launch]:
    runs: list[Run] = []
    numbers = itertools.count(1)  # Tests may launch from several threads.
    with contextlib.ExitStack() as owned:

        def launch(*flags: str, **options: Any) -> Run:
            run = Run(folder / f"out-{next(numbers)}", *flags, **options)
            runs.append(run)
            owned.callback(run.end)
            return run

        yield launch
    # Whatever a run was for, docs/events.md says what it wrote.
    assert [wrong for run in runs for wrong in undocumented(run.events())] == []


@pytest.fixture(scope="session", autouse=True)
def _hearing_signals() -> Iterator[None]:
    """A shell's "&" has its commands ignore SIGINT, and they hand that on to what they start."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """``launch(*flags)`` starts ``cli.py launch`` with a folder of its own for results."""
    with launching(tmp_path) as start:
        yield start


@pytest.fixture
def execute(launch: Launch, userspace_links: None, request: pytest.FixtureRequest) -> Launch:
    """``execute(*flags)`` starts ``cli.py exec`` likewise, with 4g links that are not probed.

    Its parameter may be "ordinary user": one without capabilities.
    """
    ordinary = getattr(request, "param", None) == "ordinary user"
    user = {"prefix": request.getfixturevalue("without_capabilities")} if ordinary else {}

    def start(*flags: str, calibrate: bool = False, **options: Any) -> Run:
        links = ("--profile=4g", *(() if calibrate else ("--no-calibrate",)))
        return launch(*links, *flags, command="exec", **{**user, **options})

    return start


@pytest.fixture(scope="module")
def launch_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with launching(tmp_path_factory.mktemp("runs")) as start:
        yield start


@pytest.fixture(scope="session")
def best_links() -> str:
    """Flag of the most faithful links that work here."""
    return f"--links={'loopback' if userspace.probe() else 'userspace'}"
