"""Runs on several machines that are killed, or lose one of them, and go on to the same end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import LIMIT_S, Machines, Make, said

ROUNDS = 6
# Its clients have models of their own, which nobody but themselves could give back to them.
METHOD = ("--method=fedkd", "--set=student_blocks=1", "--clients-per-round=3")
SHORT = ("--profile=rate 10mbit delay 10ms", "--clients=4", "--dilation=1", "--links=userspace")
FEW = ("--no-calibrate", "--train-samples=200", "--eval-samples=40")
RUN = (f"--rounds={ROUNDS}", *FEW, *SHORT, *METHOD)
PLACE = "--place=server=a,client-1:2=a,client-3:4=b"
SERVER_ELSEWHERE = "--place=server=b,client-1:2=a,client-3:4=b"
pytestmark = [pytest.mark.timeout(3 * LIMIT_S), pytest.mark.patient]


def check_alike(found: Machines) -> None:
    """A run that went on holds against one of one machine that nothing disturbed."""
    alone = found.start(0, "launch", f"--out={found.folder / 'alone'}", "--plain", *RUN)
    assert said(alone) and alone.returncode == 0
    one, other = found.summary("alone"), found.summary()
    assert (other["status"], other["rounds_done"]) == ("ok", ROUNDS)
    assert [row["metrics"] for row in other["rounds"]] == [row["metrics"] for row in one["rounds"]]
    assert other["bytes"]["payload"] == one["bytes"]["payload"]
    assert other["bytes"]["by_kind"] == one["bytes"]["by_kind"]
    assert not any(client["lost"] for client in other["per_client"])
    assert len(other["resumed"]) == 1
    assert not list((found.folder / "out").glob("*/state"))


def kept_elsewhere(found: Machines) -> bool:
    """Whether the record has it that a state of a node on host b is kept after the second round."""
    return any(
        event["node"] in ("client-3", "client-4") and event["round"] > 1
        for event in found.events("saved")
    )


@pytest.mark.parametrize("place", [PLACE, SERVER_ELSEWHERE])
def test_a_run_whose_driver_is_killed_ends_as_one_that_nothing_disturbed(
    machines: Make, until: Callable[..., Any], place: str
):
    found = machines()
    found.agent(1)
    run = found.launch(*RUN, place)
    until(lambda: kept_elsewhere(found), "a state from the other host", LIMIT_S, run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    (state,) = (found.folder / "out").glob("*/state")
    assert {path.name.partition(".")[0] for path in state.glob("client-[34].*")}
    again = found.resume()
    text = said(again)
    assert again.returncode == 0, text
    (resumed,) = found.events("resumed")
    assert resumed["round"] > 0
    check_alike(found)


def test_a_run_that_lost_a_host_ends_so_with_another_in_its_place(
    machines: Make, until: Callable[..., Any]
):
    found = machines(3)
    agent = found.agent(1)
    run = found.launch(*RUN, SERVER_ELSEWHERE, hosts=[0, 1])
    until(lambda: kept_elsewhere(found), "a state from the other host", LIMIT_S, run)
    agent.kill()
    assert "host b is gone, which has the server" in said(run)
    assert run.returncode == 1
    nobody = found.resume()
    assert "host b at 10.1.0.2:7400: no agent answers" in said(nobody)
    assert nobody.returncode == 2
    (config,) = (found.folder / "out").glob("*/config.toml")
    move(config, found.addresses[1], found.addresses[2])
    found.agent(2)
    again = found.resume()
    text = said(again)
    assert again.returncode == 0, text
    assert [host["address"] for host in found.summary()["hosts"]] == ["10.1.0.1", "10.1.0.3"]
    assert not any(host["gone"] for host in found.summary()["hosts"])
    check_alike(found)


def test_a_run_that_lost_its_other_host_ends_so_on_one(machines: Make, until: Callable[..., Any]):
    found = machines()
    agent = found.agent(1)
    run = found.launch(*RUN, PLACE, "--on-lost-host=stop")
    until(lambda: kept_elsewhere(found), "a state from the other host", LIMIT_S, run)
    agent.kill()
    assert "host b is gone" in said(run)
    assert run.returncode == 1
    (config,) = (found.folder / "out").glob("*/config.toml")
    lines = config.read_text().splitlines(keepends=True)
    of_hosts = ("hosts = ", "place = ", "on_lost_host = ")
    kept = [line for line in lines if not line.startswith(of_hosts)]
    assert len(kept) == len(lines) - len(of_hosts)
    config.write_text("".join(kept))
    again = found.start(0, "launch", f"--resume={config.parent}", "--plain")
    text = said(again)
    assert again.returncode == 0, text
    assert found.summary()["hosts"] == []
    check_alike(found)


def move(config: Path, before: str, after: str) -> None:
    """Have another host in the place of one."""
    text = config.read_text()
    assert text.count(before) == 1
    config.write_text(text.replace(before, after))
