"""`profiles`, `profiles show` and `doctor` as a user calls them, in this process."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
from testbed import extras
from testbed.config_error import ConfigError
from testbed.links import choice
from testbed.machine import doctor
from testbed.network import profiles
from testbed.network.direction import Direction
from testbed.report import profiles as report_profiles
from testbed.report.profiles import transfer_s
from testbed.units import human_seconds


def output(*arguments: str) -> str:
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_profiles_lists_every_profile_by_its_whole_name() -> None:
    listed = {line.split("  ")[0] for line in output("profiles").splitlines()}
    assert set(profiles.names()) <= listed


def test_profiles_json_has_numbers_with_units() -> None:
    rows = {row["name"]: row for row in json.loads(output("profiles", "--json"))}
    assert rows.keys() == set(profiles.names())
    assert (rows["4g"]["down_kbit"], rows["4g"]["up_kbit"], rows["4g"]["rtt_ms"]) == (
        21300,
        6300,
        55,
    )
    assert rows["unlimited"]["down_kbit"] is None


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_can_be_shown_with_its_sources(name: str) -> None:
    shown = output("profiles", "show", name)
    assert all(source in shown for source in profiles.load(name).sources)


def test_show_says_what_a_link_can_carry() -> None:
    found = json.loads(output("profiles", "show", "4g", "--json"))
    assert found["up"]["ideal_goodput_kbit"] == pytest.approx(6300 * 1448 / 1514)
    # 10 MB are 80,000 kbit, behind one delay of 27.5 ms.
    assert found["up"]["least_seconds"]["10 MB"] == pytest.approx(
        0.0275 + 80_000 / 6025.36, rel=1e-4
    )
    assert "6025" in output("profiles", "show", "4g")


OWN = """\
title = "Own"
summary = "Every kind of field."
sources = ["nobody"]
[up]
trace = "x.up"
gilbert_elliott = { good_to_bad_percent = 1, bad_to_good_percent = 25 }
max_packets = 60
[down]
rate_kbit = 8000
corrupt_percent = 0.5
[[schedule]]
at_s = 30
up = { rate_kbit = 500 }
down = { loss_percent = 2 }
[[schedule]]
at_s = 60
outage_s = 10
[provenance]
schedule = "assumed: a lift"
up.trace = "sourced: a drive"
up.gilbert_elliott = "assumed: x"
up.max_packets = "assumed: x"
down.rate_kbit = "assumed: x"
down.corrupt_percent = "assumed: x"
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    # 4 packets in 40 ms: 1200 kbit/s
    (tmp_path / "x.up").write_text("10\n20\n20\n40\n")
    (tmp_path / "own.toml").write_text(OWN)
    return str(tmp_path / "own.toml")


def test_show_has_what_a_link_sets_beyond_the_usual(own: str) -> None:
    shown = output("profiles", "show", own).splitlines()
    lines = [re.split(r"\s{2,}", line) for line in shown if line]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["rate_kbit"][:2] == ["8000", "see trace"]
    assert rows["loss_percent"][:2] == ["0", "see gilbert_elliott"]
    assert rows["queue_ms"][:2] == ["200", "see max_packets"]
    assert rows["trace"][1].startswith("/") and rows["trace"][3] == "sourced: a drive"
    assert rows["trace_mean_kbit"][:2] == ["-", "1200"]
    assert rows["trace_period_s"][:2] == ["-", "0.04"]
    assert rows["gilbert_elliott"][:2] == ["-", "good_to_bad_percent 1"]
    assert rows["mean_loss_percent"][:2] == ["-", "3.84615"]
    assert rows["max_packets"][:2] == ["-", "60"]
    assert rows["corrupt_percent"][:3] == ["0.5", "-", "assumed: x"]
    assert rows["from 30 s"][:3] == ["loss_percent 2", "rate_kbit 500", "assumed: a lift"]
    assert rows["from 60 s"][:2] == ["nothing passes", "nothing passes"]
    assert rows["from 70 s"][:2] == ["loss_percent 2", "rate_kbit 500"]
    # 0.995 of 8000 * 1448 / 1514, and 1200 kbit/s of IP, of which 1448 of 1500 bytes are payload
    assert rows["most TCP can carry, kbit/s"][:2] == ["7613", "1158"]
    assert "reorder_percent" not in rows and "duplicate_percent" not in rows


