"""Network: nodes behind shaped links, for programs and tests to run theirs in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import msgspec

from testbed.config_error import ConfigError
from testbed.exec import listening
from testbed.library import join, keeper, lines
from testbed.library.launching import launch
from testbed.library.places import LOG, Place
from testbed.links.interface import LinkError
from testbed.network import mix
from testbed.network.direction import is_number
from testbed.network.profiles import load, parse_mix
from testbed.network.topology import Node, Plan, plan
from testbed.processes.channel import Channel, ChannelClosed
from testbed.processes.environment import for_others
from testbed.run.config import choose

UP_LIMIT_S = 120.0
"""Until a network is up, its links probed."""
ANSWER_LIMIT_S = 30.0
END_LIMIT_S = 15.0
PORT_POLL_S = 0.01
_LAST_STREAM = 2
LINKS = ("auto", "netem", "userspace")
_ROOT = Path(__file__).parents[len(__name__.split(".")) - 1]
_KEEPER = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from {keeper.__name__} import main"

_NONE_OF_A_NODE = ("shell", "executable", "user", "group", "extra_groups")
"""Options of a Popen that are for the process that joins a node, and not for the program in it."""

Kind = TypeVar("Kind", bound=msgspec.Struct)
Command = str | Sequence[str]


class NotAsAsked(RuntimeError):
    """Links that were probed and are not what was asked for; the text names the first gate."""


class LinkBytes(NamedTuple):
    """Bytes on a node's access link so far, each way, as on Ethernet."""

    up: int
    down: int


class Program(subprocess.Popen[Any]):
    """A program in a node: a Popen whose ``kill`` ends what the program started, too."""

    def kill(self) -> None:
        self.send_signal(join.KILL_ALL)


