"""Counters of every access link, read from the kernel in three dumps.

A netlink socket stays in the namespace where it was opened, so the supervisor reads the link
namespace's statistics through one that the link process hands over, and asks nobody.

netem counts what it loses on purpose and what its full queue refuses in one figure. mirred, which
puts every packet before netem, is told of a refusal and not of a loss, and counts it as overlimit:
losses are netem's figure less mirred's. Not exact only for duplicates: a copy that the full queue
refuses counts as lost.
"""

import socket
import struct
from collections import defaultdict
from typing import NamedTuple

from testbed.config_error import in_words
from testbed.links.interface import Counters, LinkCounters, LinkError
from testbed.links.linux import netlink
from testbed.links.netem.devices import link_index, shaper_index
from testbed.links.process import DOWN, LOSSES, UP, CounterTable

_GETQDISC, _GETACTION, _GETSTATS = 38, 50, 94
_LINK_64 = 1
_TCM_BYTES, _STATS_BYTES, _TCA_BYTES = 20, 12, 4
_KIND, _STATS2, _STATS_QUEUE = 1, 7, 3
_ACTION_TABLE, _ACTION_FLAGS, _LARGE_DUMP = 1, 2, 1
_ACTION_OPTIONS, _ACTION_STATS, _MIRRED_PARAMETERS = 2, 4, 2
_QUEUE = struct.Struct("=IIIII")


class _Traffic(NamedTuple):
    """Traffic of one device, as the kernel counts: with the Ethernet header."""

    received_frames: int
    sent_frames: int
    received_bytes: int
    sent_bytes: int


def read(route: socket.socket, table: CounterTable) -> list[LinkCounters]:
    """One entry a node; ``table`` has the losses of qdiscs that are no more.

    Raises:
        LinkError: the kernel does not answer.
    """
    try:
        traffic, drops, refused = _traffic(route), _drops(route), _refused(route)
    except OSError as error:
        raise LinkError(f"read the links' counters: {in_words(error)}") from error
    found = []
    for node in range(table.nodes):
        link = traffic[link_index(node)]
        up, down = (
            _queue(node, way, drops, refused, table.words[table.offset(node, way) + LOSSES])
            for way in (UP, DOWN)
        )
        found.append(
            LinkCounters(
                # The link namespace receives what the node sends.
                Counters(link.received_frames, link.received_bytes, *up),
                Counters(link.sent_frames, link.sent_bytes, *down),
            )
        )
    return found


def _queue(
    node: int, way: int, drops: dict[int, int], refused: dict[int, int], before: int
) -> tuple[int, int]:
    """Queue drops and losses of one direction."""
    device = shaper_index(node, way)
    return refused[device], max(0, before + drops[device] - refused[device])


def _traffic(route: socket.socket) -> dict[int, _Traffic]:
    found = {}
    for message in netlink.dump(route, _GETSTATS, struct.pack("=BxHII", 0, 0, 0, _LINK_64)):
        (device,) = struct.unpack_from("=I", message, 4)
        statistics = netlink.attributes(message[_STATS_BYTES:])[_LINK_64]
        found[device] = _Traffic(*struct.unpack_from("=QQQQ", statistics))
    return found


def _drops(route: socket.socket) -> dict[int, int]:
    """Packets that each netem has lost or refused, by device."""
    found: dict[int, int] = defaultdict(int)
    for message in netlink.dump(route, _GETQDISC, bytes(_TCM_BYTES)):
        attributes = netlink.attributes(message[_TCM_BYTES:])
        if bytes(attributes[_KIND]) == b"netem\0":
            (device,) = struct.unpack_from("=i", message, 4)
            found[device] = _queue_statistics(attributes[_STATS2])[2]
    return found


def _refused(route: socket.socket) -> dict[int, int]:
    """Packets that a full queue has refused, by the device that they are redirected to."""
    table = netlink.nest(_ACTION_TABLE, netlink.nest(1, netlink.attribute(_KIND, b"mirred\0")))
    flags = netlink.attribute(_ACTION_FLAGS, struct.pack("=II", _LARGE_DUMP, _LARGE_DUMP))
    found: dict[int, int] = defaultdict(int)
    for message in netlink.dump(route, _GETACTION, bytes(_TCA_BYTES) + table + flags):
        tables = netlink.attributes(message[_TCA_BYTES:])
        for entry in netlink.attributes(tables[_ACTION_TABLE]).values():
            action = netlink.attributes(entry)
            options = netlink.attributes(action[_ACTION_OPTIONS])
            (device,) = struct.unpack_from("=I", options[_MIRRED_PARAMETERS], 24)
            found[device] = _queue_statistics(action[_ACTION_STATS])[4]
    return found


def _queue_statistics(statistics: memoryview) -> tuple[int, ...]:
    """Length, backlog, drops, requeues and overlimits of struct gnet_stats_queue."""
    return _QUEUE.unpack_from(netlink.attributes(statistics)[_STATS_QUEUE])
