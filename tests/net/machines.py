"""Machines of a run on this one: a network namespace each, with a network of ours between them, in
which the program's own commands run."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import warm
from pyroute2 import IPRoute
from several_hosts import set_clock, underlay

from testbed.links.linux import namespaces
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.topology import plan
from testbed.processes.channel import Channel
from testbed.processes.child import Child
from testbed.processes.worker import Ready, Worker

ROOT = Path(__file__).parents[2]
CLI = (sys.executable, str(ROOT / "cli.py"))
LIMIT_S = 300.0
CUT = Direction(outage=True)
GONE_S = CUT_S = 10.0
_CLONE_NEWNS, _MS_PRIVATE, _MS_REC = 0x20000, 1 << 18, 1 << 14
_libc = ctypes.CDLL(None, use_errno=True)


def namespace(kind: str, make: Callable[[], None]) -> int:
    """Descriptor of a namespace that ``make`` makes; the process that it did so in has gone."""

    def body(channel: Channel) -> None:
        make()
        channel.send(Ready())
        channel.receive(LIMIT_S)

    maker = Worker(f"{kind} namespace", body)
    try:
        maker.receive(Ready, LIMIT_S)
        return os.open(f"/proc/{maker.child.pid}/ns/{kind}", os.O_RDONLY)
    finally:
        maker.close()


class SmallDisk(NamedTuple):
    """A disk of so many bytes at a folder, which a machine's command has alone."""

    folder: Path
    size: int

    def mounted(self) -> int:
        """Descriptor of a namespace that has it."""

        def mount() -> None:
            folder, options = str(self.folder).encode(), f"size={self.size}".encode()
            for wrong in (
                _libc.unshare(_CLONE_NEWNS),
                _libc.mount(b"none", b"/", None, _MS_PRIVATE | _MS_REC, None),
                _libc.mount(b"none", folder, b"tmpfs", 0, options),
            ):
                if wrong:
                    raise OSError(ctypes.get_errno(), "mount a disk")

        return namespace("mnt", mount)

    def of(self, process: subprocess.Popen[str]) -> Path:
        """The folder as that command sees it."""
        return Path(f"/proc/{process.pid}/root{self.folder}")

    def fill(self, process: subprocess.Popen[str]) -> None:
        """Leave no room on it."""
        with (self.of(process) / "filler").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"!")


