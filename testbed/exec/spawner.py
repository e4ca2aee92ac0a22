"""The spawner: a process of one thread from which every node's init is forked into its place."""

import contextlib
import os
import selectors
import signal
import socket
import struct
from collections.abc import Sequence

import msgspec

from testbed.config_error import in_words
from testbed.exec import init
from testbed.exec.isolation import View, fork_first
from testbed.exec.jobs import Job
from testbed.exec.lines import Answer, Broken, Order
from testbed.links.interface import LinkError
from testbed.network.topology import Node
from testbed.processes import confinement
from testbed.processes.channel import Channel, ChannelClosed
from testbed.processes.child import (
    describe_exit,
    die_with_parent,
    run_as_child,
)
from testbed.processes.worker import Refusal, Result, Stop, Worker

_REQUEST = struct.Struct("!I")
_MOST_DESCRIPTORS = 8
_CHANNEL_AND_OUTPUT = 3


class Reaped(msgspec.Struct, tag="reaped"):
    """The spawner's word of the end of a node's init."""

    node: int
    how: str


class Spawner:
    """The supervisor's handle: owns the spawner and, through it, every node's processes.

    The end of the spawner ends the inits, and each of them its node.
    """

    def __init__(self, jobs: Sequence[Job], views: Sequence[View], files: int) -> None:
        """Fork it. ``files``: most that a program may open, as its user had it."""
        self._requests, requests = socket.socketpair()

        def run(channel: Channel) -> None:
            self._requests.close()
            _serve(jobs, views, files, channel, requests)

        said = Reaped | Result | Refusal
        self._worker = Worker("spawner", run, LinkError, orders=Stop, answers=said)
        self.channel = self._worker.channel
        requests.close()

    def spawn(self, node: Node, namespaces: tuple[int, ...], output: tuple[int, int]) -> Channel:
        """Fork the node's init into ``namespaces``; its channel.

        Raises:
            LinkError: the spawner is gone.
        """
        ours, theirs = Channel.pair(Answer, Order, node.name)
        try:
            handles = [theirs.fileno(), *output, *namespaces]
            socket.send_fds(self._requests, [_REQUEST.pack(node.index)], handles)
        except OSError as error:
            raise LinkError(
                f"start {node.name}: the spawner is gone ({in_words(error)})"
            ) from error
        finally:
            theirs.close()
        return ours

    def failure(self) -> str | None:
        """Why the spawner no longer runs, or None while it does."""
        how = self._worker.child.ended()
        return f"the spawner {how}" if how else None

    def down(self) -> None:
        """End the spawner and all nodes' processes. Idempotent."""
        self._worker.close()
        self._requests.close()


def _serve(
    jobs: Sequence[Job],
    views: Sequence[View],
    files: int,
    channel: Channel,
    requests: socket.socket,
) -> None:
    parent = os.getppid()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    entered = False
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    os.read(wake_read, 4096)
                    continue
                data, handles, _, _ = socket.recv_fds(requests, _REQUEST.size, _MOST_DESCRIPTORS)
                if len(data) < _REQUEST.size:
                    return
                (index,) = _REQUEST.unpack(data)
                control, out, err, *namespaces = handles
                if len(namespaces) > 1 and not entered:
                    entered = True
                    _enter(namespaces[0])
                    # The kernel forgets it with the user namespace.
                    die_with_parent(parent)
                job, view = jobs[index], views[index]
                place = (control, out, err, namespaces[-1])
                if (pid := _fork(job, view, files, place)) is not None:
                    running[pid] = index
                for handle in handles:
                    os.close(handle)
            _reap(running, channel)


def _fork(job: Job, view: View, files: int, place: tuple[int, int, int, int]) -> int | None:
    """The process of a node's init; None where there can be none, which its channel tells."""
    try:
        pid = fork_first()
    except LinkError as error:
        channel = Channel(socket.socket(fileno=os.dup(place[0])), Order, "the supervisor")
        with contextlib.suppress(ChannelClosed):
            channel.send(Broken(str(error)))
        channel.close()
        return None
    if pid == 0:
        # No process of its own namespaces is its parent, so it sees the number 0.
        run_as_child(lambda: _be_init(job, view, files, place), 0)
    return pid


def _be_init(job: Job, view: View, files: int, place: tuple[int, int, int, int]) -> None:
    control, out, err, network = place
    _enter(network)
    confinement.hold_only([control, out, err])
    channel = Channel(socket.socket(fileno=control), Order, "the supervisor")
    with contextlib.suppress(ChannelClosed):
        init.serve(job, view, channel, files, (out, err))


def _enter(namespace: int) -> None:
    from testbed.links.linux.namespaces import enter

    enter((namespace,))


def _reap(running: dict[int, int], channel: Channel) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        index = running.pop(pid)
        channel.send(Reaped(index, describe_exit(status)))
