"""What links cost, in system calls: seconds are noisy, counts are not."""

import hashlib
from pathlib import Path

from stations import blast, collect, send_stream, take_stream

from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile

MIB = 1 << 20
PACKETS = 400


def calls(network):
    """Reads and writes of files, devices among them, that the link process has made."""
    text = Path(f"/proc/{network._process.pid}/io").read_text()
    fields = dict(line.split(": ") for line in text.splitlines())
    return int(fields["syscr"]) + int(fields["syscw"])


def test_a_megabyte_of_tcp_crosses_a_link_in_few_large_pieces(build, stand):
    plan, network = build(LinkProfile(name="unlimited"))
    server, client = plan.server, plan.clients[0]
    data = bytes(8 * MIB)
    there = stand(network, server, take_stream(server.address)).ready()
    before = calls(network)
    stand(network, client, send_stream(server.address, data)).result()
    assert there.result()["sha256"] == hashlib.sha256(data).hexdigest()
    # Frame by frame, and each read and written, it were some 12,000.
    assert calls(network) - before < 1_200


def test_a_packet_is_read_once_and_written_once(build, stand):
    plan, network = build(LinkProfile(name="slow", up=Direction(rate_kbit=50_000)))
    server, client = plan.server, plan.clients[0]
    there = stand(network, server, collect(server.address)).ready()
    before = calls(network)
    stand(network, client, blast(server.address, PACKETS, 1000, 0.0005)).result()
    there.stop()
    assert len(there.result()) == PACKETS
    assert calls(network) - before <= 2.1 * PACKETS
