"""TCP with offload: devices carry bursts, and each segment is served and counted as a frame."""

import hashlib
import os
import random
from pathlib import Path

import pytest
from stations import (
    device_counters,
    protocol_counters,
    send_stream,
    send_stream_until_told,
    take_stream,
)

from testbed.links.userspace import receive_steering
from testbed.network.direction import SEGMENT_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile

SETTLE_S = 20.0
HEADERS_BYTES = 14 + 20 + 20 + 12
"""Of a frame: Ethernet, IP, TCP and its timestamps."""
SYN_OPTIONS_BYTES = 8
"""What the first segment has beyond that."""
SLOW = Direction(rate_kbit=10_000)
BEFALLEN = Direction(
    rate_kbit=40_000,
    delay_ms=3,
    gilbert_elliott=GilbertElliott(good_to_bad_percent=0.5, bad_to_good_percent=50),
    duplicate_percent=2,
    reorder_percent=2,
    corrupt_percent=1,
)


@pytest.mark.parametrize(
    "shape",
    [
        {"rate_kbit": 500_000, "delay_ms": 1, "queue_ms": 500},
        {"rate_kbit": 20_000, "delay_ms": 5, "queue_ms": 5000},
        {},
    ],
    ids=["fast", "slow", "unlimited"],
)
def test_each_segment_counts_as_a_frame_with_its_own_headers(build, stand, until, shape):
    size = 2_000_000
    layout, network = build(LinkProfile(name="test", up=Direction(**shape)))
    server, client = layout.nodes
    data = random.Random(1).randbytes(size)
    taking = stand(network, server, take_stream(server.address)).ready()
    sending = stand(network, client, send_stream(server.address, data))
    assert taking.result()["sha256"] == hashlib.sha256(data).hexdigest()
    sending.result()

    def settled():
        rows = network.counters()
        sent = [stand(network, node, protocol_counters("Tcp")).result() for node in layout.nodes]
        segments = [count["OutSegs"] + count["RetransSegs"] for count in sent]
        down, up = (row.up.frames for row in rows)
        arrived = (rows[0].down.frames, rows[1].down.frames) == (up, down)
        return (rows, sent) if arrived and segments == [down, up] else None

    rows, sent = until(settled, "frames equal the segments that TCP sent", SETTLE_S)
    uplink = rows[client.index].up
    assert uplink.frames > size / SEGMENT_BYTES
    assert (uplink.queue_drops, uplink.losses) == (0, 0)
    assert rows[server.index].down[:2] == uplink[:2]
    assert rows[client.index].down[:2] == rows[server.index].up[:2]
    least = size + HEADERS_BYTES * uplink.frames + SYN_OPTIONS_BYTES
    again = sent[client.index]["RetransSegs"]
    assert least <= uplink.bytes <= least + again * SEGMENT_BYTES
    # The device itself has seen bursts, else this test shows nothing.
    (packets, _), _ = stand(network, client, device_counters).result()
    assert packets < 0.7 * uplink.frames


def test_a_stream_stays_whole_while_its_link_turns_lossy_and_back(build, stand, until):
    fast = Direction(rate_kbit=400_000, delay_ms=2)
    layout, network = build(LinkProfile(name="test", up=fast))
    server, client = layout.nodes
    taking = stand(network, server, take_stream(server.address)).ready()
    block = random.Random(2).randbytes(100_000)
    sending = stand(network, client, send_stream_until_told(server.address, block))

    def carry(more, what):
        """The stream goes on until it is told to stop, so that no change comes after its end."""
        before = network.counters()[client.index].up
        until(
            lambda: network.counters()[client.index].up.bytes - before.bytes > more, what, SETTLE_S
        )
        return network.counters()[client.index].up.losses - before.losses

    assert carry(1_000_000, "carried before the change") == 0
    network.shape(client, BEFALLEN, Direction(loss_percent=1, delay_ms=1))
    assert carry(2_000_000, "carried while it is lossy") > 0
    network.shape(client, fast, Direction())
    carry(1_000_000, "carried afterwards")
    sending.stop()
    sent = sending.result()
    assert sent["bytes"] > 2_000_000
    assert taking.result().items() >= sent.items()
    assert network.failure() is None


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_fast_links_have_the_nodes_kernels_receive_on_other_cores(build, stand):
    layout, network = build(LinkProfile(name="slow", up=SLOW, down=SLOW))
    assert network.facts["receiving"] == "in the link process"
    assert stand(network, layout.server, receiving_mask).result() in ("", 0)
    layout, network = build(LinkProfile(name="fast"))
    mask = stand(network, layout.server, receiving_mask).result()
    if mask == "":
        pytest.skip("the kernel has no rps_default_mask")
    ours = os.sched_getaffinity(network._process.pid)
    assert len(ours) == 1
    others = os.sched_getaffinity(0) - ours
    assert mask == sum(1 << core for core in others)
    assert network.facts["receiving"] == f"on cores {sorted(others)}"
    assert network.down()["backlog_drops"] == 0


def receiving_mask(channel):
    """The mask of this namespace's devices, "" where the kernel has none."""
    path = Path("/proc/sys", receive_steering.SYSCTL)
    return int(path.read_text().replace(",", ""), 16) if path.exists() else ""
