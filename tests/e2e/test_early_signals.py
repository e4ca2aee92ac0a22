"""A signal from a command's first lines on: a sentence, the status of later ones, nothing left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from running import CLI, FAST, GONE_S, ROOT, all_gone

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
FOREVER = (
    *("launch", "--rounds=1000", "--time-limit=100", "--links=loopback", "--profile=ethernet"),
    *("--clients=2", "--no-calibrate", *FAST),
)
PROGRAMS = ("exec", "--profile=4g", "--clients=1", "--no-calibrate", "--", "sleep", "100")
LINKS = ("calibrate", "--profile=ethernet", "--links=loopback", "--seconds=60")
AGENT = ("agent", "--listen=127.0.0.1:0")
LIMIT_S = 30.0
POLL_S = 0.002
WITHIN_S = 1.8
"""Of a launch, for its imports and its network to come up."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process hears is in /proc")


class Command:
    """One that hears signals, by an interpreter of its own and in a group of its own."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] = CLI,
    ) -> None:
        self.out = folder / "out"
        name, *rest = words
        where = [f"--out={self.out}"] if name in ("launch", "exec") else []
        self.process = subprocess.Popen(
            [*prefix, *program, name, *where, *rest],
            cwd=ROOT,
            env={**os.environ, "WIRETUNE_TOKEN": "a token of more than thirty-two bytes"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def hears(self) -> bool:
        """Whether it is past its first lines: those hear SIGTERM, which an interpreter does not."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        (caught,) = (line.split()[1] for line in told.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)

    def below(self) -> set[psutil.Process]:
        return set(psutil.Process(self.process.pid).children(recursive=True))

    def group_is_gone(self) -> bool:
        """Whether nobody is left of it, such as who was forked as the signal came."""
        until = time.monotonic() + GONE_S
        while time.monotonic() < until:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(POLL_S)
        return False

    def await_first_lines(self) -> None:
        until = time.monotonic() + LIMIT_S
        while not self.hears():
            assert self.process.poll() is None and time.monotonic() < until
            time.sleep(POLL_S)

    def ends_by(self, number: signal.Signals) -> None:
        """Send it a signal, and see to it that it ends as it should."""
        below = self.below()
        os.kill(self.process.pid, number)
        said, told = self.process.communicate(timeout=LIMIT_S)
        # Of links that are measured it has said before what will be.
        *before, last = told.splitlines()
        assert (self.process.returncode, last) == (
            INTERRUPTED,
            f"interrupted: stopped by {number.name}",
        ), said + told
        assert "Traceback" not in told and "Exception" not in told
        assert not before or not self.out.exists(), told
        assert not all_gone(below)
        assert self.group_is_gone()
        for folder in self.out.iterdir() if self.out.exists() else ():
            # What there is of a run says how that ended.
            assert '"status": "interrupted"' in (folder / "summary.json").read_text()


COMMANDS = [
    FOREVER,
    PROGRAMS,
    *(pytest.param(words, marks=pytest.mark.thorough) for words in (LINKS, AGENT, ("doctor",))),
]


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_signal_at_the_first_lines(words, number, tmp_path):
    with Command(tmp_path, *words) as command:
        command.await_first_lines()
        command.ends_by(number)
        assert not command.out.exists()


@pytest.mark.thorough
@pytest.mark.parametrize("words", [FOREVER, PROGRAMS, LINKS], ids=lambda words: words[0])
def test_a_signal_at_any_later_moment(words, tmp_path):
    count = 12 if words is FOREVER else 6
    for step in range(count):
        with Command(tmp_path / str(step), *words) as command:
            command.await_first_lines()
            time.sleep(WITHIN_S * (step + 1) / count)
            command.ends_by(ENDING[step % len(ENDING)])


def test_a_second_signal_changes_nothing(tmp_path):
    with Command(tmp_path, *FOREVER) as command:
        command.await_first_lines()
        for _ in range(3):
            os.kill(command.process.pid, signal.SIGTERM)
        command.ends_by(signal.SIGTERM)


def test_nohup_keeps_its_hangup_from_the_first_lines_on(tmp_path):
    with Command(tmp_path, *FOREVER, prefix=("nohup",)) as command:
        command.await_first_lines()
        for _ in range(3):
            os.kill(command.process.pid, signal.SIGHUP)
            time.sleep(WITHIN_S / 10)
        command.ends_by(signal.SIGTERM)
