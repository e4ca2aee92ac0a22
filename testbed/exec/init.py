"""Init of a node: the first process of its namespaces, whose end ends all others of them.

It starts the node's program, reaps what that leaves behind, hears of its connections, answers for
names, and ends when told, or when the supervisor or the spawner is gone.
"""

import contextlib
import os
import resource
import selectors
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from testbed.exec.costs import Costs, listens
from testbed.exec.flows import Flows
from testbed.exec.isolation import View, isolate
from testbed.exec.jobs import HOSTS, Job, named
from testbed.exec.kept import PRIVATE
from testbed.exec.leaving import Leaving
from testbed.exec.lines import (
    Await,
    Began,
    Bring,
    Broken,
    Closing,
    Finish,
    Opened,
    Over,
    Signal,
    Start,
    Up,
)
from testbed.exec.name_server import NameServer
from testbed.links.interface import LinkError
from testbed.processes.channel import Channel
from testbed.processes.child import fork_alone

SAMPLE_S = 0.25
"""Between two looks at the node's processes and connections."""
PORT_POLL_S = 0.02
REAP_LIMIT_S = 5.0
NOT_FOUND_CODE = 127
_OUTPUT = (1, 2)
_FOLDERS_FOR_FILES = ("TMPDIR", "TEMP", "TMP")


def serve(job: Job, view: View, channel: Channel, files: int, output: tuple[int, int]) -> None:
    """Be the init of ``job``'s node, to its end; in its network namespace already.

    ``files``: most that the program may open. ``output``: descriptors of its two streams.
    """
    # Before what holds it may be covered.
    hosts = [Path(source).read_text() for source, seen in view.files if seen == HOSTS]
    hosts += [text for text, seen in view.texts if seen == HOSTS]
    try:
        missing = isolate(view)
    except LinkError as error:
        channel.send(Broken(str(error)))
        return
    for path in (job.own_folder, *(job.environment.get(name, "") for name in _FOLDERS_FOR_FILES)):
        if path.startswith(PRIVATE):
            os.makedirs(path, exist_ok=True)
    _Init(job, view.kept, channel, files, output, named(*hosts)).run(missing)


