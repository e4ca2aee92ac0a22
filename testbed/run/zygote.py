"""The zygote: every node is forked from it, once the heavy imports and the data are in it.

A fork shares all of that memory copy-on-write, so a node costs what it writes. For that to be
safe the zygote has one thread and touches no accelerator; it checks the former before it forks.
"""

import functools
import gc
import os
import selectors
import signal
import socket
import struct
import traceback
from typing import Any, Protocol

import msgspec
import psutil

from testbed import clock
from testbed.config_error import ConfigError, in_words
from testbed.links.interface import Endpoint
from testbed.metering import meter
from testbed.network.topology import Node, Plan
from testbed.processes import confinement, heap
from testbed.processes.channel import Channel, ChannelClosed
from testbed.processes.child import (
    NotForked,
    describe_exit,
    die_with_parent,
    fork_alone,
    run_as_child,
    watch_parent,
)
from testbed.processes.confinement import Reach
from testbed.processes.worker import NoAnswer, Refusal, Refused, Result, Stop, Worker
from testbed.record.events import Away, Back, Confined, Failed, Known, Lost
from testbed.run.feasible import Traffic
from testbed.transport.keys import Keys, RunKeys

_REQUEST = struct.Struct("!IH")
"""Which node, with _KILL to be ended, and the port that its endpoint names."""
_KILL = 1 << 31
_MAX_NAMESPACES = 4
_UNPREPARED = "the zygote could not prepare:\n"
MANY_NODES = 100
"""The forks of so many are worth a second's preparation."""


class Prepared(msgspec.Struct, tag="prepared"):
    """The zygote's word that ``prepare`` has run."""

    traffic: Traffic | None


class Forked(msgspec.Struct, tag="forked"):
    """A node's begin, as the zygote tells it."""

    node: int
    pid: int


class Reaped(msgspec.Struct, tag="reaped"):
    """A node's end, likewise."""

    node: int
    pid: int
    how: str


class Address(msgspec.Struct, tag="address", tag_field="event"):
    """The server's place, as a node is told it before any event.

    To the server itself the descriptor of its socket comes along, where that listens already.
    """

    host: str
    port: int
    began_ns: int = 0
    """When the run began, on its clock."""
    keys: Keys | None = None


Told = Address | Away | Back | Lost
"""What a node hears; it says ``events.Known``."""


class Program(Protocol):
    """The program that the nodes of a run execute."""

    @property
    def peer_to_peer(self) -> bool:
        """Whether clients speak to one another."""

    def prepare(self) -> Traffic | None:
        """Import and load what all nodes share; runs once, in the zygote.

        Returns what a round moves at least, where that is known. A ConfigError ends the run with
        its text alone.
        """

    def reach(self, node: Node, port: int) -> Reach:
        """Files and ports of a node whose server has ``port``: it opens no others once it runs."""

    def run_node(self, node: Node, channel: Channel) -> None:
        """Be one node, to its end; runs in the node's own process and namespace, confined.

        The first line on ``channel`` is the Address; every line written to it is an event.
        """


class NodeFailed(RuntimeError):
    """A node or the zygote could not be started."""


class Zygote:
    """The supervisor's handle: owns the zygote and, through it, every node.

    Killing the zygote kills its nodes: each has asked the kernel to die with it, or watches it.
    """

    def __init__(
        self,
        plan: Plan,
        program: Program,
        log: int,
        secure: bool,
        seed: bytes | None = None,
        says: Any = Known,
    ) -> None:
        """Fork the zygote, which begins to prepare. ``log``: where the nodes' stderr goes.

        ``secure``: nodes get keys for their connections, made from ``seed`` where the run has
        other zygotes on other hosts. ``says``: what nodes say.
        """
        self._plan, self._program, self._secure, self._seed = plan, program, secure, seed
        self._says = says
        self._began_ns = clock.monotonic_ns()
        self._requests, requests = socket.socketpair()

        def run(channel: Channel) -> None:
            self._requests.close()
            os.dup2(log, 1)
            os.dup2(log, 2)
            _serve(plan, program, channel, requests)

        said = Prepared | Forked | Reaped | Result | Refusal
        self._worker = Worker("zygote", run, ConfigError, NodeFailed, orders=Stop, answers=said)
        self.channel = self._worker.channel
        requests.close()

    def wait_ready(self, timeout_s: float) -> Traffic | None:
        """Wait until ``prepare`` has run; returns what it did.

        Raises:
            NodeFailed: it raised, died or took longer than ``timeout_s``.
        """
        try:
            return self._worker.receive(Prepared, timeout_s).traffic
        except Refused as refused:
            raise NodeFailed(str(refused)) from None
        except NoAnswer as error:
            reason = self._worker.child.ended(1) or error
            raise NodeFailed(f"the zygote did not become ready: {reason}") from error

    def spawn(self, node: Node, endpoint: Endpoint) -> Channel:
        """Fork ``node`` into its namespaces and tell it its address; returns its channel."""
        ours, theirs = Channel.pair(self._says, Told, node.name)
        handles = [theirs.fileno(), *endpoint.namespaces]
        try:
            request = _REQUEST.pack(node.index, endpoint.port)
            socket.send_fds(self._requests, [request], handles)
            listener = () if endpoint.listener is None else (endpoint.listener,)
            keys = None if self._keys is None else self._keys.of(node.name)
            ours.send(Address(endpoint.host, endpoint.port, self._began_ns, keys), listener)
        except OSError as error:
            ours.close()
            reason = f"start {node.name}: the zygote is gone ({in_words(error)})"
            raise NodeFailed(self._refusal() or reason) from error
        finally:
            theirs.close()
        return ours

    @functools.cached_property
    def _keys(self) -> RunKeys | None:
        """The run's, made for its first node: what has been forked before inherits none."""
        names = [node.name for node in self._plan.clients]
        return RunKeys(names, self._program.peer_to_peer, self._seed) if self._secure else None

    def _refusal(self) -> str | None:
        """Its own words for its end, where they are here."""
        said = self.channel.drain()
        return next((line.reason for line in said if isinstance(line, Refusal)), None)

    def failure(self) -> str | None:
        """Why the zygote no longer runs, or None while it does."""
        how = self._worker.child.ended()
        return f"the zygote {how}" if how else None

    def kill(self, node: Node) -> None:
        """End one node now."""
        self._requests.sendall(_REQUEST.pack(node.index | _KILL, 0))

    def down(self) -> None:
        """End the zygote and every node still running. Idempotent."""
        self._worker.close()
        self._requests.close()


