"""Userspace links from up to down: what they leave behind, and how they say that they cannot."""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from stations import LIMIT_S, PORT, READY, Station, device_counters, echo, ipv6_addresses, ping

from testbed import clock
from testbed.links.interface import LinkError
from testbed.links.linux import namespaces, netlink
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Result, Worker

UNLIMITED = LinkProfile(name="unlimited")
SILENCE_S = 2.5
"""Router solicitations would come within the first second."""
NOBODY = 65534
PROBE = "from testbed.links.userspace import backend as userspace; print(userspace.probe())"
ROOT = Path(__file__).parents[2]

_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x44000
_PR_SET_DUMPABLE = 4


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            found.add((entry.name, os.readlink(entry.path)))
        except FileNotFoundError:
            continue  # The one that listed the folder.
    return found


def devices() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def held() -> set[object]:
    """What this process holds. Compare by difference: what earlier tests left may end anytime."""
    return descriptors() | devices() | children()


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def probed(restrict) -> str | None:
    """``userspace.probe()`` of a process after ``restrict()``."""

    def body(channel) -> str | None:
        restrict()
        return userspace.probe()

    with contextlib.closing(Worker("probing", body)) as worker:
        return worker.receive(Result, 30).value


def test_up_and_down_leave_nothing(userspace_links):
    before = held()
    for _ in range(3):
        layout = plan([UNLIMITED] * 3)
        network = userspace.up(layout)
        paths = {network.endpoint(node).namespaces for node in layout.nodes}
        own = {os.stat(path[-1]).st_ino for path in paths}
        assert len(own) == len(layout.nodes)
        assert os.stat("/proc/self/ns/net").st_ino not in own
        assert len(children() - before) == 1
        closing = network.down()
        assert closing["write_errors"] == closing["unroutable_packets"] == 0
        assert network.down() == closing
        assert not held() - before


def test_a_network_that_fails_half_way_leaves_nothing(userspace_links):
    before = held()
    *nodes, last = plan([UNLIMITED] * 3).nodes
    nowhere = Plan((*nodes, msgspec.structs.replace(last, address="0.0.0.0")))
    with pytest.raises(LinkError, match=r"give wire0 the address 0\.0\.0\.0: "):
        userspace.up(nowhere)
    assert not held() - before


def test_more_nodes_than_descriptors_of_one_message(build, stand):
    layout, network = build(*[LinkProfile(name="x", up=Direction(delay_ms=1))] * 230)
    stand(network, layout.server, echo(layout.server.address)).ready()
    for client in (layout.clients[0], layout.clients[-1]):
        assert min(stand(network, client, ping(layout.server.address, 3)).result()) >= 1
    frames = [row.up.frames for row in network.counters()]
    assert [index for index, count in enumerate(frames) if count] == [0, 1, 230]


def test_a_channel_works_above_the_limit_of_select():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"needs 1200 open files, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    pair = socket.socketpair()
    one, other = (
        Channel(socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 1100))) for end in pair
    )
    for end in pair:
        end.close()
    one.send({"a": 1})
    assert other.receive(5) == {"a": 1}
    with pytest.raises(TimeoutError):
        other.receive(0.01)
    one.close()
    assert other.drain() == [] and other.closed
    other.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_links_are_silent_when_nobody_sends(build, stand):
    layout, network = build(UNLIMITED, UNLIMITED)
    assert not select.select([network], [], [], SILENCE_S)[0]
    assert network.failure() is None
    for node, row in zip(layout.nodes, network.counters(), strict=True):
        assert row == ((0, 0, 0, 0), (0, 0, 0, 0))
        assert stand(network, node, device_counters).result() == [[0, 0], [0, 0]]
        assert namespaces.INTERFACE not in stand(network, node, ipv6_addresses).result()


def test_a_killed_link_process_is_told(build):
    before = children()
    _, network = build(UNLIMITED)
    (process,) = children() - before
    process.send_signal(signal.SIGKILL)
    assert select.select([network], [], [], 30)[0]
    process_gone(process)
    assert network.failure() == "the link process killed by SIGKILL"
    assert network.down() == {}


def process_gone(process: psutil.Process) -> None:
    pidfd = os.pidfd_open(process.pid)
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


def own_devices(mode: int | None) -> None:
    """Give this process a /dev/net of its own, where tun has ``mode``, or where there is none."""
    assert namespaces._libc.unshare(_CLONE_NEWNS) == 0
    assert namespaces._libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
    assert namespaces._libc.mount(b"none", b"/dev/net", b"tmpfs", 0, None) == 0
    if mode is not None:
        os.mknod(namespaces.TUN_PATH, stat.S_IFCHR, os.makedev(10, 200))
        os.chmod(namespaces.TUN_PATH, mode)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # As after the exec that a user's process has behind it.
    assert namespaces._libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


def test_probe_without_the_device_names_it(root, userspace_links):
    reason = probed(lambda: own_devices(None))
    assert reason.startswith("open /dev/net/tun")
    assert reason.endswith(": No such file or directory")


def test_probe_without_the_right_to_the_device_names_it(root, userspace_links):
    reason = probed(lambda: (own_devices(0o600), become_nobody()))
    assert reason.startswith(("open /dev/net/tun", "make a user namespace"))
    assert reason.endswith(("Permission denied", "Operation not permitted"))