class _Init:
    def __init__(
        self,
        job: Job,
        kept: tuple[str, ...],
        channel: Channel,
        files: int,
        output: tuple[int, int],
        nodes: Mapping[str, str],
    ) -> None:
        """``kept``: as a view's; ``nodes``: names by address."""
        self._job, self._channel, self._nodes = job, channel, nodes
        self._files, self._output = files, output
        self._costs = Costs(kept, job.own_folder)
        self._flows: Flows | None = None
        self._names: NameServer | None = None
        self._awaited: set[int] = set()
        self._local: set[int] = set()
        """Of these, ports that are listened on where no other node gets to them."""
        self._pid: int | None = None
        """Of the program, while it runs."""
        self._began_s = 0.0
        self._signalled = False
        self._leaving: Leaving | None = None
        """What is in its own folder, once that is asked for."""
        self._finished = False

    def run(self, missing: list[str]) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(wake_read, selectors.EVENT_READ)
            try:
                self._flows = Flows(self._job.node.address)
                selector.register(self._flows.hearing, selectors.EVENT_READ)
            except OSError as error:
                missing.append(f"bytes by flow ({error.strerror})")
            try:
                self._names = NameServer(self._nodes)
                selector.register(self._names.socket, selectors.EVENT_READ)
            except OSError as error:
                missing.append(f"names that are looked up ({error.strerror})")
            self._channel.send(Up(missing))
            sampled_s = 0.0
            while not self._finished:
                if (now_s := time.monotonic()) - sampled_s >= SAMPLE_S:
                    sampled_s = now_s
                    self._look()
                self._look_for_ports()
                rest_s = sampled_s + SAMPLE_S - now_s
                for key, _ in selector.select(
                    min(rest_s, PORT_POLL_S) if self._awaited else rest_s
                ):
                    if key.fileobj is self._channel:
                        self._hear()
                    elif key.fileobj == wake_read:
                        os.read(wake_read, 4096)
                    elif self._names is not None and key.fileobj is self._names.socket:
                        self._names.answer()
                    elif self._flows is not None:
                        self._flows.take()
                self._reap()

    def _hear(self) -> None:
        for order in self._channel.drain():
            if isinstance(order, Start):
                self._start()
            elif isinstance(order, Await):
                self._awaited.add(order.port)
            elif isinstance(order, Signal):
                self._signal(order.number)
            elif isinstance(order, Bring):
                self._bring()
            elif isinstance(order, Finish):
                self._finish()
        if self._channel.closed:
            self._finished = True

    def _start(self) -> None:
        self._began_s = time.monotonic()
        told, telling = os.pipe2(os.O_CLOEXEC)
        pid = fork_alone()
        if pid == 0:
            _become(self._job, self._files, self._output, telling)
        os.close(telling)
        with os.fdopen(told, "rb") as file:
            number = file.read()
        if number:
            os.waitpid(pid, 0)
            self._tell_over(None, number.decode())
            return
        self._pid = pid
        self._channel.send(Began(pid))

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._pid is None:
                return
            self._signalled = True
            if number == signal.SIGKILL:
                os.kill(-1, number)
            else:
                os.killpg(self._pid, number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._pid:
                    self._pid = None
                    self._end_all()
                    self._tell_over(status, None)
                    return

    def _end_all(self) -> None:
        """End what the program has left behind, so that its costs are known."""
        self._look()
        deadline = time.monotonic() + REAP_LIMIT_S
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            while time.monotonic() < deadline:
                # Again and again, for one may have forked since.
                os.kill(-1, signal.SIGKILL)
                os.waitpid(-1, 0)

    def _tell_over(self, status: int | None, reason: str | None) -> None:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs = self._costs
        self._channel.send(
            Over(
                status=status,
                reason=reason,
                seconds=round(time.monotonic() - self._began_s, 6),
                cpu_s=round(used.ru_utime + used.ru_stime, 3),
                private_mb=round(costs.private_mb, 2),
                peak_private_mb=round(costs.peak_mb, 2),
                run_delay_s=round(costs.run_delay_s, 3),
                held_s=round(costs.held_s, 3),
                asked=self._signalled,
            )
        )

    def _bring(self) -> None:
        if self._pid is not None:
            # Of a run that has failed, whose end would end it without a word.
            self._pid = None
            self._end_all()
        if self._leaving is None:
            self._leaving = Leaving(self._job.own_folder)
        self._channel.send(self._leaving.parcel())

    def _look(self) -> None:
        if self._pid is not None:
            self._costs.sample()
        if self._flows is not None:
            with contextlib.suppress(OSError):
                self._flows.look()

    def _look_for_ports(self) -> None:
        for port in list(self._awaited):
            found = listens(port)
            if found or (found is None and port not in self._local):
                self._local.add(port)
                self._channel.send(Opened(port, locally=not found))
            if found:
                self._awaited.discard(port)

    def _finish(self) -> None:
        self._finished = True
        self._look()
        flows = [] if self._flows is None else self._flows.rows()
        names = [] if self._names is None else self._names.names
        self._channel.send(Closing(flows, names, sorted(self._costs.shared_sockets)))


def _become(job: Job, files: int, output: tuple[int, int], telling: int) -> None:
    """Be the program, as if its user had started it. Never returns."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for descriptor, stream in zip(output, _OUTPUT, strict=True):
            os.dup2(descriptor, stream)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        _close_but(telling)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
        os.chdir(job.folder)
        os.execvpe(job.words[0], job.words, job.environment)
    except OSError as error:
        os.write(telling, f"{error.errno} {error.strerror}: {error.filename or ''}".encode())
    finally:
        os._exit(NOT_FOUND_CODE)


def _close_but(kept: int) -> None:
    """Close all descriptors but the standard ones and ``kept``, which a program's start closes."""
    os.closerange(3, kept)
    os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
