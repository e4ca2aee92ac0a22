"""The keeper of a Network: a process of one thread that holds its links and nodes.

A caller may have threads, which may neither fork nor enter a user namespace. So this is a program
of its own; it ends, and everything with it, when its channel closes or its caller is gone, but for
a network that is to stay: that one ends when a visitor asks for it.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

from testbed import files
from testbed.config_error import ConfigError, in_words
from testbed.exec import jobs
from testbed.exec.isolation import View, fork_first, isolate
from testbed.fidelity.checks import Certificate
from testbed.fidelity.prober import Prober
from testbed.library.lines import Asked, Built, Count, Counted, Order, Refused, Shape, Stay
from testbed.library.places import Place
from testbed.library.visits import Visits
from testbed.links import choice
from testbed.links.interface import LinkError
from testbed.links.interface import Network as Links
from testbed.links.linux import namespaces
from testbed.machine import limits
from testbed.network.topology import Plan
from testbed.processes import confinement, signals
from testbed.processes.channel import Channel
from testbed.processes.child import run_as_child
from testbed.report.text import few

SHARED = "/tmp"
"""A caller's folder for files that its programs are to read; /dev/shm is each node's own."""
END_LIMIT_S = 5.0
_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Be the keeper, for whoever holds the other end of the descriptor that is the argument."""
    # Ignored, as by nohup, it would be so in programs, too.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signals.renew()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), Order, "the caller")
    caller = os.getppid()
    visits = None
    with contextlib.ExitStack() as owned, contextlib.suppress(ConnectionError, ProcessLookupError):
        try:
            asked = channel.receive()
            layout = asked.plan
            place = _place(asked, channel)
            if place is not None:
                owned.callback(place.remove)
            limits.require_proc()
            limits.allow(len(layout.nodes), streams=False)
            backend, why = choice.choose(asked.links, layout)
            if backend.name == "loopback":
                raise ConfigError(
                    f"{why}; programs do not go through its relay, so a network takes links with "
                    "namespaces; `wiretune doctor` says what they need"
                )
            profiles = [node.profile for node in layout.nodes if node.profile is not None]
            if changing := sorted({each.name for each in profiles if each.schedule}):
                why += (
                    f"; they stay as they begin, for no schedule is followed here ({few(changing)})"
                )
            links = backend.up(layout)
            owned.callback(links.down)
            certificate = _certificate(layout, links) if asked.certify else None
            inits: list[int] = []
            owned.callback(_end, inits)
            _start_inits(layout, links, inits)
            built = Built(why, inits, certificate)
            if place is not None:
                visits = Visits(place, layout, built, links)
                owned.callback(visits.close)
            channel.send(built)
            _serve(layout, links, channel, os.pidfd_open(caller), visits)
        except (ConfigError, LinkError, OSError) as error:
            if visits is not None:
                visits.tell_all(in_words(error))
            channel.send(Refused(in_words(error), isinstance(error, ConfigError)))


def _place(asked: Asked, channel: Channel) -> Place | None:
    """The place of a network that is visited; its descriptor is this process's own from now on."""
    if asked.place is None:
        return None
    return Place(Path(asked.place), channel.descriptors.popleft())


def _certificate(layout: Plan, links: Links) -> Certificate:
    prober = Prober(layout, links)
    try:
        return prober.certificate()
    finally:
        prober.close()


def _start_inits(layout: Plan, links: Links, inits: list[int]) -> None:
    """Fork for each node the process that holds its namespaces; raises LinkError."""
    texts = _texts(layout)
    for node in layout.nodes:
        view = View(node.name, (), (), texts)
        *user, network = links.endpoint(node).namespaces
        if user and not inits:
            namespaces.enter((user[0],))
        told, telling = os.pipe()
        try:
            pid = fork_first()
        except LinkError as error:
            raise LinkError(f"start {node.name}: {error}") from error
        if pid == 0:
            # Its parent is in another namespace of processes, and so has the number 0.
            run_as_child(lambda: _be_init(view, network, telling), 0)  # noqa: B023
        inits.append(pid)
        os.close(telling)
        with os.fdopen(told, "rb") as said:
            if reason := said.read().decode():
                raise LinkError(f"start {node.name}: {reason}")


def _texts(layout: Plan) -> tuple[tuple[str, str], ...]:
    """Files that all nodes have of their own, as a view has them."""
    service = Path("/etc/nsswitch.conf")
    lines = files.system_lines(service) if service.exists() else []
    return (
        (jobs.hosts(layout), jobs.HOSTS),
        ("", "/etc/resolv.conf"),
        (jobs.name_service(lines), str(service)),
    )


def _be_init(view: View, network: int, telling: int) -> None:
    namespaces.enter((network,))
    confinement.hold_only([telling])
    try:
        isolate(view)
    except LinkError as error:
        os.write(telling, str(error).encode())
        return
    if _libc.umount2(SHARED.encode(), _DETACH) != 0:
        os.write(telling, f"show {SHARED}: {os.strerror(ctypes.get_errno())}".encode())
        return
    # Whose parents have ended are its children then, and leave nothing behind.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.close(telling)
    while True:
        signal.pause()


def _serve(
    layout: Plan, links: Links, channel: Channel, caller: int, visits: Visits | None
) -> None:
    """Do what is asked until the network is to end; raises LinkError where it breaks."""
    stays = False
    with selectors.DefaultSelector() as selector:
        for each in (channel, links, caller):
            selector.register(each, selectors.EVENT_READ)
        if visits is not None:
            selector.register(visits, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if (reason := links.failure()) is not None:
                raise LinkError(reason)
            # Who has ended may have said something before.
            for order in channel.drain() if not stays else ():
                if isinstance(order, Shape):
                    links.shape(layout.nodes[order.node], order.up, order.down)
                elif isinstance(order, Count):
                    channel.send(Counted(links.counters()))
                elif isinstance(order, Stay):
                    stays = True
                    selector.unregister(channel)
                    selector.unregister(caller)
            if not stays and (channel.closed or caller in ready):
                return
            if visits is not None and visits in ready:
                visits.serve()
                if visits.closing:
                    return


def _end(inits: list[int]) -> None:
    """End every node's processes; the kernel does that with the first of them."""
    for pid in inits:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_LIMIT_S
    left = set(inits)
    while left and time.monotonic() < deadline:
        # One ends once the others are reaped, which those that joined are by who joined them.
        left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(0.002)