def _serve(plan: Plan, program: Program, channel: Channel, requests: socket.socket) -> None:
    """The zygote: prepare, then fork a node a request and report every end."""
    gc.disable()
    try:
        traffic = program.prepare()
    except ConfigError:
        raise
    except Exception:
        raise NodeFailed(f"{_UNPREPARED}{traceback.format_exc()}") from None
    threads = psutil.Process().num_threads()
    if threads > 1:
        reason = f"{threads} threads after preparing; a fork would lose all but one"
        raise NodeFailed(f"{_UNPREPARED}{reason}")
    gc.collect()
    heap.settle()
    heap.fill()
    gc.freeze()
    if len(plan.nodes) > MANY_NODES:
        heap.collapse()
    channel.send(Prepared(traffic))
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    running: dict[int, Node] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is requests:
                    data, handles, _, _ = socket.recv_fds(
                        requests, _REQUEST.size, 1 + _MAX_NAMESPACES
                    )
                    if len(data) < _REQUEST.size:
                        return
                    _handle(data, handles, plan, program, running, channel)
                else:
                    os.read(wake_read, 4096)
            _reap(running, channel)


def _handle(
    data: bytes,
    handles: list[int],
    plan: Plan,
    program: Program,
    running: dict[int, Node],
    channel: Channel,
) -> None:
    order, port = _REQUEST.unpack(data)
    node = plan.nodes[order & ~_KILL]
    if order & _KILL:
        for pid in [pid for pid, other in running.items() if other is node]:
            os.kill(pid, signal.SIGKILL)
        return
    parent = os.getpid()
    try:
        pid = fork_alone()
    except NotForked as error:
        raise NodeFailed(f"start {node.name}: {error}") from None
    if pid == 0:
        run_as_child(lambda: _be_node(node, port, handles, program, parent), parent)
    running[pid] = node
    for handle in handles:
        os.close(handle)
    channel.send(Forked(node.index, pid))


def _reap(running: dict[int, Node], channel: Channel) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        node = running.pop(pid)
        channel.send(Reaped(node.index, pid, describe_exit(status)))


def _be_node(node: Node, port: int, handles: list[int], program: Program, parent: int) -> None:
    """Enter the node's namespaces and run the program there; an error becomes an event."""
    gc.enable()
    control, *entered = handles
    channel = Channel(socket.socket(fileno=control), Told)
    try:
        if entered:
            from testbed.links.linux.namespaces import enter

            enter(tuple(entered))
            for handle in entered:
                os.close(handle)
        channel.send(_confined(control, program.reach(node, port)))
        die_with_parent(parent)
        watch_parent(parent)
        program.run_node(node, channel)
    except ChannelClosed:
        raise SystemExit(1) from None
    except Exception:
        channel.send(Failed(traceback=traceback.format_exc()))
        raise SystemExit(1) from None


def _confined(control: int, reach: Reach) -> Confined:
    """Leave this process its own: its channel, its files, and no right that it has no use for."""
    virtual = clock.virtual()
    confinement.hold_only([control] if virtual is None else [control, virtual.gate])
    meter.ready()
    return msgspec.convert(confinement.confine(reach), Confined, from_attributes=True)
