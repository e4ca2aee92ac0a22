"""The command's verdict, table and JSON, for rows that are made up."""

import json
import re
import resource
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

import cli
from testbed.calibration import measure
from testbed.calibration.gates import Row
from testbed.calibration.measure import Calibration
from testbed.calibration.report import closing, number
from testbed.config_error import ConfigError
from testbed.links.interface import LinkError

OK = Row(
    name="rate", link="4g", direction="up", expected=6300, measured=6310.4, unit="kbit/s",
    tolerance=126, ok=True, n=1018, note="of frames",
)  # fmt: skip
MISSED = Row(name="loss", link="4g", direction="down", expected=0, measured=1.5, ok=False, n=999)
UNMEASURED = Row(name="queue", link="4g", direction="up", note="takes 20 s")
SHOWN = Row(name="goodput", link="4g", direction="up", expected=6025, measured=900, note="[loss]")


def result(*rows: Row) -> Calibration:
    return Calibration("links: made up", 12.3, list(rows), [{"lateness_max_ms": 3.14}])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def invoke(found: Calibration | LinkError, *flags: str) -> Result:
        def calibrate(*_: Any) -> Calibration:
            if isinstance(found, LinkError):
                raise found
            return found

        monkeypatch.setattr(measure, "calibrate", calibrate)
        return CliRunner().invoke(cli.main, ["calibrate", *flags], catch_exceptions=False)

    return invoke


def test_a_limit_that_is_too_low_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "_measure", None)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(ConfigError) as refused:
        words = ["calibrate", "--links=loopback", "--profile=4g,3g", "--profile=2g"]
        CliRunner().invoke(cli.main, words, catch_exceptions=False)
    right = r"--profile=4g,3g,2g: needs \d{3} open files, the limit here is 64; raise it with"
    assert re.match(right, str(refused.value))


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([OK], 0),
        ([OK, UNMEASURED, SHOWN], 0),
        ([OK, MISSED], 1),
        # A profile of which nothing holds has proved nothing.
        ([UNMEASURED, SHOWN], 1),
        ([OK, Row(name="rate", link="3g", direction="up", note="takes 20 s")], 1),
    ],
)
def test_the_exit_status_is_the_verdict(run: Any, rows: list[Row], code: int) -> None:
    assert run(result(*rows)).exit_code == code
    assert run(result(*rows), "--json").exit_code == code


def test_the_table_has_every_row_with_its_verdict(run: Any) -> None:
    shown = run(result(OK, MISSED, UNMEASURED, SHOWN)).stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert [
        "4g",
        "rate",
        "up",
        "6300",
        "6310",
        "+10.4",
        "126",
        "kbit/s",
        "1018",
        "ok",
        "of frames",
    ] in lines
    verdicts = [line[9] for line in lines[2:6]]  # Below the title and the heads.
    assert verdicts == ["ok", "missed", "not measured", "not judged"]
    assert "[loss]" in shown and "takes 20 s" in shown and "links: made up" in shown


def test_below_the_table_each_profile_has_a_line_with_its_worst_deviations(run: Any) -> None:
    rows = [
        OK,
        replace(OK, direction="down", measured=6237.0),
        replace(OK, name="round trip", expected=55.0, measured=55.55),
        replace(OK, name="queue", expected=200.0, measured=None, ok=False),
        MISSED, UNMEASURED, SHOWN, replace(OK, link="3g"),
    ]  # fmt: skip
    shown = run(result(*rows)).stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    # rate, RTT, goodput (shown and not judged), two at once, queue; ok, missed, and the others.
    title = lines.index(["worst deviation from what was asked"])
    assert lines[title + 2 :] == [
        ["4g", "-1.00", "+0.55", "-", "-", "nothing came", "3", "2", "1", "1"],
        ["3g", "+0.17", "-", "-", "-", "-", "1", "0", "0", "0"],
    ]


def test_json_is_alone_on_stdout_and_has_every_row(run: Any) -> None:
    found = json.loads(run(result(OK, UNMEASURED), "--json").stdout)
    assert found["passed"] is True and found["links"] == "links: made up"
    first, second = found["checks"]
    assert first == {
        "name": "rate", "link": "4g", "direction": "up", "expected": 6300, "measured": 6310.4,
        "unit": "kbit/s", "tolerance": 126, "ok": True, "n": 1018, "note": "of frames",
        "verdict": "ok",
    }  # fmt: skip
    assert (second["ok"], second["measured"], second["verdict"]) == (None, None, "not measured")
    assert found["networks"] == [{"lateness_max_ms": 3.14}]


def test_a_network_that_cannot_be_built_is_said_in_one_line(run: Any) -> None:
    outcome = run(LinkError("open /dev/net/tun: it is not there"))
    assert outcome.exit_code == 1
    assert outcome.stderr == "error: open /dev/net/tun: it is not there\n"


def test_the_last_line_counts_verdicts_and_says_how_late_the_host_was() -> None:
    assert closing(result(OK, MISSED, SHOWN, UNMEASURED, OK)) == (
        "2 of 3 gates hold, 1 not judged, 1 not measured; took 12 s; releases at most 3.1 ms late"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (0.20312, "0.2031"), (27.5, "27.5"), (115220.4, "115220")],
)
def test_numbers_are_short_and_never_in_powers(value: float | None, text: str) -> None:
    assert number(value) == text
