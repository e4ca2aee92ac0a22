"""One ``python cli.py launch`` as a user runs it, watched from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import warm

ROOT = Path(__file__).parents[2]
CLI = (sys.executable, str(ROOT / "cli.py"))
LIMIT_S = 100.0
"""Of one run: a loaded machine must reach it, and pytest's own limit must not come first."""
GONE_S = 10.0
POLL_S = 0.01
FAST = (
    *("--method=fedavg", "--set=batch_size=32", "--set=local_epochs=1"),
    *("--train-samples=200", "--eval-samples=100"),
)
"""The quickest training, where LoRA does not matter: some 0.9 after two rounds of two clients."""
WHOLE = "--train-samples=1437"
"""All of the digits, after FAST: for what is to happen while clients train."""
KINDS = {"fedavg": "model", "fedpeft": "adapter"}


class Run:
    """A run in a process group of its own. ``end`` kills what is left of it."""

    def __init__(
        self,
        out: Path,
        *flags: str,
        prefix: list[str] | tuple[str, ...] = (),
        limit_s: float = LIMIT_S,
        resume: Path | None = None,
        program: tuple[str, ...] = CLI,
        cwd: Path = ROOT,
        command: str = "launch",
        anew: bool = False,
    ) -> None:
        """``resume``: the folder of a run that goes on; its events are then read from its start.

        ``anew``: by an interpreter of its own, with what it imports and a seed of its own hashes.
        """
        self.out = out if resume is None else resume.parent
        out.parent.mkdir(parents=True, exist_ok=True)
        self._logs = [out.with_name(f"{out.name}.{name}") for name in ("stdout", "stderr")]
        where = f"--out={out}" if resume is None else f"--resume={resume}"
        self._read = 0
        self._events: list[dict[str, Any]] = []
        self._seen: set[psutil.Process] = set()
        self._namespaces: dict[str, int] = {}
        self._deadline = time.monotonic() + limit_s
        with self._logs[0].open("wb") as stdout, self._logs[1].open("wb") as stderr:
            # Who goes on with a run has other hashes than who began it, as a user's has.
            other = {} if anew or command != "launch" else {"other": resume is not None}
            start = warm.Popen if other else subprocess.Popen
            self.process: subprocess.Popen[Any] = start(
                [*prefix, *program, command, where, *flags],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                **other,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._logs[0].read_text()

    @property
    def stderr(self) -> str:
        return self._logs[1].read_text()

    @property
    def folders(self) -> list[Path]:
        return sorted(self.out.iterdir()) if self.out.is_dir() else []

    @property
    def folder(self) -> Path:
        (folder,) = self.folders
        return folder

    @property
    def summary(self) -> dict[str, Any]:
        found = json.loads((self.folder / "summary.json").read_text())
        assert isinstance(found, dict)
        return found

    def events(self, kind: str | None = None, /, **fields: Any) -> list[dict[str, Any]]:
        """What events.jsonl holds so far, every whole line of it."""
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError), (folder / "events.jsonl").open() as file:
                file.seek(self._read)
                while (line := file.readline()).endswith("\n"):
                    self._events.append(json.loads(line))
                    self._read = file.tell()
        wanted = {"event": kind, **fields} if kind else fields
        return [e for e in self._events if wanted.items() <= e.items()]

    def wait_for(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """The first such event; fails where the run ends without it."""
        while True:
            ended = self.process.poll() is not None
            found = self.events(kind, **fields)
            if found:
                return found[0]
            assert not ended, f"ended without {kind} {fields}: {self.describe()}"
            assert time.monotonic() < self._deadline, f"no {kind} {fields}: {self.describe()}"
            time.sleep(POLL_S)

    def wait_for_folder(self) -> None:
        while not self.folders:
            assert self.process.poll() is None, self.describe()
            assert time.monotonic() < self._deadline, self.describe()
            time.sleep(POLL_S)

    def pid_of(self, node: str) -> int:
        return self.wait_for("started", node=node)["pid"]

    def finish(self) -> int:
        """Wait for its end and return the exit status."""
        try:
            return self.process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end: {self.describe()}") from None

    def wait_for_process(self, *command: str) -> psutil.Process:
        """The process of that command below it, once there is one."""
        while True:
            for each in self.tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if each.cmdline() == list(command):
                        return each
            assert time.monotonic() < self._deadline, self.describe()
            time.sleep(POLL_S)

    def tree(self) -> set[psutil.Process]:
        """The supervisor and all below it, now."""
        top = psutil.Process(self.pid)
        found = {top, *top.children(recursive=True)}
        self._seen |= found
        return found

    def wait_for_programs(self, name: str, count: int) -> set[psutil.Process]:
        """The tree, once so many of its processes have that name."""
        while True:
            found = self.tree()
            with contextlib.suppress(psutil.NoSuchProcess):
                if sum(each.name() == name for each in found) == count:
                    return found
            assert time.monotonic() < self._deadline, f"no {count} of {name}: {self.describe()}"
            time.sleep(POLL_S)

    def hold_namespaces(self) -> None:
        """Hold the tree's network namespaces open: the kernel gives their numbers to no other."""
        for process in self.tree():
            for name, path in network_namespaces(process.pid).items():
                if name not in self._namespaces:
                    with contextlib.suppress(OSError):
                        self._namespaces[name] = os.open(path, os.O_RDONLY)

    def held_namespaces(self) -> set[str]:
        """Which of those are some other process's too."""
        others = set(psutil.pids()) - {os.getpid()}
        return {name for pid in others for name in network_namespaces(pid)} & set(self._namespaces)

    def describe(self) -> str:
        texts = [f"exit status {self.process.returncode}", self.stdout, self.stderr]
        for folder in self.folders:
            log = folder / "nodes.log"
            texts.append(log.read_text() if log.exists() else "")
        texts += [str(event)[:500] for event in self._events[-5:]]
        return "\n".join(texts)[-4000:]

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.tree()
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(GONE_S)
        # By object and not by id alone: psutil compares the time of creation.
        for process in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while self._namespaces:
            os.close(self._namespaces.popitem()[1])


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie that nobody has waited for does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def all_gone(processes: set[psutil.Process], limit_s: float = GONE_S) -> list[psutil.Process]:
    """Wait until none of them runs; returns those that still do."""
    deadline = time.monotonic() + limit_s
    while (left := alive(processes)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def network_namespaces(pid: int) -> dict[str, str]:
    """Network namespaces in which a process stands, or that it holds open, with a path to each."""
    own = os.readlink("/proc/self/ns/net")
    found = {}
    with contextlib.suppress(OSError):
        entries = [entry.path for entry in os.scandir(f"/proc/{pid}/fd")]
        for path in (f"/proc/{pid}/ns/net", *entries):
            with contextlib.suppress(OSError):
                found[os.readlink(path)] = path
    return {name: path for name, path in found.items() if name.startswith("net:") and name != own}