class NetworkNode:
    """One node: a machine of its own, as far as programs in it can tell, behind one link."""

    def __init__(self, network: Network, node: Node, init: int) -> None:
        self._network, self._node, self._init = network, node, init
        self.name = node.name
        self.address = node.address
        """IPv4; programs in nodes find it by the name, too."""

    def popen(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Program:
        """Start a program here.

        ``command``: words, or a line for a shell. ``env``: beside the caller's own environment, and
        WIRETUNE_NODE, RANK, SIZE, ADDRESS, SERVER, ADDRESSES and INTERFACE, which words may have as
        ``$WIRETUNE_RANK``. ``options``: of subprocess.Popen. A program that does not exist ends
        with 127 and says so.
        """
        for name in _NONE_OF_A_NODE:
            if (given := options.get(name)) is not None and given is not False:
                raise ConfigError(
                    f"{self.name}: {name} = {given!r}: is no option here; a text is a line "
                    "for a shell, words are a program, and both run as the caller's user"
                )
        self._network.check()
        words = command if isinstance(command, str) else tuple(map(os.fspath, command))
        folder = os.path.abspath(cwd or ".")
        found = launch(
            self._network.plan, self._node, self._init, words, os.environ, env or {}, folder
        )
        program = Program(found.words, env=found.environment, cwd=folder, **options)
        return self._network.started(program)

    def run(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        check: bool = False,
        input: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end, with its output as text.

        ``timeout``: seconds, after which it and all that it started are killed. ``options``: as of
        ``popen``.

        Raises:
            subprocess.TimeoutExpired: it took longer.
            subprocess.CalledProcessError: it failed, with ``check``.
        """
        settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        settings |= {"stdin": subprocess.DEVNULL if input is None else subprocess.PIPE}
        settings |= {"text": True, **options}
        with self.popen(command, **settings) as program:
            try:
                out, err = program.communicate(input, timeout=timeout)
            except BaseException as error:
                program.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    out, err = _rest(program)
                    raise subprocess.TimeoutExpired(command, error.timeout, out, err) from None
                raise
        if check and program.returncode:
            raise subprocess.CalledProcessError(program.returncode, command, out, err)
        return subprocess.CompletedProcess(command, program.returncode, out, err)

    def wait_port(self, port: int, timeout: float = 30.0) -> None:
        """Wait until a program here listens on a TCP port where other nodes get to it.

        Raises:
            ConfigError: no port, or no time.
            TimeoutError: none does within ``timeout`` seconds.
        """
        if not isinstance(port, int) or not 0 < port < 1 << 16:
            raise ConfigError(f"{self.name}: port = {port!r}: must be a whole number, 1 to 65535")
        if not is_number(timeout) or not timeout >= 0:
            raise ConfigError(f"{self.name}: timeout = {timeout!r}: must be seconds from 0")
        deadline = time.monotonic() + timeout
        while port not in (ports := self._listened()):
            self._network.check()
            if time.monotonic() > deadline:
                more = f"; it listens on {', '.join(map(str, sorted(ports)))}" if ports else ""
                raise TimeoutError(
                    f"{self.name}: nobody listens on port {port} within {timeout:g} s{more}; on "
                    "127.0.0.1 no other node gets to it"
                )
            time.sleep(PORT_POLL_S)

    def _listened(self) -> set[int]:
        """TCP ports on which somebody listens, and not on 127.0.0.1 alone."""
        found = listening.ports(Path(f"/proc/{self._init}/net"))
        return {port for port, reached in found.items() if reached}

    def shape(self, profile: str | os.PathLike[str]) -> None:
        """Give this node's link another profile from now on."""
        found = load(_text("profile", profile))
        self._network.tell(lines.Shape(self._node.index, found.up, found.down))

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """A block in which this thread's sockets are the node's; names are not, so take addresses.

        Raises:
            ConfigError: this process is not root, and may not enter the namespace.
        """
        with contextlib.ExitStack() as owned:
            handles = []
            for path in ("/proc/thread-self/ns/net", f"/proc/{self._init}/ns/net"):
                handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                owned.callback(os.close, handles[-1])
            from testbed.links.linux import namespaces

            try:
                namespaces.enter((handles[1],))
            except LinkError as error:
                raise ConfigError(
                    f"{self.name}.here(): {error}; it takes root; run a program by `run` or "
                    "`popen`, which do not"
                ) from error
            try:
                yield
            finally:
                namespaces.enter((handles[0],))


class Network:
    """Nodes behind shaped links, up until ``close``, or the end of the ``with``.

    Everything in it is gone then, and when this process is gone.
    """

    def __init__(
        self,
        profile: str | os.PathLike[str] = "4g",
        *,
        clients: int | None = None,
        server_profile: str | os.PathLike[str] | None = None,
        links: str = "auto",
        certify: bool = False,
        strict: bool = False,
    ) -> None:
        """Build it.

        ``profile``: a link profile, a file's path, a link in words, or a mix such as
        ``4g:2,wifi:1``. ``clients``: one, where nothing is said. ``server_profile``: the server's
        own access link; None: without limits. ``links``: auto, netem or userspace. ``certify``:
        measure each link first, which takes seconds; the result is ``certificate``. ``strict``:
        do so, and refuse what is not as asked.

        Raises:
            ConfigError: what was asked for cannot be; the text says what would be right.
            LinkError: a step of building it failed.
            NotAsAsked: with ``strict``.
        """
        server = None if server_profile is None else load(_text("server_profile", server_profile))
        wanted = _text("profile", profile)
        if not isinstance(profile, str):
            wanted = mix.written([mix.Piece(wanted, None)])
        layout = plan(parse_mix(wanted, clients), server)
        self._build(layout, links, certify=certify, strict=strict)

    def _build(
        self,
        layout: Plan,
        links: str,
        *,
        certify: bool,
        strict: bool,
        place: Place | None = None,
    ) -> None:
        choose("links", str(links), LINKS)
        self.plan = layout
        self._programs: list[Program] = []
        self._lock = threading.Lock()
        ours, theirs = map(_beyond_streams, socket.socketpair())
        self._channel = Channel(ours, lines.Answer, "the network's keeper")
        with theirs, contextlib.ExitStack() as owned:
            handle = theirs.fileno()
            words = [sys.executable, "-P", "-c", f"{_KEEPER}; main()", str(handle)]
            nothing = subprocess.DEVNULL
            # Whoever waits for the end of the caller's output is not to wait for a network's.
            log = None if place is None else owned.enter_context((place.folder / LOG).open("wb"))
            self._keeper = subprocess.Popen(
                words,
                stdin=nothing,
                stdout=nothing,
                stderr=log,
                pass_fds=[handle],
                # Programs in nodes are shown its environment, as that of their first process.
                env=for_others(os.environ),
                # A terminal's signals are for the caller, who tells by the channel's end.
                start_new_session=True,
            )
        try:
            self._channel.send(
                lines.Asked(layout, links, certify or strict, str(place.folder) if place else None),
                () if place is None else (place.handle,),
            )
            built = self._answer(lines.Built, UP_LIMIT_S)
        except BaseException:
            self.close()
            raise
        self.links = built.why
        """The links' backend and why that one."""
        self.certificate = built.certificate
        """What measuring the links came to: ``verdict``, ``reason`` and ``checks``."""
        if strict and self.certificate is not None and self.certificate.verdict != "pass":
            self.close()
            raise NotAsAsked(f"links are not as asked: {self.certificate.reason}")
        pairs = zip(layout.nodes, built.inits, strict=True)
        self.server, *others = [NetworkNode(self, node, init) for node, init in pairs]
        self.clients = others
        self.nodes = {each.name: each for each in (self.server, *others)}

    def bytes(self) -> dict[str, LinkBytes]:
        """Bytes on each node's access link so far, by its name."""
        with self._lock:
            self._send(lines.Count())
            found = self._answer(lines.Counted, ANSWER_LIMIT_S).counters
        names = [node.name for node in self.plan.nodes]
        each = [LinkBytes(one.up.bytes, one.down.bytes) for one in found]
        return dict(zip(names, each, strict=True))

    def tell(self, order: lines.Shape) -> None:
        with self._lock:
            self._send(order)

    def started(self, program: Program) -> Program:
        """Have a program be reaped with the network."""
        for each in list(self._programs):
            if each.poll() is not None:
                with contextlib.suppress(ValueError):  # Another thread has done so.
                    self._programs.remove(each)
        self._programs.append(program)
        return program

    def check(self) -> None:
        """Raises LinkError where the network is no longer up."""
        if self._keeper.poll() is not None:
            raise LinkError("the network is no longer up")

    def close(self) -> None:
        """End every program in it and remove it. Idempotent."""
        self._channel.close()
        try:
            self._keeper.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._keeper.send_signal(signal.SIGKILL)
            self._keeper.wait()
        for program in self._programs:
            try:
                program.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:  # It is stopped, and all that it ran has ended.
                program.send_signal(signal.SIGKILL)
                program.wait()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, order: msgspec.Struct) -> None:
        try:
            self._channel.send(order)
        except ChannelClosed as error:
            raise LinkError("the network is no longer up") from error

    def _answer(self, kind: type[Kind], limit_s: float) -> Kind:
        try:
            line = self._channel.receive(limit_s)
        except (ChannelClosed, TimeoutError) as error:
            raise LinkError(f"the network's keeper gave no answer: {error}") from error
        if isinstance(line, lines.Refused):
            raise line.error()
        assert isinstance(line, kind)
        return line


def _text(field: str, profile: str | os.PathLike[str]) -> str:
    """A profile as it is written. Raises ConfigError: it is no text and no path."""
    found = os.fspath(profile) if isinstance(profile, str | os.PathLike) else None
    if not isinstance(found, str):
        raise ConfigError(
            f"{field} = {profile!r}: must be a link profile's name, a path, or a link in words"
        )
    return found


def _beyond_streams(end: socket.socket) -> socket.socket:
    """The same, not in the place of a standard stream that the caller was started without."""
    if end.fileno() > _LAST_STREAM:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _LAST_STREAM + 1))


def _rest(program: Program) -> tuple[Any, Any]:
    """Output of a program that was killed; what has left its session may hold that still."""
    try:
        return program.communicate(timeout=END_LIMIT_S)
    except subprocess.TimeoutExpired as late:
        program.send_signal(signal.SIGKILL)
        return late.stdout, late.stderr
