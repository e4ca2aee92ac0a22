"""Userspace links from up to down: what they leave behind, and how they say that they cannot."""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from stations import Station, device_counters, echo, ipv6_addresses, ping

from testbed.links.interface import LinkError
from testbed.links.linux import namespaces
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


def descriptors() -> dict[str, str]:
    found = {}
    for entry in os.scandir("/proc/self/fd"):
        try:
            found[entry.name] = os.readlink(entry.path)
        except FileNotFoundError:
            continue  # The one that listed the folder.
    return found


def devices() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


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
    before = descriptors(), devices(), children()
    for _ in range(3):
        layout = plan([UNLIMITED] * 3)
        network = userspace.up(layout)
        paths = {network.endpoint(node).namespaces for node in layout.nodes}
        held = {os.stat(path[-1]).st_ino for path in paths}
        assert len(held) == len(layout.nodes)
        assert os.stat("/proc/self/ns/net").st_ino not in held
        assert len(children() - before[2]) == 1
        closing = network.down()
        assert closing["write_errors"] == closing["unroutable_packets"] == 0
        assert network.down() == closing
        assert (descriptors(), devices(), children()) == before


def test_a_network_that_fails_half_way_leaves_nothing(userspace_links):
    before = descriptors(), devices(), children()
    *nodes, last = plan([UNLIMITED] * 3).nodes
    nowhere = Plan((*nodes, msgspec.structs.replace(last, address="0.0.0.0")))
    with pytest.raises(LinkError, match=r"give wire0 the address 0\.0\.0\.0: "):
        userspace.up(nowhere)
    assert (descriptors(), devices(), children()) == before


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
