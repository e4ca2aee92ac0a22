"""A Direction as netem's parameters: the kernel's units, and what is read back."""

import struct

import msgspec
import pytest

from testbed.links.interface import LinkError
from testbed.links.linux import netlink
from testbed.links.netem import qdisc
from testbed.links.netem.qdisc import CERTAIN, UNLIMITED_BYTES, UNLIMITED_PACKETS, Netem
from testbed.network.direction import Direction, GilbertElliott
from testbed.network.traces import Trace

CHAIN = GilbertElliott(
    good_to_bad_percent=1, bad_to_good_percent=25, bad_loss_percent=80, good_loss_percent=0.5
)
EVERYTHING = Direction(
    rate_kbit=10_000,
    delay_ms=27.5,
    jitter_ms=1.25,
    gilbert_elliott=CHAIN,
    duplicate_percent=2,
    reorder_percent=3,
    corrupt_percent=4,
)


def test_every_parameter_is_in_the_kernels_units():
    asked = qdisc.netem(EVERYTHING)
    assert asked.latency_ns == 27_500_000
    assert asked.jitter_ns == 1_250_000
    assert asked.rate_bytes == 1_250_000
    # ceil(10 Mbit/s * 28.75 ms) and ceil(10 Mbit/s * 200 ms) in frames of 1514 bytes.
    assert asked.limit == 24 + 166
    assert asked.gap == 1
    for percent, value in ((2, asked.duplicate), (3, asked.reorder), (4, asked.corrupt)):
        assert value == pytest.approx(percent / 100 * 2**32, rel=1e-7)


def test_the_kernels_h_is_what_survives_the_bad_state_and_k1_what_the_good_one_loses():
    chances = [value / CERTAIN for value in qdisc.netem(EVERYTHING).gemodel]
    assert chances == pytest.approx([0.01, 0.25, 1 - 0.80, 0.005], rel=1e-6)


def test_a_line_without_limits_still_has_a_rate_for_that_keeps_packets_in_order():
    for direction in (None, Direction(), Direction(delay_ms=100, jitter_ms=50)):
        asked = qdisc.netem(direction)
        assert asked.rate_bytes == UNLIMITED_BYTES
        assert asked.limit == UNLIMITED_PACKETS
    assert qdisc.netem(None) == qdisc.netem(Direction()) == Netem()


def test_an_outage_loses_everything_and_keeps_the_rest():
    before, during = (
        qdisc.netem(msgspec.structs.replace(EVERYTHING, outage=outage)) for outage in (False, True)
    )
    assert during.loss == CERTAIN and during.gemodel is None
    assert msgspec.structs.replace(during, loss=0, gemodel=before.gemodel) == before


def test_independent_loss():
    assert qdisc.netem(Direction(loss_percent=50)).loss == 2**31
    assert qdisc.netem(Direction(loss_percent=0.0001)).loss == 4295


def test_max_packets_is_the_limit():
    assert qdisc.netem(Direction(rate_kbit=1000, max_packets=7)).limit == 7
    assert qdisc.netem(Direction(max_packets=7)).limit == 7


@pytest.mark.parametrize(
    ("direction", "text"),
    [
        (Direction(delay_ms=3000, jitter_ms=2500), "netem jitter_ns = 2500000000: the kernel"),
        (Direction(rate_kbit=1e6, queue_ms=1e9), "netem limit = "),
        (Direction(rate_kbit=0.02), "rate_kbit = 0.02: netem counts whole bytes per second"),
    ],
)
def test_what_the_kernel_cannot_hold_is_refused(direction, text):
    with pytest.raises(LinkError) as refusal:
        qdisc.netem(direction)
    assert str(refusal.value).startswith(text)


def test_a_trace_counts_ip_bytes_and_the_line_frames():
    assert qdisc.trace_rate_bytes(12_000) == 1_514_000
    assert qdisc.trace_rate_bytes(0.001) == 1
    with pytest.raises(LinkError, match="trace: "):
        qdisc.trace_rate_bytes(4e7)


@pytest.mark.parametrize(
    "direction",
    [None, Direction(loss_percent=1.5), EVERYTHING, Direction(rate_kbit=80e6, delay_ms=1)],
)
def test_what_pyroute2_sends_and_reads_back_is_what_was_asked(direction):
    asked = qdisc.netem(direction)
    answer = sent(asked)
    answer.decode()
    assert qdisc.found(answer.get_attr("TCA_OPTIONS")) == asked


def test_attributes_have_the_kernels_numbers():
    """Those of include/uapi/linux/pkt_sched.h, and struct tc_netem_qopt before them."""
    asked = qdisc.netem(Direction(rate_kbit=80e6, delay_ms=2, jitter_ms=1, gilbert_elliott=CHAIN))
    message = memoryview(bytes(sent(asked).data))
    options = netlink.attributes(message[16 + 20 :])[2]
    assert struct.unpack_from("=IIIIII", options)[1:5] == (asked.limit, 0, 0, 0)
    inside = netlink.attributes(options[24:])
    rate64, latency64, jitter64, loss, gemodel = 8, 10, 11, 5, 2
    assert struct.unpack("=Q", inside[rate64]) == (asked.rate_bytes,)
    assert struct.unpack("=q", inside[latency64]) == (2_000_000,)
    assert struct.unpack("=q", inside[jitter64]) == (1_000_000,)
    chain = netlink.attributes(inside[loss])[gemodel]
    assert struct.unpack("=IIII", chain) == asked.gemodel
    # Reordering, corruption and rate even where there is none: else the kernel keeps the old ones.
    assert {3, 4, 6} <= inside.keys()


def sent(asked: Netem):
    """The message of a change, encoded as pyroute2 sends it."""
    pytest.importorskip("pyroute2")
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    qdisc.teach()
    message = tcmsg()
    message["attrs"] = [("TCA_KIND", "netem"), ("TCA_OPTIONS", qdisc.options(asked))]
    message.encode()
    return tcmsg(message.data)


def test_a_difference_names_each_field_with_both_values():
    asked = qdisc.netem(EVERYTHING)
    assert qdisc.difference(asked, asked) is None
    had = msgspec.structs.replace(asked, limit=1000, jitter_ns=0)
    assert qdisc.difference(asked, had) == (
        "jitter_ns asked 1250000, found 0, limit asked 190, found 1000"
    )


def test_a_trace_too_slow_for_whole_bytes_is_refused():
    """A packet an hour is 0.4 bytes/s; a pause of a minute in a faster one does not matter."""
    with pytest.raises(LinkError, match="whole bytes per second"):
        qdisc.check_trace(Trace((3_600_000,)))
    qdisc.check_trace(Trace((*range(1, 1001), 61_000)))
    qdisc.check_trace(Trace((1,)))
