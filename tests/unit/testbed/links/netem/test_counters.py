"""Netlink answers as the kernel writes them, and the counters that are made of them."""

import errno
import struct
from collections import deque

import pytest

from testbed.links.interface import Counters, LinkError
from testbed.links.linux import netlink
from testbed.links.netem import counters
from testbed.links.netem.devices import link_index, shaper_index
from testbed.links.process import DOWN, LOSSES, UP, CounterTable

DONE, ERROR, MULTI = 3, 2, 2
GETQDISC, GETACTION, GETSTATS = 38, 50, 94


class Kernel:
    """A route socket's other end: answers each request with the messages of its type."""

    def __init__(self, answers: dict[int, list[bytes]], end: int = 0) -> None:
        self._answers = answers
        self._end = end
        self._datagrams: deque[bytes] = deque()
        self.asked: list[int] = []

    def send(self, request: bytes) -> None:
        _, kind, _, number, _ = struct.unpack_from("=IHHII", request)
        self.asked.append(kind)
        # Of an earlier request that nobody waits for any more.
        self._datagrams.append(message(DONE, number - 1, 0))
        for body in self._answers.get(kind, []):
            self._datagrams.append(message(kind, number, body))
        self._datagrams.append(message(ERROR if self._end else DONE, number, self._end))

    def recv(self, size: int) -> bytes:
        return self._datagrams.popleft()


def message(kind: int, number: int, body: bytes | int) -> bytes:
    data = body if isinstance(body, bytes) else struct.pack("=i", body)
    return struct.pack("=IHHII", 16 + len(data), kind, MULTI, number, 0) + data


def statistics(device: int, received: tuple[int, int], sent: tuple[int, int]) -> bytes:
    """RTM_NEWSTATS: frames and bytes of rtnl_link_stats64."""
    counts = struct.pack("=QQQQ", received[0], sent[0], received[1], sent[1]) + bytes(8 * 20)
    return struct.pack("=BxHII", 0, 0, device, 1) + netlink.attribute(1, counts)


def queue(kind: int, drops: int = 0, overlimits: int = 0) -> bytes:
    counts = struct.pack("=IIIII", 0, 0, drops, 0, overlimits)
    return netlink.nest(kind, netlink.attribute(3, counts))


def qdisc(device: int, kind: str, drops: int) -> bytes:
    """RTM_NEWQDISC."""
    name = netlink.attribute(1, kind.encode() + b"\0")
    return struct.pack("=BxxxiIII", 0, device, 1, 2, 3) + name + queue(7, drops)


def actions(*entries: tuple[int, int]) -> bytes:
    """RTM_GETACTION's answer: (device, overlimits) of each mirred."""
    made = []
    for number, (device, overlimits) in enumerate(entries, start=1):
        parameters = struct.pack("=IIiiiiI", 1, 0, 4, 1, 1, 1, device)
        options = netlink.nest(2, netlink.attribute(2, parameters))
        kind = netlink.attribute(1, b"mirred\0")
        made.append(netlink.attribute(number, kind, options, queue(4, 0, overlimits)))
    return bytes(4) + netlink.attribute(1, *made)


def network() -> Kernel:
    """Two nodes; the second has a traced downlink."""
    links = [link_index(node) for node in (0, 1)]
    up, down = shaper_index(1, UP), shaper_index(1, DOWN)
    stats = [statistics(1, (0, 0), (0, 0)), statistics(links[0], (1, 60), (2, 120))]
    stats += [statistics(links[1], (100, 9000), (200, 19_000)), statistics(up, (5, 5), (5, 5))]
    qdiscs = [qdisc(links[1], "noqueue", 0), qdisc(up, "netem", 12)]
    qdiscs += [qdisc(down, "netem", 20), qdisc(down, "htb", 30)]
    return Kernel({GETSTATS: stats, GETQDISC: qdiscs, GETACTION: [actions((up, 5), (down, 20))]})


def test_counters_are_of_the_nodes_own_device_and_drops_of_the_right_qdisc():
    kernel = network()
    server, client = counters.read(kernel, CounterTable(2))
    # What the link namespace receives is what the node sent.
    assert server == (Counters(1, 60, 0, 0), Counters(2, 120, 0, 0))
    assert client.up == Counters(100, 9000, queue_drops=5, losses=12 - 5)
    assert client.down == Counters(200, 19_000, queue_drops=20, losses=0)
    assert kernel.asked == [GETSTATS, GETQDISC, GETACTION]


def test_losses_of_qdiscs_that_are_no_more_count_on():
    table = CounterTable(2)
    table.words[table.offset(1, UP) + LOSSES] = 1000
    table.words[table.offset(1, DOWN) + LOSSES] = 3
    client = counters.read(network(), table)[1]
    assert (client.up.losses, client.down.losses) == (1000 + 12 - 5, 3 + 20 - 20)


def test_a_refusal_names_what_was_read():
    with pytest.raises(LinkError, match=r"read the links' counters: .*Operation not permitted"):
        counters.read(Kernel({}, end=-errno.EPERM), CounterTable(1))


def test_a_change_waits_for_its_own_acknowledgement():
    kernel = Kernel({36: [b"\0" * 4]}, end=-errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        netlink.change(kernel, 36, 0, b"")


def test_attributes_nest_and_are_padded():
    inner = netlink.attribute(3, b"abcde")
    data = memoryview(netlink.attribute(1, b"x") + netlink.nest(2, inner, inner))
    found = netlink.attributes(data)
    assert bytes(found[1]) == b"x"
    assert bytes(netlink.attributes(found[2])[3]) == b"abcde"
    assert len(inner) == 12
    # A length that the kernel would not write ends it, and does not loop.
    assert netlink.attributes(memoryview(bytes(8))) == {}
