"""From up to down: how a network comes to be, what it says when it cannot, what it leaves."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stations import Station, echo, ping

from testbed.links.interface import Backend, LinkError
from testbed.links.linux import namespaces, offload
from testbed.links.netem import backend as netem
from testbed.links.netem import qdisc
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Result, Worker

LIMIT_S = 30.0
NOBODY = 65534
_PR_SET_DUMPABLE = 4
LINK = LinkProfile(
    name="link", up=Direction(rate_kbit=2000, delay_ms=7), down=Direction(delay_ms=5)
)


def apart(body: Callable[[], Any]) -> Any:
    """What ``body`` returns, run in a process of its own."""
    with contextlib.closing(Worker("apart", lambda channel: body())) as worker:
        return worker.receive(Result, LIMIT_S).value


def rootless(backend: Backend) -> Any:
    """A network of a user without rights, in a user namespace."""

    def body() -> Any:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # As after the exec that a user's process has behind it.
        namespaces._libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        reason = backend.probe()
        if reason is not None:
            return {"reason": reason}
        layout = plan([LINK])
        network = backend.up(layout)
        server = Station(network, layout.server, echo(layout.server.address)).ready()
        client = Station(network, layout.clients[0], ping(layout.server.address, 5))
        trips = client.result()
        network.shape(layout.clients[0], Direction(delay_ms=60), Direction())
        time.sleep(0.1)
        slower = Station(network, layout.clients[0], ping(layout.server.address, 3)).result()
        found = {
            "reason": None,
            "facts": network.facts,
            "ms": min(trips),
            "slower_ms": min(slower),
            "counters": network.counters()[1],
            "failure": network.failure(),
        }
        client.close()
        server.close()
        network.down()
        return found

    return apart(body)


def after_sigkill(backend: Backend) -> Any:
    """Uses of sch_netem before a run, in it, and once the run has been killed."""
    before = _uses()

    def body(channel: Channel) -> None:
        network = backend.up(plan([LINK] * 2))
        channel.send(Result(network._process.pid))
        time.sleep(LIMIT_S)

    worker = Worker("run", body)
    link_process = worker.receive(Result, LIMIT_S).value
    during = _uses()
    worker.close()
    deadline = time.monotonic() + 10
    while _uses() != before and time.monotonic() < deadline:
        time.sleep(0.1)
    return {
        "before": before,
        "during": during,
        "after": _uses(),
        "link_process_runs": _runs(link_process),
    }


def _uses() -> int:
    """How many qdiscs there are of sch_netem, in all namespaces."""
    lines = Path("/proc/modules").read_text().splitlines()
    return next(int(line.split()[2]) for line in lines if line.startswith("sch_netem "))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def mismatches() -> Any:
    """What a network says of a kernel that does not do what it is asked: at once, and later."""

    def body() -> Any:
        honest = qdisc.options

        def lying(asked: qdisc.Netem) -> dict[str, Any]:
            wrong = {"limit": asked.limit + 1} if asked.limit in (11, 12) else {}
            return {**honest(asked), **wrong}

        qdisc.options = lying
        found = {}
        try:
            netem.up(plan([LinkProfile(name="x", down=Direction(max_packets=11))]))
        except LinkError as error:
            found["up"] = str(error)
        layout = plan([LINK])
        network = netem.up(layout)
        network.shape(layout.clients[0], Direction(max_packets=12), Direction())
        deadline = time.monotonic() + 10
        while network.failure() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        found["shape"] = network.failure()
        network.down()
        return found

    return apart(body)


def aggregating_features() -> Any:
    """Offloads of a node's device that are on."""
    import socket

    layout = plan([LINK])
    network = netem.up(layout)

    def body(channel: Any) -> list[str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            names = offload.feature_names(control, namespaces.INTERFACE)
            active = offload._active(control, namespaces.INTERFACE, -(-len(names) // 32))
        return [names[bit] for bit in sorted(active) if offload.aggregates(names[bit])]

    try:
        return Station(network, layout.clients[0], body).result()
    finally:
        network.down()
