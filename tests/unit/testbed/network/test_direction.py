"""A Direction: its arithmetic, and what each value that no link can have is told."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import direction
from testbed.network.direction import FRAME_BYTES, Direction, GilbertElliott


@pytest.mark.parametrize(
    ("rate", "delay", "jitter", "queue", "expected"),
    [
        # 10 Mbit/s * 50 ms = 500 000 bit = 41.28 frames of 12 112 bit -> 42, twice
        (10_000, 50, 0, 50, 84),
        # ... and 200 ms = 165.13 frames -> 166
        (10_000, 50, 0, 200, 42 + 166),
        # jitter widens the delay line: 60 ms = 49.54 -> 50
        (10_000, 50, 10, 50, 50 + 42),
        # 21 300 * 32.5 / 12 112 = 57.15 -> 58; 21 300 * 200 / 12 112 = 351.7 -> 352
        (21_300, 27.5, 5, 200, 58 + 352),
        # exactly 100 frames in 100 ms: no frame more
        (12_112, 100, 0, 100, 200),
        (12_112, 0, 0, 100, 100),
        # 0.1 * 3 is a hair above 0.3: still 3 frames
        (12_112 * 0.1, 30, 0, 100, 3 + 10),
        # 20 kbit/s * 200 ms is a third of a frame -> 1: the least is 4
        (20, 0, 0, 200, 4),
        (None, 50, 10, 200, None),
    ],
)
def test_limit_packets(
    rate: float | None, delay: float, jitter: float, queue: float, expected: int | None
) -> None:
    link = Direction(rate_kbit=rate, delay_ms=delay, jitter_ms=jitter, queue_ms=queue)
    assert link.limit_packets == expected


@settings(derandomize=True, deadline=None)
@given(
    rate=st.floats(1, 10e6),
    delay=st.floats(0, 2000),
    queue=st.floats(0.1, 10_000),
)
def test_limit_holds_the_queue_and_little_more(rate: float, delay: float, queue: float) -> None:
    limit = Direction(rate_kbit=rate, delay_ms=delay, queue_ms=queue).limit_packets
    assert limit is not None
    frames = rate * (delay + queue) / (8 * FRAME_BYTES)
    assert limit >= direction.MIN_LIMIT_PACKETS
    assert limit >= math.floor(frames) and limit <= max(frames + 2, direction.MIN_LIMIT_PACKETS)


@pytest.mark.parametrize(
    ("line", "kbit"),
    [
        # What holds all of the delay and a frame is no limit.
        (Direction(rate_kbit=10_000, delay_ms=50, max_packets=43), 10_000),
        (Direction(rate_kbit=10_000, delay_ms=50, max_packets=42), 42 * 12_112 / 51.2112),
        (Direction(rate_kbit=10_000, max_packets=1), 10_000),
        (Direction(delay_ms=50, max_packets=10), 10 * 12_112 / 50),
        (Direction(max_packets=10), None),
    ],
)
def test_a_line_carries_no_more_than_its_packet_limit_holds(
    line: Direction, kbit: float | None
) -> None:
    assert line.carried_kbit == (None if kbit is None else pytest.approx(kbit))


@given(
    rate_kbit=st.floats(1, 1e6),
    delay_ms=st.floats(0, 1000),
    jitter=st.floats(0, 1),
    queue_ms=st.floats(0.01, 1000),
)
def test_a_queue_said_in_ms_never_bounds_a_line(
    rate_kbit: float, delay_ms: float, jitter: float, queue_ms: float
) -> None:
    line = Direction(
        rate_kbit=rate_kbit, delay_ms=delay_ms, jitter_ms=jitter * delay_ms, queue_ms=queue_ms
    )
    assert line.carried_kbit == rate_kbit


def test_copies_and_flipped_bits_leave_less_of_a_line_to_tcp() -> None:
    assert Direction(rate_kbit=1514, duplicate_percent=100).ideal_goodput_kbit == 724
    assert Direction(rate_kbit=1514, corrupt_percent=25).ideal_goodput_kbit == 1086


def test_ideal_goodput() -> None:
    assert Direction(rate_kbit=1514).ideal_goodput_kbit == 1448
    # LINKS: 9.56 of 10 Mbit/s
    assert Direction(rate_kbit=10_000).ideal_goodput_kbit == pytest.approx(9564.1, abs=0.1)


def test_frame_constants_agree() -> None:
    assert FRAME_BYTES == direction.MTU_BYTES + direction.FRAME_OVERHEAD_BYTES == 1514
    assert direction.SEGMENT_BYTES == direction.MTU_BYTES - 20 - 20 - 12 == 1448


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("rate_kbit", 0, "above 0 kbit/s; leave it out for an unlimited line"),
        ("rate_kbit", -5, "above 0 kbit/s"),
        ("rate_kbit", math.inf, "finite number"),
        ("rate_kbit", "10mbit", "finite number"),
        ("delay_ms", -1, "at least 0 ms"),
        ("delay_ms", None, "finite number"),
        ("jitter_ms", -1, "at least 0 ms"),
        ("jitter_ms", 20, "at most delay_ms = 10"),
        ("loss_percent", 100, "below 100 %"),
        ("loss_percent", -0.1, "at least 0"),
        ("loss_percent", math.nan, "finite number"),
        ("queue_ms", 0, "above 0 ms"),
        ("queue_ms", 10**400, "finite number"),
        ("queue_ms", True, "finite number"),
        ("duplicate_percent", 101, "from 0 to 100 %"),
        ("corrupt_percent", -1, "from 0 to 100 %"),
        ("max_packets", 0, "a whole number above 0"),
        ("max_packets", 2.5, "a whole number above 0"),
        ("outage", 1, "true or false"),
        ("trace", "", "the path of a file"),
        ("trace", 5, "the path of a file"),
        ("gilbert_elliott", 5, "a table with good_to_bad_percent and bad_to_good_percent"),
    ],
)
def test_direction_refuses(field: str, value: object, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Direction(**{"delay_ms": 10, field: value})  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"{field} = {value!r}: " in text and right in text


def refusal(**fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Direction(**fields)  # type: ignore[arg-type]
    return str(caught.value)


def test_fields_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "x.up"
    trace.write_text("10\n")
    bursts = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=25)
    assert "rate_kbit = 5: leave it out" in refusal(rate_kbit=5, trace=str(trace))
    assert "loss_percent = 1: leave it out" in refusal(loss_percent=1, gilbert_elliott=bursts)
    assert "reorder_percent = 1: needs delay_ms above 0" in refusal(reorder_percent=1)


# Loss in bursts


@pytest.mark.parametrize(
    ("parameters", "mean"),
    [
        # A chain is bad p/(p+r) of the time: 1/26
        ((1, 25, 100, 0), 100 / 26),
        ((1, 25, 50, 0), 50 / 26),
        # ... and 1 % of the good 25/26 as well
        ((1, 25, 50, 1), (50 + 25) / 26),
        ((100, 100, 100, 0), 50),
    ],
)
def test_mean_loss_of_a_chain(parameters: tuple[float, ...], mean: float) -> None:
    fields = dict(zip(GilbertElliott.__struct_fields__, parameters, strict=True))
    bursts = GilbertElliott(**fields)
    assert bursts.mean_loss_percent == pytest.approx(mean)
    assert Direction(gilbert_elliott=bursts).mean_loss_percent == pytest.approx(mean)


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("good_to_bad_percent", 0, "above 0 %"),
        ("bad_to_good_percent", 101, "from 0 to 100 %"),
        ("bad_to_good_percent", "25", "from 0 to 100 %"),
        ("bad_loss_percent", 0, "above 0 %"),
        ("good_loss_percent", 100, "below 100 %"),
        ("good_loss_percent", math.nan, "from 0 to 100 %"),
    ],
)
def test_a_chain_out_of_its_range_is_refused(field: str, value: object, right: str) -> None:
    good = {"good_to_bad_percent": 1, "bad_to_good_percent": 25}
    with pytest.raises(ConfigError) as caught:
        GilbertElliott(**{**good, field: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{field} = ") and right in str(caught.value)


# A trace's rate, an outage


def test_a_traced_line_has_the_traces_mean_rate(tmp_path: Path) -> None:
    trace = tmp_path / "x.up"
    trace.write_text("10\n20\n20\n40\n")
    traced = Direction(trace=str(trace))
    # 4 packets of 1500 bytes in 40 ms, each with 14 bytes of header
    assert traced.line_kbit == pytest.approx(1200 * 1514 / 1500)
    assert traced.ideal_goodput_kbit == pytest.approx(1200 * 1448 / 1500)
    assert traced.limit_packets == math.ceil(1200 * 200 / (8 * 1500))


def test_an_outage_loses_everything() -> None:
    assert Direction(outage=True).mean_loss_percent == 100


def test_most_packets_stand_instead_of_a_queues_time() -> None:
    assert Direction(rate_kbit=1000, queue_ms=200, max_packets=7).limit_packets == 7
    assert Direction(max_packets=7).limit_packets == 7