class Machines:
    """Machines a, b, …; a is the driver's. Owns their network and all that was started there."""

    def __init__(
        self, count: int, folder: Path, way_ms: float = 0.5, jitter_ms: float = 0.0
    ) -> None:
        layout = plan([underlay(way_ms, jitter_ms)] * count)
        self._nodes = layout.clients
        self._network = userspace.up(layout)
        self._started: list[subprocess.Popen[str]] = []
        self.folder = folder
        self.token = folder / "token"
        self.token.write_text("a token of more than thirty-two bytes\n")
        self.addresses = [node.address for node in layout.clients]

    def start(
        self,
        machine: int,
        *words: str,
        environment: Mapping[str, str] | None = None,
        disk: SmallDisk | None = None,
        ahead_s: int = 0,
        program: Sequence[str] = CLI,
    ) -> subprocess.Popen[str]:
        """A command of the program on a machine; its input is held open until it is closed.

        ``ahead_s``: of the others is its monotonic clock.
        """
        own = [disk.mounted()] if disk else []
        own += [namespace("time_for_children", lambda: set_clock(ahead_s))] if ahead_s else []
        process = warm.Popen(
            [*program, *words],
            namespaces=(*self._network.endpoint(self._nodes[machine]).namespaces, *own),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._started.append(process)
        for descriptor in own:
            os.close(descriptor)
        return process

    def agent(
        self,
        machine: int,
        *words: str,
        token: Path | None = None,
        environment: Mapping[str, str] | None = None,
        disk: SmallDisk | None = None,
        ahead_s: int = 0,
        program: Sequence[str] = CLI,
    ) -> subprocess.Popen[str]:
        """An agent that listens."""
        told = f"--token-file={token or self.token}"
        listen = f"--listen={self.addresses[machine]}"
        told_words = ("agent", listen, told, "--until-input-ends", *words)
        more: dict[str, Any] = {"environment": environment, "disk": disk, "ahead_s": ahead_s}
        process = self.start(machine, *told_words, program=program, **more)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("agent: listening at "), process.communicate()
        return process

    def launch(
        self,
        *flags: str,
        out: str = "out",
        hosts: Sequence[int] | None = None,
        disk: SmallDisk | None = None,
    ) -> subprocess.Popen[str]:
        """A run whose driver is the first machine; ``hosts``: of which machines, instead of all;
        of one it is none of several."""
        words = ("launch", *self._where(hosts), f"--out={self.folder / out}", "--plain", *flags)
        return self.start(0, *words, disk=disk)

    def execute(
        self,
        *flags: str,
        out: str = "out",
        hosts: Sequence[int] | None = None,
        disk: SmallDisk | None = None,
    ) -> subprocess.Popen[str]:
        """A run of programs, likewise."""
        words = ("exec", *self._where(hosts), f"--out={self.folder / out}", "--plain", *flags)
        return self.start(0, *words, disk=disk)

    def _where(self, hosts: Sequence[int] | None) -> tuple[str, ...]:
        addresses = self.addresses if hosts is None else [self.addresses[each] for each in hosts]
        if len(addresses) == 1:
            return ()
        return f"--hosts={','.join(addresses)}", f"--token-file={self.token}"

    def resume(self, out: str = "out") -> subprocess.Popen[str]:
        """The run in that folder, gone on with."""
        (folder,) = (self.folder / out).iterdir()
        told = f"--token-file={self.token}"
        return self.start(0, "launch", f"--resume={folder}", told, "--plain")

    def bench(self, *flags: str) -> subprocess.Popen[str]:
        """A bench whose driver is the first machine."""
        told = f"--token-file={self.token}"
        named = "--hosts=" + ",".join(self.addresses)
        return self.start(
            0, "bench", named, told, f"--out={self.folder / 'bench'}", "--plain", *flags
        )

    def cut(self, machine: int) -> None:
        """Have nothing pass between a machine and the others any more."""
        self._network.shape(self._nodes[machine], CUT, CUT)

    def part(self, one: int, other: int) -> None:
        """Have nothing pass between two machines any more, and all else as before."""

        def forget() -> None:
            for here, there in ((one, other), (other, one)):
                namespaces.enter(self._network.endpoint(self._nodes[here]).namespaces)
                with IPRoute() as route:
                    route.route("add", type="blackhole", dst=f"{self.addresses[there]}/32")

        assert Child("cut", forget).ended(CUT_S) == "exited with 0"

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            if process.stdin is not None and process.stdin.closed:
                process.stdin = None  # Else it would be flushed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
        self._network.down()

    def events(self, kind: str, out: str = "out") -> list[dict[str, Any]]:
        """Events of that kind of the run in a folder, as far as they are written."""
        found = []
        for path in (self.folder / out).glob("**/events.jsonl"):
            lines = path.read_text().split("\n")
            found += [event for event in map(json.loads, lines[:-1]) if event["event"] == kind]
        return found

    def summary(self, out: str = "out") -> dict[str, Any]:
        (path,) = (self.folder / out).glob("*/summary.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


Make = Callable[..., Machines]
"""The fixture ``machines``: so many of them, which are closed at the end."""


def said(process: subprocess.Popen[str]) -> str:
    """All that it has said, once it has ended."""
    return process.communicate(timeout=LIMIT_S)[0]


def below(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """The processes that it has started, and theirs."""
    return set(psutil.Process(process.pid).children(recursive=True))


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those of them that do not end."""
    _, left = psutil.wait_procs(list(processes), GONE_S)
    return left


def still_run(processes: set[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those of them that have not ended within ``limit_s``, whoever has yet to wait for them."""

    def runs(each: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return each.is_running() and each.status() != psutil.STATUS_ZOMBIE
        return False

    until_s = time.monotonic() + limit_s
    while (left := [each for each in processes if runs(each)]) and time.monotonic() < until_s:
        time.sleep(0.01)
    return left
