"""Mahimahi traces: read, averaged, cut into steps; and what a file that is none is told."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import traces
from testbed.network.traces import Trace


def trace_of(folder: Path, text: str) -> Trace:
    path = folder / "x.up"
    path.write_text(text)
    traces.load.cache_clear()
    return traces.load(str(path))


def test_a_line_is_a_packet_and_the_last_one_the_period(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, "0\n3\n3\n10\n")
    assert trace.opportunities_ms == (0, 3, 3, 10)
    assert trace.period_ms == 10
    # 4 packets of 1500 bytes in 10 ms
    assert trace.mean_kbit == 4800


def test_steps_hold_the_packets_of_their_time() -> None:
    # Up to 100 ms two packets, up to 200 one, then none until 450.
    trace = Trace((0, 100, 150, 450, 500))
    assert trace.steps(100) == [
        (0, 2 * 12_000 / 100),
        (100, 12_000 / 100),
        (200, 12_000 / 250),
        (450, 12_000 / 50),
    ]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=200).map(sorted), st.integers(1, 700))
def test_steps_carry_what_the_trace_does(times: list[int], step_ms: int) -> None:
    if times[-1] == 0:
        times.append(1)
    trace = Trace(tuple(times))
    steps = trace.steps(step_ms)
    ends = [began for began, _ in steps[1:]] + [trace.period_ms]
    bits = sum(kbit * (end - began) for (began, kbit), end in zip(steps, ends, strict=True))
    assert bits == pytest.approx(trace.mean_kbit * trace.period_ms)
    assert steps[0][0] == 0 and all(kbit > 0 for _, kbit in steps)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "is empty; it needs one integer millisecond a line"),
        ("0\n0\n", "ends at 0 ms; its last line is its period, above 0"),
        ("5\nx\n", "line 2: 'x': must be a whole number of milliseconds"),
        ("5\n\n6\n", "line 2: '': must be a whole number"),
        ("-5\n", "line 1: '-5': must be a whole number"),
        ("1.5\n", "line 1: '1.5': must be a whole number"),
        ("9" * 13, "line 1: '9999999999999': must be a whole number"),
        ("5\n7\n6\n", "line 3: 6: is before 7 of the line above; times must ascend"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trace_of(tmp_path, text)
    assert str(caught.value).startswith(f"trace {tmp_path / 'x.up'}: ")
    assert right in str(caught.value)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: cannot read it: No such file"):
        traces.load(str(tmp_path / "absent"))
    (tmp_path / "binary").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match=r"binary: line 1: is not UTF-8 text"):
        traces.load(str(tmp_path / "binary"))


def test_a_trace_beyond_all_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_OPPORTUNITIES", 2)
    with pytest.raises(ConfigError, match="3 lines; at most 2"):
        trace_of(tmp_path, "1\n2\n3\n")
