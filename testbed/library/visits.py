"""Visits to a network that stays, at its keeper: programs that others of its user run in nodes."""

import contextlib
import functools
import os
import selectors
import socket
import struct
import subprocess
import time

import msgspec

from testbed.config_error import ConfigError, closest, in_words
from testbed.exec.endings import BY_SIGNAL
from testbed.library import join, places
from testbed.library.launching import launch
from testbed.library.lines import (
    About,
    Ask,
    Begun,
    Built,
    Close,
    Enter,
    Greet,
    Greeted,
    Over,
    Refused,
    Seen,
    Signal,
    VisitOrder,
)
from testbed.links.interface import Network as Links
from testbed.network.topology import Node, Plan
from testbed.processes.channel import Channel, ChannelClosed, Garbled
from testbed.report.text import few

STREAMS = 3
TELL_LIMIT_S = 5
"""Of a visitor that is stopped and does not take what it has asked for."""
_CREDENTIALS = struct.Struct("3i")


class Visitor:
    """A process that has come, and its program while that runs."""

    def __init__(self, connection: socket.socket) -> None:
        self.channel = Channel(connection, VisitOrder, "a visitor")
        self.node = ""
        self.program: subprocess.Popen[bytes] | None = None

    def tell(self, line: msgspec.Struct) -> None:
        with contextlib.suppress(ChannelClosed):
            self.channel.send(line)


class Visits:
    """All visitors, whose programs are the keeper's children and so end with it."""

    def __init__(self, place: places.Place, layout: Plan, built: Built, links: Links) -> None:
        self._folder, self._layout, self._built, self._links = place.folder, layout, built, links
        self._began = time.strftime("%Y-%m-%d %H:%M:%S")
        self._visitors: set[Visitor] = set()
        self._selector = selectors.EpollSelector()
        self._listener = place.listen()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._greet)
        self.closing = False
        """One has asked for the network's end."""

    def fileno(self) -> int:
        """Readable when ``serve`` has something to do."""
        return self._selector.fileno()

    def serve(self) -> None:
        """Do what is to be done now."""
        for key, _ in self._selector.select(0):
            key.data()

    def tell_all(self, reason: str) -> None:
        """Say why the network ends."""
        for visitor in self._visitors:
            visitor.tell(Refused(reason, wrong=False))

    def close(self) -> None:
        """Let nobody in any more. Who is in hears of the end by that of this process."""
        self._listener.close()
        self._selector.close()

    def _greet(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # It has left again.
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(told)
        if user != os.geteuid():
            connection.close()
            return
        connection.setblocking(True)
        places.bound(connection, TELL_LIMIT_S)
        visitor = Visitor(connection)
        self._visitors.add(visitor)
        hearing = functools.partial(self._hear, visitor)
        self._selector.register(visitor.channel, selectors.EVENT_READ, hearing)

    def _hear(self, visitor: Visitor) -> None:
        try:
            orders = visitor.channel.drain()
        except Garbled as error:
            visitor.tell(Refused(str(error), wrong=True))
            orders = []
        for order in orders:
            if isinstance(order, Greet):
                visitor.tell(Greeted())
            elif isinstance(order, Enter):
                self._enter(visitor, order)
            elif isinstance(order, Signal):
                if visitor.program is not None and order.number in join.HANDED_ON:
                    visitor.program.send_signal(order.number)
            elif isinstance(order, Ask):
                visitor.tell(self._about())
            elif isinstance(order, Close):
                self.closing = True
        if visitor.channel.closed:
            self._see_off(visitor)

    def _enter(self, visitor: Visitor, order: Enter) -> None:
        """Start a program; it gets the streams that have come with the order."""
        came = visitor.channel.descriptors
        streams = [came.popleft() for _ in range(min(STREAMS, len(came)))]
        try:
            if visitor.program is not None or len(streams) != STREAMS:
                raise ConfigError("a visitor runs one program, with three streams")
            node = self._node(order.node)
            words = [os.fsdecode(word) for word in order.command]
            pairs = [os.fsdecode(pair).partition("=") for pair in order.environment]
            found = launch(
                self._layout,
                node,
                self._built.inits[node.index],
                words[0] if order.is_line else tuple(words),
                {name: value for name, _, value in pairs},
                {places.VARIABLE: str(self._folder)},
                os.fsdecode(order.folder),
            )
            taking, saying, complaining = streams
            visitor.program = subprocess.Popen(
                found.words,
                env=found.environment,
                cwd=order.folder,
                stdin=taking,
                stdout=saying,
                stderr=complaining,
            )
        except ConfigError as error:
            visitor.tell(Refused(str(error), wrong=True))
            return
        except (OSError, ValueError) as error:
            visitor.tell(Refused(f"{order.node}: start a program: {in_words(error)}", wrong=False))
            return
        finally:
            for stream in streams:
                os.close(stream)
        visitor.node = node.name
        visitor.tell(Begun())
        end = os.pidfd_open(visitor.program.pid)
        ended = functools.partial(self._take_leave, visitor, end)
        self._selector.register(end, selectors.EVENT_READ, ended)

    def _node(self, name: str) -> Node:
        names = [node.name for node in self._layout.nodes]
        if name not in names:
            near = closest(name, names) or "."
            raise ConfigError(
                f"node {name!r}: is none of network {self._folder.name}{near} It has {few(names)}"
            )
        return self._layout.nodes[names.index(name)]

    def _take_leave(self, visitor: Visitor, end: int) -> None:
        """Tell a visitor that its program has ended."""
        self._selector.unregister(end)
        os.close(end)
        if visitor.program is not None:
            status = visitor.program.wait()
            visitor.program = None
            visitor.tell(Over(status if status >= 0 else BY_SIGNAL - status))

    def _see_off(self, visitor: Visitor) -> None:
        """Forget a visitor that is gone; its program ends with it."""
        self._selector.unregister(visitor.channel)
        visitor.channel.close()
        self._visitors.discard(visitor)
        if visitor.program is not None:
            visitor.program.send_signal(join.KILL_ALL)

    def _about(self) -> About:
        running = [each.node for each in self._visitors if each.program is not None]
        nodes = [
            Seen(
                node.name,
                node.address,
                node.profile.name if node.profile else None,
                count.up.bytes,
                count.down.bytes,
                running.count(node.name),
            )
            for node, count in zip(self._layout.nodes, self._links.counters(), strict=True)
        ]
        certificate = self._built.certificate
        verdict = None if certificate is None else certificate.verdict
        return About(self._built.why, verdict, self._began, nodes)
