"""Runs whose transfers cannot end in time: refused with sums worked out by hand."""

import pytest

from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.run.feasible import Traffic, refusal

PAYLOAD_KBIT = 8.0
LINE_KBIT = PAYLOAD_KBIT * FRAME_BYTES / SEGMENT_BYTES
"""A kilobyte of payload a second."""
SLOW = LinkProfile(
    name="slow",
    up=Direction(rate_kbit=LINE_KBIT, delay_ms=500),
    down=Direction(rate_kbit=2 * LINE_KBIT),
)
FAST = LinkProfile(name="fast")
TRAFFIC = Traffic(up=10_000, down=6_000)
"""Over ``SLOW``: 10 s and half a second up, 3 s down."""


def refused(profiles, rounds=4, round_timeout_s=1e6, time_limit_s=1e6, server=None) -> str | None:
    return refusal(plan(profiles, server), TRAFFIC, rounds, round_timeout_s, time_limit_s)


@pytest.mark.parametrize(("limit_s", "fits"), [(54.1, True), (53.9, False)])
def test_the_slowest_client_decides(limit_s: float, fits: bool) -> None:
    assert (refused([FAST, SLOW, FAST], time_limit_s=limit_s) is None) == fits


@pytest.mark.parametrize(("limit_s", "fits"), [(13.6, True), (13.4, False)])
def test_a_round_must_fit_its_own_limit(limit_s: float, fits: bool) -> None:
    reason = refused([SLOW], round_timeout_s=limit_s)
    assert (reason is None) == fits
    if reason:
        assert "round_timeout_s = 13.4: a round takes at least 13.5 s" in reason


def test_the_reason_is_the_arithmetic() -> None:
    reason = refused([FAST, SLOW], time_limit_s=50)
    assert reason is not None
    assert reason.startswith(
        "cannot end within time_limit_s = 50: 4 rounds of at least 13.5 s take 54 s, for client-2 "
        "(slow) sends 10,000 bytes at 8 kbit/s of payload and receives 6,000 bytes at 16 kbit/s"
    )


@pytest.mark.parametrize(
    ("way", "least_s", "said"),
    [
        # Down is what the server receives: three clients' 10 kB at 2 kB/s.
        ({"down": Direction(rate_kbit=2 * LINE_KBIT)}, 15, "receives 30,000 bytes"),
        ({"up": Direction(rate_kbit=LINE_KBIT)}, 18, "sends 18,000 bytes"),
    ],
    ids=["down", "up"],
)
def test_the_servers_link_carries_all_clients(
    way: dict[str, Direction], least_s: float, said: str
) -> None:
    server = LinkProfile(name="shared", **way)
    assert refused([FAST] * 3, rounds=1, time_limit_s=least_s + 0.1, server=server) is None
    reason = refused([FAST] * 3, rounds=1, time_limit_s=least_s - 0.1, server=server)
    assert reason is not None and "server (shared)" in reason and said in reason


@pytest.mark.parametrize(("deadline_s", "fits"), [(13.6, True), (13.4, False)])
def test_a_deadline_must_leave_time_to_some_client(deadline_s: float, fits: bool) -> None:
    def refused_by(*profiles: LinkProfile) -> str | None:
        return refusal(plan(list(profiles)), TRAFFIC, 1000, 1e6, 1e6, deadline_s)

    reason = refused_by(SLOW, SLOW)
    assert (reason is None) == fits
    if reason:
        assert reason.startswith(
            "no client can meet deadline_s = 13.4: a round takes at least 13.5 s, for client-1"
        )
    # One that can is enough, and rounds end at the deadline at the latest.
    assert refused_by(SLOW, FAST) is None


def test_among_clients_both_ways_are_at_once_and_the_servers_link_is_free() -> None:
    server = LinkProfile(name="shared", down=Direction(rate_kbit=1), up=Direction(rate_kbit=1))
    layout = plan([SLOW, FAST], server)
    traffic = Traffic(*TRAFFIC[:2], among_clients=True)
    assert refusal(layout, traffic, 4, 10.6, 42.1) is None
    assert refusal(layout, traffic, 4, 10.6, 41.9) is not None


def test_links_without_limits_are_never_too_slow() -> None:
    assert refused([FAST], time_limit_s=0.001) is None


def test_a_packet_limit_bounds_what_a_line_carries() -> None:
    """Ten frames at a time, each held for its delay and 1.2112 ms on the line."""
    short = Direction(rate_kbit=10_000, delay_ms=50, max_packets=10)
    assert short.ideal_goodput_kbit == pytest.approx(8 * 14_480 / 51.2112)
    link = LinkProfile(name="short", up=short)
    # 100 windows of 14,480 bytes, the last one at the line's own rate.
    whole_s = 0.050 + 99 * 0.0512112 + 10 * 0.0012112
    traffic = Traffic(up=1_448_000, down=0)
    assert refusal(plan([link]), traffic, 1, 1e6, whole_s + 0.01) is None
    reason = refusal(plan([link]), traffic, 1, 1e6, whole_s - 0.01)
    assert reason is not None and "sends 1,448,000 bytes at 2262 kbit/s of payload" in reason
