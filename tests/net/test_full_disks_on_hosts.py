"""Full disks on one of a run's machines: each ends or goes on, with the reason."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import LIMIT_S, Make, SmallDisk, alive, below, said, still_run
from test_runs_on_hosts import MANY, PLACE, SMALL

ENDS_S = 5.0
pytestmark = pytest.mark.timeout(3 * LIMIT_S)
MB = 1_000_000


def test_an_agent_with_a_full_disk_has_its_part_but_of_captures(machines: Make):
    found = machines()
    disk = SmallDisk(found.folder / "disk", MB)
    disk.folder.mkdir()
    agent = found.agent(1, environment={"TMPDIR": str(disk.folder)}, disk=disk)
    refused = found.launch("--rounds=1", "--pcap", PLACE, *SMALL, out="refused")
    text = said(refused)
    assert refused.returncode == 2
    assert "host b at 10.1.0.2:7400: pcap = true: " in text and "as its TMPDIR" in text
    assert not (found.folder / "refused").exists()
    disk.fill(agent)
    run = found.launch("--rounds=1", "--no-calibrate", PLACE, *SMALL)
    text = said(run)
    assert run.returncode == 0, text
    assert not alive(below(agent))


@pytest.mark.thorough
def test_a_disk_that_captures_fill_ends_them_alone(machines: Make, until: Callable[..., Any]):
    found = machines()
    disk = SmallDisk(found.folder / "disk", 36 * MB)
    disk.folder.mkdir()
    agent = found.agent(1, environment={"TMPDIR": str(disk.folder)}, disk=disk)
    run = found.launch(f"--rounds={MANY}", "--pcap", "--no-calibrate", PLACE, *SMALL)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    disk.fill(agent)
    text = said(run)
    assert run.returncode == 0, text
    (told,) = found.events("captured")
    assert told["failure"] == "host b: write captures: No space left on device"
    assert found.summary()["rounds_done"] == MANY
    (folder,) = (found.folder / "out").glob("*/captures")
    sizes = [(folder / f"client-{number}.pcap").stat().st_size for number in (1, 2, 3, 4)]
    assert min(sizes[:2]) > max(sizes[2:]) > 0
    assert not alive(below(agent))
    # Files without a name have gone with who had them open.
    assert [path.name for path in disk.of(agent).iterdir()] == ["filler"]


ONE, SEVERAL = (0,), (0, 1)
LAUNCH = ("--rounds=500", "--no-calibrate", *SMALL)
# Programs that say nothing, so that the record alone is refused.
EXEC = ("--no-calibrate", "--profile=4g", "--clients=2", "--", "sleep", "200")


@pytest.mark.quiet
@pytest.mark.parametrize(
    "hosts", [pytest.param(ONE, marks=pytest.mark.thorough), SEVERAL], ids=["one host", "several"]
)
@pytest.mark.parametrize("words", [LAUNCH, EXEC], ids=["launch", "exec"])
def test_a_driver_whose_disk_is_full_ends_the_run_on_all_hosts(
    machines: Make, until: Callable[..., Any], words: tuple[str, ...], hosts: tuple[int, ...]
):
    found = machines()
    agent = found.agent(1)
    disk = SmallDisk(found.folder / "disk", 60 * MB)
    disk.folder.mkdir()
    start = found.launch if words is LAUNCH else found.execute
    place = (PLACE,) if words is LAUNCH and hosts is SEVERAL else ()
    run = start(*place, *words, out="disk", hosts=hosts, disk=disk)
    out = str(disk.of(run))
    until(
        lambda: found.events("round" if words is LAUNCH else "wire", out), "a begin", LIMIT_S, run
    )
    (record,) = Path(out).glob("**/events.jsonl")
    theirs = below(agent) | below(run)
    filled_s = time.monotonic()
    disk.fill(run)
    refused_s = refused(record, filled_s)
    assert run.wait(ENDS_S) == 1
    assert not still_run(theirs, refused_s + ENDS_S - time.monotonic())
    ended_s = time.monotonic()
    print(f"refused {refused_s - filled_s:.2f} s after, ended {ended_s - refused_s:.2f} s later")
    text = said(run)
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


def refused(record: Path, since_s: float) -> float:
    """When a write to it was first refused: it is cut to its whole lines then, and grows no more.

    ``since_s``, before which none was, where the run has ended before that was seen.
    """
    with contextlib.suppress(FileNotFoundError):  # Its disk goes with it.
        before = record.stat()
        while time.monotonic() < since_s + LIMIT_S:
            time.sleep(0.002)
            now_s, now = time.monotonic(), record.stat()
            if now.st_mtime_ns > before.st_mtime_ns and now.st_size <= before.st_size:
                # One that grows may have its new time before its new size.
                time.sleep(0.02)
                if record.stat().st_size <= before.st_size:
                    return now_s
            before = now
        raise AssertionError("no write was refused")
    return since_s
