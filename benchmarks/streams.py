"""TCP streams that fill every client's link of a network at once, for benchmarks of the links.

Each link has its own stream of plain sockets; one process has all clients' ends, another the
server's. A client opens its stream, whichever way bytes go.
"""

import select
import socket
import time
from typing import Any

import psutil

from testbed.links.interface import Network
from testbed.links.linux import namespaces
from testbed.network.topology import Node, Plan
from testbed.processes.channel import Channel

PORT = 7000
WARM_S = 3.0
"""Until TCP has found the rate, and the queues their level."""
WAIT_S = 30.0
CHUNK_BYTES = 1 << 17

Sockets = dict[int, socket.socket]
"""By their descriptors."""


def stand(network: Network, node: Node) -> None:
    """Enter the node's own network; sockets made there stay there."""
    namespaces.enter(network.endpoint(node).namespaces[-1:])


def call(network: Network, layout: Plan, congestion: str | None = None) -> Sockets:
    """A stream of each client to the server."""
    found = {}
    for client in layout.clients:
        stand(network, client)
        sock = socket.socket()
        if congestion:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        sock.connect((layout.server.address, PORT))
        sock.setblocking(False)
        found[sock.fileno()] = sock
    return found


def await_calls(network: Network, layout: Plan, results: Channel) -> Sockets:
    """The server's end of each; ``results`` hears when it listens."""
    stand(network, layout.server)
    found = {}
    with socket.create_server((layout.server.address, PORT), backlog=1000) as listener:
        results.send({"listening": True})
        for _ in layout.clients:
            sock, _ = listener.accept()
            sock.setblocking(False)
            found[sock.fileno()] = sock
    return found


def send(sockets: Sockets, seconds: float) -> None:
    """Send on each as fast as it goes."""
    poller, chunk = select.epoll(), bytes(CHUNK_BYTES)
    for descriptor in sockets:
        poller.register(descriptor, select.EPOLLOUT)
    ends = time.monotonic() + seconds
    while (left_s := ends - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left_s):
            try:
                sockets[descriptor].send(chunk)
            except BlockingIOError:
                continue
            except ConnectionError:
                return  # The receiver has seen enough.


def take(sockets: Sockets, seconds: float, results: Channel) -> None:
    """Take every stream; report when measuring begins, then each stream's goodput in kbit/s."""
    poller, buffer = select.epoll(), bytearray(1 << 22)
    for descriptor in sockets:
        poller.register(descriptor, select.EPOLLIN)
    taken = dict.fromkeys(sockets, 0)

    def take_until(ends: float) -> dict[int, int]:
        while (left_s := ends - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left_s):
                # With MSG_TRUNC the kernel counts TCP's bytes and copies none.
                size = len(buffer)
                taken[descriptor] += sockets[descriptor].recv_into(buffer, size, socket.MSG_TRUNC)
        return dict(taken)

    before = take_until(time.monotonic() + WARM_S)
    results.send({"began": True})
    began = time.monotonic()
    after = take_until(began + seconds)
    measured_ms = 1000 * (time.monotonic() - began)
    results.send({"kbit": [8 * (after[key] - before[key]) / measured_ms for key in after]})


def busy_s() -> float:
    """CPU time of the whole machine so far."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def used_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def delivered(now: list[Any], before: list[Any]) -> int:
    """Frames that reached a node between two readings of a network's counters."""
    rows = zip(now, before, strict=True)
    return sum(after.down.frames - was.down.frames for after, was in rows)
