"""Filling a fast line by TCP: which lines, how much in flight, and the rate that arrivals tell."""

import pytest
from msgspec.structs import replace

from testbed.network.direction import Direction
from testbed.probing.probeable import (
    MOST_WINDOW_BYTES,
    SINGLE_FRAMES_PER_S,
    is_too_fast,
    why_not_tcp,
)
from testbed.probing.saturation import fill, rate_kbit

FAST = Direction(rate_kbit=1_211_200, delay_ms=1, queue_ms=10)
"""A hundred full frames of 1514 bytes a millisecond."""
BACK = Direction(delay_ms=2)
MS = 1_000_000
BYTES_PER_MS = 100 * 1448


def notes(count: int, late_ms: dict[int, float], factor: float = 1.0) -> list[tuple[int, int]]:
    return [
        (round((ms + late_ms.get(ms, 0.0)) * MS), round(factor * ms * BYTES_PER_MS))
        for ms in range(count)
    ]


def test_a_line_is_too_fast_from_what_single_packets_can_fill() -> None:
    edge_kbit = SINGLE_FRAMES_PER_S * 1514 * 8 / 1000
    assert not is_too_fast(Direction(rate_kbit=0.999 * edge_kbit))
    assert is_too_fast(Direction(rate_kbit=1.001 * edge_kbit))
    assert not is_too_fast(Direction())


def test_what_is_in_flight_fills_the_line_and_never_overruns_its_queue() -> None:
    # A thousand packets of queue, 80 % of them; 100 in this delay and 200 in that of the answers.
    assert fill(FAST, BACK).window_bytes == (100 + 200 + 800) * 1448
    assert FAST.limit_packets == 1100
    far = replace(FAST, delay_ms=15, queue_ms=200)
    assert fill(far, BACK).window_bytes == MOST_WINDOW_BYTES


def test_many_lines_are_watched_shortly_each() -> None:
    assert fill(FAST, BACK, 1).window_s == 0.1
    assert fill(FAST, BACK, 25).window_s == pytest.approx(0.04)
    assert fill(FAST, BACK, 1000).window_s == 0.02
    assert fill(FAST, BACK).lead_s >= 12 * 0.003


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"loss_percent": 0.1}, "loss"),
        ({"duplicate_percent": 1}, "impairments"),
        ({"max_packets": 100}, "no room"),
        ({"delay_ms": 40}, "buffers"),
    ],
)
def test_what_tcp_cannot_fill_is_said(fields: dict[str, float], word: str) -> None:
    assert why_not_tcp(FAST, BACK) is None
    assert word in str(why_not_tcp(replace(FAST, **fields), BACK))


def test_a_full_lines_rate_is_that_between_arrivals_in_time() -> None:
    assert rate_kbit(FAST, notes(60, {})) == pytest.approx(1_211_200, rel=1e-6)
    # Lateness at either end is not the line's, as long as something comes in time.
    late = {ms: 3.0 for ms in (0, 1, 2, 30, 31, 57, 58, 59)}
    assert rate_kbit(FAST, notes(60, late)) == pytest.approx(1_211_200, rel=1e-6)
    for factor in (0.95, 1.05, 2.0):
        assert rate_kbit(FAST, notes(60, {}, factor)) == pytest.approx(factor * 1_211_200)


def test_an_idle_line_is_slow_and_an_empty_one_has_no_rate() -> None:
    idle = {ms: 6.0 for ms in range(30, 60)}
    found = rate_kbit(FAST, notes(60, idle))
    assert found is not None and 0.8 < found / 1_211_200 < 0.92
    assert rate_kbit(FAST, []) is None and rate_kbit(FAST, [(5, 1)]) is None
