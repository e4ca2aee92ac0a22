"""`links RUN`: qdiscs in tc's words, and the way into the namespaces of a run that goes on."""

import os
import sys
from pathlib import Path
from typing import Any

import made_run
import msgspec
import pytest

from testbed.config_error import ConfigError
from testbed.links.netem import qdisc
from testbed.network.direction import Direction
from testbed.report import way_in
from testbed.report.page import run_page

LINE = Direction(rate_kbit=768, delay_ms=150)


def run(folder: Path, backend: str = "netem", **links: Any) -> Path:
    """A run of one client that is cut off at 12 s, and dilated by 2."""
    found = made_run.events(1)
    found[0]["dilation"] = 2.0
    event = next(event for event in found if event["event"] == "links")
    event |= {"facts": {"backend": backend}, **links}
    times = {"t": 11.0, "at_s": 1.0, "actual_s": 1.0, "line": [[None, 0.0], [None, 0.0]]}
    ways = {"up": {"rate_kbit": 768.0, "delay_ms": 150.0, "outage": True}, "down": {}}
    place = found.index(next(e for e in found if e["event"] == "round_started")) + 1
    found.insert(place, {"node": "client-1", "event": "shaped", **times, **ways})
    made = made_run.folder(folder / f"run-{len(list(folder.iterdir()))}", made_run.events(1))
    (made / "events.jsonl").write_bytes(b"".join(made_run.lines(found)))
    return made


def installed(direction: Direction | None) -> Any:
    return msgspec.to_builtins(qdisc.Installed(qdisc.netem(direction)))


def of_netem() -> list[Any]:
    return [[installed(None)] * 2, [installed(LINE), installed(None)]]


def test_qdiscs_and_what_became_of_them_are_commands(tmp_path: Path) -> None:
    folder = run(tmp_path, qdiscs=of_netem())
    found = way_in.of(folder)
    assert (found.backend, found.enter) == ("netem", {})
    assert list(found.commands) == ["server", "client-1"]
    commands = found.commands["client-1"]
    assert "tc qdisc add dev up1 root handle 1: netem limit 23 delay 150ms rate 768kbit" in commands
    # In time of the machine, on links that are as much slower.
    assert commands[-3] == "# at 1 s"
    assert commands[-2] == (
        "tc qdisc change dev up1 root handle 1: netem limit 23 delay 300ms loss 100% rate 384kbit"
    )
    text = "\n".join(way_in.lines(found))
    assert all(line.startswith(("# ", "tc ")) for line in text.splitlines())
    assert "tc qdisc add dev up1 root" in run_page.write(folder).read_text()


def test_links_that_tc_does_not_know_are_said_to_be_such(tmp_path: Path) -> None:
    folder = run(tmp_path, "userspace")
    found = way_in.of(folder)
    assert found.commands == {}
    assert "# no qdiscs" in "\n".join(way_in.lines(found))
    assert "As tc would make them" not in run_page.write(folder).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_namespaces_are_entered_by_the_descriptors_of_who_holds_them(tmp_path: Path) -> None:
    held = os.open("/proc/self/ns/net", os.O_RDONLY)
    way = {"pid": os.getpid(), "user": None, "link": held, "nodes": [held, held]}
    folder = run(tmp_path, qdiscs=of_netem(), namespaces=way)
    command = f"nsenter --net=/proc/{os.getpid()}/fd/{held}"
    assert way_in.of(folder).enter == dict.fromkeys(("links", "server", "client-1"), command)
    folder = run(tmp_path, "userspace", namespaces={**way, "link": None, "user": held})
    command = command.replace(
        "--net", f"--user=/proc/{os.getpid()}/fd/{held} --preserve-credentials --net"
    )
    assert way_in.of(folder).enter == dict.fromkeys(("server", "client-1"), command)
    # The run is over, whoever has its number now.
    os.close(held)
    assert way_in.of(folder).enter == {}


@pytest.mark.parametrize(
    "links",
    [
        {"qdiscs": [[{}, {}]] * 2},
        {"qdiscs": of_netem()[:1]},
        {"qdiscs": of_netem(), "namespaces": {"pid": "1", "nodes": []}},
        {"qdiscs": "tc"},
    ],
)
def test_what_no_run_writes_is_refused(tmp_path: Path, links: dict[str, Any]) -> None:
    folder = run(tmp_path, **links)
    with pytest.raises(ConfigError, match="is not as this version writes it"):
        way_in.of(folder)


def test_a_backends_name_begins_no_command(tmp_path: Path) -> None:
    found = list(way_in.lines(way_in.of(run(tmp_path, "netem\nrm -r x"))))
    assert found[0] == r"# links: netem\nrm -r x"


def test_a_traces_name_begins_no_command(tmp_path: Path) -> None:
    traced = {**installed(LINE), "trace": "walk\nrm -r x"}
    folder = run(tmp_path, qdiscs=[[traced, traced]] * 2)
    assert not any(
        line.startswith("rm") for line in "\n".join(way_in.lines(way_in.of(folder))).splitlines()
    )
