"""Signals that ask for an end: as exceptions, once they can be taken, and handed back after."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.processes import signals
from testbed.processes.signals import (
    ENDING,
    INTERRUPTED_EXIT,
    Command,
    Interrupted,
    Interruption,
    handled,
    interrupt,
)

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_an_exception_within_alone(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name), handled(interrupt):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(interrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("asks", [0, 1])
def test_whoever_is_ending_is_not_asked_again(asks: int) -> None:
    before = {number: signal.getsignal(number) for number in ENDING}
    asked = Interruption()
    try:
        with asked.heard():
            for _ in range(asks):
                os.kill(os.getpid(), signal.SIGTERM)
        now = {number: signal.getsignal(number) for number in ENDING}
        assert now == (dict.fromkeys(ENDING, signal.SIG_IGN) if asks else before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_came_before_is_raised_as_soon_as_it_can_be() -> None:
    asked = Interruption()
    with handled(asked.take):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"), asked.raised():
            pytest.fail("nothing is begun")


def test_the_first_signal_alone_is_raised() -> None:
    asked = Interruption()
    with handled(asked.take):
        with pytest.raises(Interrupted, match="SIGTERM"), asked.raised():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                # No other interrupts what the first one leads to.
                os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """This process as a command that has heard nothing."""
    before = {number: signal.getsignal(number) for number in ENDING}
    found = Command()
    monkeypatch.setattr(signals, "COMMAND", found)
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    found.hear()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_command_is_ended_by_its_first_signal_alone(
    command: Command, number: signal.Signals
) -> None:
    with pytest.raises(Interrupted, match=number.name), command.raised():
        try:
            os.kill(os.getpid(), number)
        finally:
            for each in ENDING:
                os.kill(os.getpid(), each)
    assert command.came == number.name


def test_nothing_that_a_command_makes_is_half_made(command: Command) -> None:
    done = []
    with pytest.raises(Interrupted, match="SIGHUP"), command.raised():
        with command.making():
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("all of it")
        done.append("more")
    assert done == ["all of it"]


def test_a_run_takes_over_what_came_to_its_command_before(command: Command) -> None:
    done, asked = [], Interruption()
    with command.raised():
        with command.making():
            os.kill(os.getpid(), signal.SIGTERM)
            with (
                asked.heard(),
                pytest.raises(Interrupted, match="SIGTERM"),
                asked.raised(),
            ):
                pytest.fail("nothing is begun")
            done.append("its own end")
        done.append("its report")
    assert done == ["its own end", "its report"]
    assert command.came is None


def test_what_comes_after_a_command_has_ended_is_raised_nowhere(command: Command) -> None:
    with command.raised():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert command.came == "SIGTERM"


LEFT_TO_IT = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
from testbed.processes import signals
signals.COMMAND.hear()
child = os.fork()
if child == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signal.pthread_sigmask(0, ()), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_command_has_no_signal_blocked_and_its_childrens_ends_told() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_TO_IT], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("7 set()\n", "interrupted: stopped by SIGTERM\n")
    assert done.returncode == signals.INTERRUPTED_EXIT


IMPORTS = """
import os, signal, sys
from testbed.processes import signals
signals.COMMAND.hear()
with signals.COMMAND.raised():
    try:
        import module
    except BaseException:
        pass
print("it goes on")
"""
KILLS = "import os, signal\nos.kill(os.getpid(), signal.{name})\n"


@pytest.mark.parametrize("number", ENDING)
def test_what_is_imported_does_not_swallow_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(KILLS.format(name=number.name))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    said = f"interrupted: stopped by {number.name}\n"
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED_EXIT, "", said)