def test_a_plain_user_with_the_device_gets_a_network(root, userspace_links, without_capabilities):
    """All in a process that is no longer root, since that way there is none back."""

    def body(channel) -> dict[str, Any]:
        own_devices(0o666)
        become_nobody()
        layout = plan([LinkProfile(name="x", up=Direction(delay_ms=5))])
        network = userspace.up(layout)
        server = Station(network, layout.server, echo(layout.server.address)).ready()
        client = Station(network, layout.clients[0], ping(layout.server.address, 5))
        trips = client.result()
        client.close()
        server.close()
        network.down()
        return {"facts": network.facts, "trips": trips}

    with contextlib.closing(Worker("user", body)) as worker:
        found = worker.receive(Result, 30).value
        assert found["facts"]["rootless"] is True
        assert min(found["trips"]) >= 5
        assert worker.child.ended(30) == "exited with 0"


def run_probe(prefix: list[str]) -> str:
    command = [*prefix, sys.executable, "-c", PROBE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_probe_without_capabilities_takes_a_user_namespace(userspace_links, without_capabilities):
    assert run_probe(without_capabilities) == "None"


def test_probe_without_user_namespaces_says_which_settings_forbid_them(without_user_namespaces):
    reason = run_probe(without_user_namespaces)
    assert reason.startswith("make a user namespace")
    assert "user.max_user_namespaces" in reason


RTM_GETROUTE, RTA_METRICS, RTAX_RTO_MIN, ROUTE_BYTES = 26, 8, 13, 12
LOSSY = LinkProfile(name="lossy", up=Direction(loss_percent=1.0))
CORRUPT = LinkProfile(name="corrupt", down=Direction(corrupt_percent=1.0))


def timers(channel: Channel) -> dict[str, Any]:
    """Least time-out of TCP in this namespace, None where it is the kernel's own, and whether it
    probes for what was sent last."""
    least = []
    with netlink.open_route() as route:
        for message in netlink.dump(route, RTM_GETROUTE, struct.pack("=B11x", socket.AF_INET)):
            metrics = netlink.attributes(message[ROUTE_BYTES:]).get(RTA_METRICS)
            if metrics is not None and RTAX_RTO_MIN in (found := netlink.attributes(metrics)):
                least.append(struct.unpack("=I", found[RTAX_RTO_MIN])[0])
    probes = Path("/proc/sys/net/ipv4/tcp_early_retrans").read_text().strip() != "0"
    return {"least_ms": least[0] if least else None, "probes": probes}


@pytest.mark.parametrize(
    ("dilation", "link", "least_ms", "probes"),
    [
        pytest.param(1.0, UNLIMITED, None, True, id="the machine's clock"),
        pytest.param(16.0, LOSSY, 3200, True, id="a slower clock"),
        pytest.param("elastic", UNLIMITED, 3000, False, id="elastic"),
        pytest.param("elastic", LOSSY, None, True, id="elastic and lossy"),
        pytest.param("elastic", CORRUPT, None, True, id="elastic and corrupt"),
    ],
)
def test_timers_of_tcp_suit_the_clock(dilation, link, least_ms, probes):
    with clock.emulated(dilation, 2):
        network = userspace.up(plan([link]))
        try:
            for node in plan([link]).nodes:
                with contextlib.closing(Station(network, node, timers)) as station:
                    assert station.result() == {"least_ms": least_ms, "probes": probes}
        finally:
            network.down()


def trip(address: str) -> Callable[[Channel], Any]:
    """Exchange one datagram; returns the round trip in seconds of the run's clock."""

    def body(channel: Channel) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(LIMIT_S)
            began = clock.monotonic()
            sock.sendto(b"ping", (address, PORT))
            channel.send(READY)
            sock.recv(100)
            return clock.monotonic() - began

    return body


def soon(condition: Callable[[], Any]) -> Any:
    """What ``condition`` says once it says something."""
    until = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < until
        select.select([], [], [], 0.001)
    return found


def test_virtual_time_stands_still_for_packets_too():
    """What is on its way while more compute than there are cores arrives after that, on time."""
    layout = plan([LinkProfile(name="slow", up=Direction(delay_ms=50.0))])
    crowd = len(os.sched_getaffinity(0)) + 1
    with clock.elastic(crowd + 2):
        virtual = clock.virtual()
        network = userspace.up(layout)
        try:
            server, client = layout.nodes[0], layout.nodes[1]
            with contextlib.closing(Station(network, server, echo(server.address))) as station:
                station.ready()
                virtual.follows = True
                for node in range(crowd):
                    virtual.take_place(2 + node)
                    virtual.computes(2 + node, clock.monotonic_ns())
                assert soon(lambda: virtual.is_held)
                with contextlib.closing(Station(network, client, trip(server.address))) as sender:
                    sender.ready()
                    assert soon(lambda: network.counters()[1].up.frames) == 1
                    assert network.counters()[0].down.frames == 0 and virtual.is_held
                    for node in range(crowd):
                        virtual.waits(2 + node)
                    assert 0.05 <= sender.result() < 0.25
        finally:
            network.down()
