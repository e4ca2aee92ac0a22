"""A visit to a network that stays: to hear of it, run a program in a node, or end it."""

import contextlib
import os
import select
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from testbed.exec.endings import BY_SIGNAL
from testbed.library import join, places
from testbed.library.lines import (
    About,
    Ask,
    Begun,
    Close,
    Enter,
    Greet,
    Greeted,
    Over,
    Refused,
    Signal,
    VisitAnswer,
)
from testbed.library.places import Place
from testbed.library.pseudo_terminal import PseudoTerminal, usable
from testbed.links.interface import LinkError
from testbed.processes.channel import Channel, ChannelClosed

ANSWER_LIMIT_S = 30.0
END_LIMIT_S = 15.0
POLL_S = 0.01
STANDARD = (0, 1, 2)
_CREDENTIALS = struct.Struct("3i")
_OF_NO_END = (signal.SIGWINCH, signal.SIGCONT)
"""Signals that end nobody who does not handle them."""

Answered = TypeVar("Answered", bound=msgspec.Struct)


@contextlib.contextmanager
def _channel(network: Path) -> Iterator[Channel]:
    channel = Channel(places.connect(network), VisitAnswer, "the network's keeper")
    try:
        yield channel
    except ChannelClosed as error:
        raise LinkError(f"network {network.name!r}: has ended meanwhile") from error
    finally:
        channel.close()


def _checked(line: VisitAnswer, kind: type[Answered]) -> Answered:
    if isinstance(line, Refused):
        raise line.error()
    assert isinstance(line, kind)
    return line


def about(network: Path) -> About:
    """The keeper's word of the network in a folder.

    Raises:
        ConfigError: none is up there.
        LinkError: its keeper does not answer.
    """
    with _channel(network) as channel:
        channel.send(Ask())
        try:
            return _checked(channel.receive(ANSWER_LIMIT_S), About)
        except TimeoutError as error:
            raise LinkError(f"network {network.name!r}: {error}") from error


def end(network: Path) -> None:
    """End a network; nothing of it is left then.

    Raises:
        ConfigError: none is up there.
        LinkError: not even the kernel ends it.
    """
    with places.connect(network) as connection:
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(told)
        channel = Channel(connection, VisitAnswer, "the network's keeper")
        keeper = None
        try:
            # While its end of the connection is there, no other process has the number.
            keeper = os.pidfd_open(pid) if pid else None
            channel.send(Close())
            while True:
                channel.receive(END_LIMIT_S)
        except (ChannelClosed, ProcessLookupError):
            # Its connections end a little before it does.
            if keeper is not None:
                select.select([keeper], [], [], END_LIMIT_S)
            return
        except TimeoutError:
            # A keeper that is stopped, say; the kernel ends with it all that it holds.
            if keeper is not None:
                signal.pidfd_send_signal(keeper, signal.SIGKILL)
        finally:
            if keeper is not None:
                os.close(keeper)
    _clear(network)


def _clear(network: Path) -> None:
    """Remove what a keeper that was killed has left, once the last of its processes is gone."""
    deadline = time.monotonic() + END_LIMIT_S
    while (place := Place.opened(network)) is not None:
        if place.lock():
            place.remove()
            return
        place.close()
        if time.monotonic() > deadline:
            raise LinkError(f"network {network.name!r}: its keeper was killed, and does not end")
        time.sleep(POLL_S)


def run(
    network: Path,
    node: str,
    command: str | Sequence[str],
    environment: Mapping[str, str],
    *,
    streams: tuple[int, int, int] = STANDARD,
) -> int:
    """Run a program in a node to its end; its exit status, as a shell has it.

    ``command``: a line for a shell, or words. It gets the signals that this process is sent, and
    ``streams``; where those are this process's terminal it has one of its own, of the same size.
    An interrupt before it has that is its end.

    Raises:
        ConfigError: the network or the node is not there.
        LinkError: the network has ended.
    """
    is_line = isinstance(command, str)
    words = [command] if isinstance(command, str) else list(command)
    with _channel(network) as channel, contextlib.ExitStack() as owned:
        wake = owned.enter_context(_woken())
        try:
            if (early := _greeted(channel, wake)) is not None:
                return BY_SIGNAL + early
        except TimeoutError as error:
            raise LinkError(f"network {network.name!r}: {error}") from error
        shown = PseudoTerminal() if streams == STANDARD and usable() else None
        if shown is not None:
            owned.callback(shown.close)
        channel.send(
            Enter(
                node,
                [os.fsencode(word) for word in words],
                is_line,
                [os.fsencode(f"{name}={value}") for name, value in environment.items()],
                os.fsencode(os.getcwd()),
            ),
            streams if shown is None else shown.streams,
        )
        try:
            return _attend(channel, wake, shown)
        except TimeoutError as error:
            raise LinkError(f"network {network.name!r}: {error}") from error


def _greeted(channel: Channel, wake: int) -> int | None:
    """Wait until the keeper attends; the number of the signal that has ended this wait.

    In the connection of a keeper that is stopped streams would stay open for whoever reads them.
    """
    channel.send(Greet())
    until_s = time.monotonic() + ANSWER_LIMIT_S
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while (rest_s := until_s - time.monotonic()) > 0:
            for key, _ in selector.select(rest_s):
                if key.fileobj == wake:
                    ending = [each for each in os.read(wake, 4096) if each not in _OF_NO_END]
                    if ending:
                        return ending[0]
                    continue
                for line in channel.drain():
                    _checked(line, Greeted)
                    return None
                if channel.closed:
                    raise ChannelClosed("the keeper is gone")
    raise TimeoutError(f"its keeper began nothing within {ANSWER_LIMIT_S:g} s")


def _attend(channel: Channel, wake: int, shown: PseudoTerminal | None) -> int:
    begun, until_s = False, time.monotonic() + ANSWER_LIMIT_S
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        if shown is not None:
            shown.begin(selector)
        while True:
            wait_s = None if shown is None else shown.listen()
            if shown is not None and shown.early is not None:
                return BY_SIGNAL + shown.early
            if not begun:
                if (rest_s := until_s - time.monotonic()) < 0:
                    raise TimeoutError(f"its keeper began nothing within {ANSWER_LIMIT_S:g} s")
                wait_s = rest_s if wait_s is None else min(wait_s, rest_s)
            for key, events in selector.select(wait_s):
                if key.fileobj is channel:
                    for line in channel.drain():
                        if isinstance(line, Begun):
                            begun = True
                            continue
                        code = _checked(line, Over).code
                        if shown is not None:
                            shown.finish()
                        return code
                    if channel.closed:
                        raise ChannelClosed("the keeper is gone")
                elif key.fileobj == wake:
                    for number in os.read(wake, 4096):
                        if number == signal.SIGWINCH and shown is not None:
                            shown.resize()
                        elif number in join.FROM_TERMINALS and shown and not shown.listens:
                            return BY_SIGNAL + number
                        else:
                            channel.send(Signal(number))
                elif shown is not None:
                    shown.carry(key.fd, events)


@contextlib.contextmanager
def _woken() -> Iterator[int]:
    """A descriptor from which the numbers of the signals are read that a program is to get."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    found = {number: signal.getsignal(number) for number in join.HANDED_ON}
    # Ignored before, as by nohup or a shell's "&", is ignored now.
    before = {number: each for number, each in found.items() if each is not signal.SIG_IGN}
    with _blocked():
        earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in before:
            signal.signal(number, lambda *_: None)
    try:
        yield reading
    finally:
        with _blocked():
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(earlier)
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Signals wait meanwhile: a handler that raises would leave the others as they are."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, join.HANDED_ON)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