def test_show_json_has_it_too(own: str) -> None:
    found = json.loads(output("profiles", "show", own, "--json"))
    assert found["up"]["trace"].endswith("/x.up")
    assert (found["up"]["trace_mean_kbit"], found["up"]["trace_period_s"]) == (1200, 0.04)
    assert found["up"]["gilbert_elliott"]["bad_loss_percent"] == 100
    assert found["down"]["corrupt_percent"] == 0.5
    assert [state["at_s"] for state in found["schedule"]] == [30, 60, 70]
    assert found["schedule"][0]["down"] == {"loss_percent": 2}
    assert found["schedule"][1]["down"] == {"loss_percent": 2, "outage": True}


def test_show_says_nothing_of_what_is_not_set() -> None:
    shown = output("profiles", "show", "4g")
    for field in ("trace", "gilbert_elliott", "max_packets", "outage", "from "):
        assert f"\n{field}" not in shown
    found = json.loads(output("profiles", "show", "4g", "--json"))
    assert "schedule" not in found and "trace" not in found["up"]


def test_a_list_row_has_a_traces_mean_rate_and_a_chains_mean_loss(own: str) -> None:
    row = report_profiles.row(profiles.load(own))
    assert row["up_kbit"] == pytest.approx(1200 * 1514 / 1500)
    assert row["loss_percent"] == {"down": 0, "up": pytest.approx(100 / 26)}


def test_show_of_an_unknown_profile_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 4g"):
        CliRunner().invoke(cli.main, ["profiles", "show", "4gg"], catch_exceptions=False)


def test_an_unlimited_line_takes_its_delay() -> None:
    assert transfer_s(Direction(delay_ms=20), 100) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.21 s"), (119, "119 s"), (300, "5 min"), (9000, "2.5 h")]
)
def test_times_are_said_in_their_unit(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


class Broken:
    name = "broken"

    def probe(self) -> str:
        return "no such device here"


def test_doctor_names_a_backend_that_does_not_work_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "BACKENDS", (Broken(), *choice.BACKENDS))
    first, *others = json.loads(output("doctor", "--json"))
    assert first["what"] == "links: broken" and not first["ok"]
    assert first["found"] == "no such device here"
    assert "--links=auto" in first["cure"]
    assert any(found["what"] == "links: loopback" and found["ok"] for found in others)


def test_doctor_says_how_to_close_each_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = {
        "/proc/sys/user/max_user_namespaces": "0",
        "/proc/sys/user/max_net_namespaces": "2",
        "/proc/sys/kernel/unprivileged_userns_clone": None,
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": None,
    }
    monkeypatch.setattr(doctor, "_read", switches.get)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 256))
    found: dict[str, Any] = {f.what: f for f in [*doctor._privileges(), doctor._descriptors()]}
    assert not found["user namespaces"].ok
    assert found["user namespaces"].cure == "sysctl -w user.max_user_namespaces=10000"
    assert not found["network namespaces"].ok
    assert found["network namespaces"].cure == "sysctl -w user.max_net_namespaces=10000"
    assert not found["open files"].ok and "ulimit" in found["open files"].cure
    assert found["open files"].found == "hard limit 256: up to 38 clients, 0 over loopback"


def test_doctor_says_how_to_get_what_training_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._training().ok
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "torch" else name)
    found = doctor._training()
    assert not found.ok and found.found == "without torch"
    assert found.cure == "pip install 'wiretune[train]'"


@pytest.mark.parametrize("words", [["launch"], ["bench", "--methods=fedavg"]])
def test_what_trains_says_how_to_get_what_it_needs(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(ConfigError, match=r"needs peft: pip install 'wiretune\[train\]'"):
        CliRunner().invoke(cli.main, words, catch_exceptions=False)


def test_doctor_tells_an_unprivileged_user_of_the_switch_that_forbids_namespaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switches = {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}
    monkeypatch.setattr(doctor, "_read", switches.get)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    gap = doctor._privileges()[-1]
    assert gap.cure == "sysctl kernel.apparmor_restrict_unprivileged_userns=0"


def test_doctor_reckons_with_the_memory_that_was_measured() -> None:
    page = (Path(__file__).parents[4] / "docs/benchmarking.md").read_text()
    _, _, below = page.partition("| MB of the machine |")
    rows = re.findall(r"^\| (\d+) (?:\|[^|]*){5}\| ([\d,]+) \|", below, re.MULTILINE)
    taken = {int(clients): float(megabytes.replace(",", "")) for clients, megabytes in rows}
    assert max(taken) == 1000
    for clients, megabytes in taken.items():
        reckoned = doctor.RUN_MB + clients * doctor.CLIENT_MB
        assert 0.95 * megabytes < reckoned < 1.2 * megabytes


def test_doctor_prints_a_table() -> None:
    assert "links: loopback" in output("doctor")
