"""Full disks on one of a run's machines: each ends or goes on, with the reason."""

import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from machines import LIMIT_S, Make, SmallDisk, alive, below, said
from test_runs_on_hosts import LINKS, PLACE

ENDS_S = 5.0
# Who is left is counted, and times are held to what they are to be.
pytestmark = [pytest.mark.timeout(3 * LIMIT_S), pytest.mark.quiet]
MB = 1_000_000


def test_an_agent_with_a_full_disk_has_its_part_but_of_captures(machines: Make):
    found = machines()
    disk = SmallDisk(found.folder / "disk", MB)
    disk.folder.mkdir()
    agent = found.agent(1, environment={"TMPDIR": str(disk.folder)}, disk=disk)
    refused = found.launch("--rounds=1", "--pcap", PLACE, *LINKS, out="refused")
    text = said(refused)
    assert refused.returncode == 2
    assert "host b at 10.1.0.2:7400: pcap = true: " in text and "as its TMPDIR" in text
    assert not (found.folder / "refused").exists()
    disk.fill(agent)
    run = found.launch("--rounds=1", "--no-calibrate", PLACE, *LINKS)
    text = said(run)
    assert run.returncode == 0, text
    assert not alive(below(agent))


def test_a_disk_that_captures_fill_ends_them_alone(machines: Make, until: Callable[..., Any]):
    found = machines()
    disk = SmallDisk(found.folder / "disk", 36 * MB)
    disk.folder.mkdir()
    agent = found.agent(1, environment={"TMPDIR": str(disk.folder)}, disk=disk)
    run = found.launch("--rounds=6", "--pcap", "--no-calibrate", PLACE, *LINKS)
    until(lambda: found.events("round"), "a round", LIMIT_S)
    disk.fill(agent)
    text = said(run)
    assert run.returncode == 0, text
    (told,) = found.events("captured")
    assert told["failure"] == "host b: write captures: No space left on device"
    assert found.summary()["rounds_done"] == 6
    (folder,) = (found.folder / "out").glob("*/captures")
    sizes = [(folder / f"client-{number}.pcap").stat().st_size for number in (1, 2, 3, 4)]
    assert min(sizes[:2]) > max(sizes[2:]) > 0
    assert not alive(below(agent))
    # Files without a name have gone with who had them open.
    assert [path.name for path in disk.of(agent).iterdir()] == ["filler"]


def test_a_driver_whose_disk_is_full_ends_the_run_on_all_hosts(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    agent = found.agent(1)
    disk = SmallDisk(found.folder / "disk", 60 * MB)
    disk.folder.mkdir()
    run = found.launch("--rounds=500", "--no-calibrate", PLACE, *LINKS, out="disk", disk=disk)
    out = str(disk.of(run))
    (ended, *_) = until(lambda: found.events("round", out), "a round", LIMIT_S)
    (began, *_) = found.events("round_started", out)
    theirs = below(agent) | below(run)
    disk.fill(run)
    filled_s = time.monotonic()
    # What was begun of the record's last page has room; a round's summary has none.
    _, left = psutil.wait_procs(list(theirs), ENDS_S + 2 * (ended["t"] - began["t"]))
    print("all had ended after, s:", time.monotonic() - filled_s)
    assert not left
    text = said(run)
    assert run.returncode == 1
    assert "write the results: " in text and "No space left on device" in text
    assert agent.poll() is None and not below(agent)


def test_a_driver_whose_disk_is_full_has_what_came_before_of_programs_files(machines: Make):
    found = machines()
    agent = found.agent(1)
    disk = SmallDisk(found.folder / "disk", 40 * MB)
    disk.folder.mkdir()
    run = found.execute(
        *("--profile=delay 5ms", "--clients=1", "--place=server=a,client-1=b", "--no-calibrate"),
        *("--server=true", "--client=cd $WIRETUNE_DIR; echo a > a; head -c 60000000 /dev/zero > b"),
        *("--until=clients", "--pcap"),
        out="disk",
        disk=disk,
    )
    folder = disk.of(run)
    until_ended = said(run)
    assert run.returncode == 0, until_ended
    assert "what had not come: No space left on device" in until_ended
    assert "client-1: 1 file, 2 B, of its folder on host b came here" in until_ended
    assert folder and agent.poll() is None and not alive(below(agent))
