"""Hosts that measure the network between them, before their links are there."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from testbed.links.tunnel.clocks import Offset
from testbed.links.tunnel.measurement import Measured
from testbed.links.tunnel.meeting import Meeting, listen, new_token
from testbed.links.tunnel.streams import Stream
from testbed.links.userspace import backend as userspace
from testbed.network.underlay import Path

NAMES = "abcd"
LIMIT_S = 20.0


def test_pairs_that_share_no_host_measure_at_once(monkeypatch: pytest.MonkeyPatch):
    all_there = threading.Barrier(len(NAMES))
    order: dict[str, list[str]] = {name: [] for name in NAMES}

    def measure(stream: Stream, host: str, other: str, *, first: bool) -> Measured:
        stream.settimeout(LIMIT_S)
        stream.sendall(host.encode())
        assert stream.recv(100).decode() == other
        # Both ends of this pair are there; none goes on before both of the other pair are.
        all_there.wait(LIMIT_S)
        order[host].append(other)
        offset = Offset()
        offset.learn(0.0, 0.0, 0.0, time.monotonic())
        there, back = (Path(*way, 1, 1, 1, 1, 0, 0) for way in ((host, other), (other, host)))
        return Measured(offset, there, back)

    monkeypatch.setattr(userspace, "measure", measure)
    token = new_token()
    with contextlib.ExitStack() as owned, ThreadPoolExecutor(len(NAMES)) as pool:
        listeners = {name: owned.enter_context(listen("127.0.0.1")) for name in NAMES}
        addresses = {name: each.getsockname() for name, each in listeners.items()}
        hosts = [Meeting(name, addresses, listeners[name], token) for name in NAMES]
        found = list(pool.map(userspace._meet, hosts))
        for each in found:
            for connection, _, _ in each.values():
                connection.close()
    for name, each in zip(NAMES, found, strict=True):
        others = [other for other in NAMES if other != name]
        assert list(each) == sorted(order[name]) == others
        assert [ways[0].receiver for _, ways, _ in each.values()] == others
