"""Whole runs on several machines: equal to those of one, and what becomes of those that break."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from machines import LIMIT_S, Make, alive, below, said, still_run

FAST = (
    *("--method=fedavg", "--set=batch_size=128", "--set=local_epochs=1"),
    *("--train-samples=200", "--eval-samples=40"),
)
RUN = ("--clients=4", "--dilation=1", "--links=userspace", *FAST)
LINKS = ("--profile=rate 10mbit delay 10ms", *RUN)
SMALL = (*LINKS, "--method=fedpeft")
"""Rounds of tenths of a second, where those of LINKS wait two for their bytes."""
FILES = {"schedule": "schedule", "availability": "away"}
SLOW_KBIT = 500
TOLD_S = 5.0
"""Of a host that is gone."""
LATE_S = 1.0
"""For a change, beyond half a round trip between hosts, on a machine with other work."""
MANY = 12
LAST = range(MANY - 2, MANY + 1)
PLACE = "--place=server=a,client-1:2=a,client-3:4=b"
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


def test_a_run_on_two_hosts_has_the_bytes_and_the_model_of_one(machines: Make):
    found = machines()
    agent = found.agent(1)
    several = found.launch("--rounds=2", PLACE, *SMALL)
    text = said(several)
    assert several.returncode == 0, text
    alone = found.start(
        0, "launch", f"--out={found.folder / 'alone'}", "--plain", "--rounds=2", *SMALL
    )
    assert said(alone) and alone.returncode == 0
    here, there = found.summary("alone"), found.summary()
    assert [row["metrics"] for row in there["rounds"]] == [row["metrics"] for row in here["rounds"]]
    assert there["bytes"]["payload"] == here["bytes"]["payload"]
    for one, other in zip(here["per_client"], there["per_client"], strict=True):
        assert one["bytes"]["payload"] == other["bytes"]["payload"]
    (told,) = found.events("hosts")
    assert [(part["name"], part["nodes"]) for part in told["hosts"]] == [("a", 3), ("b", 2)]
    assert told["place"] == "server=a,client-1:2=a,client-3:4=b"
    assert {(way["sender"], way["receiver"]) for way in told["underlay"]} == {
        ("a", "b"),
        ("b", "a"),
    }
    left = {event["host"]: event for event in found.events("host_left")}
    assert left["a"]["tunnels"]["b"]["frames_dropped"] == 0
    assert left["b"]["tunnels"]["a"]["frames_received"] > 0
    # The agent waits for the next run, and ends with its input.
    assert agent.poll() is None and not alive(below(agent))
    assert said(agent) == "" and agent.returncode == 0


def test_whom_a_run_cannot_have_is_named_before_it_begins(machines: Make):
    found = machines()
    nobody = found.launch(*LINKS)
    assert "host b at 10.1.0.2:7400: no agent answers" in said(nobody)
    other = found.folder / "other"
    other.write_text("another token, of more than thirty-two bytes\n")
    agent = found.agent(1, token=other)
    stranger = found.launch(*LINKS)
    assert "closed the connection: is its token another?" in said(stranger)
    assert agent.poll() is None
    assert nobody.returncode == stranger.returncode == 2
    assert not (found.folder / "out").exists()


def test_links_that_the_hosts_network_cannot_carry_are_refused_with_the_sum(machines: Make):
    found = machines()
    found.agent(1)
    run = found.launch(PLACE, "--profile=rate 40gbit delay 10ms", *RUN)
    text = said(run)
    assert run.returncode == 1
    assert "the 2 nodes on b may receive 8e+04 Mbit/s, which is 8.4e+04 Mbit/s with 5 %" in text
    assert found.events("started") == []


def test_nodes_that_a_hosts_memory_has_no_room_for_are_refused_with_the_sum(machines: Make):
    found = machines()
    found.agent(1)
    # Each has 86 million weights of four bytes, and as many gradients.
    clients = 1 + psutil.virtual_memory().total // 600_000_000
    large = ("--model=vit-b16", "--method=fedavg", "--dataset=glyphs", "--links=userspace")
    place = f"--place=client-1:{clients}=b"
    run = found.launch(f"--clients={clients}", "--dilation=1", "--profile=4g", place, *large)
    text = said(run)
    assert run.returncode == 2
    assert f"GB that nodes share + {clients} clients x 0.7" in text
    assert "place fewer nodes there" in text and not (found.folder / "out").exists()


def test_an_agent_that_is_killed_takes_its_clients_along_and_the_run_goes_on(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    agent = found.agent(1)
    run = found.launch(f"--rounds={MANY}", PLACE, *SMALL)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    theirs = below(agent)
    assert len(theirs) >= 5  # The part, its zygote and links, and two nodes.
    agent.kill()
    text = said(run)
    assert not alive(theirs)
    assert run.returncode == 0, text
    lost = {event["peer"]: event["reason"] for event in found.events("lost")}
    assert lost == {"client-3": "host b is gone", "client-4": "host b is gone"}
    assert [event["host"] for event in found.events("host_gone")] == ["b"]
    summary = found.summary()
    assert summary["rounds_done"] == MANY
    assert summary["fidelity"]["host"]["verdict"] == "fail"
    assert "host b is gone" in summary["fidelity"]["host"]["reason"]


@pytest.mark.thorough
def test_a_node_of_another_host_that_stands_still_is_told_of(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    found.agent(1)
    run = found.launch("--rounds=2", "--round-timeout=3", "--no-calibrate", PLACE, *LINKS)
    until(lambda: found.events("round_started"), "a round", LIMIT_S, run)
    (pid,) = [each["pid"] for each in found.events("started") if each["node"] == "client-3"]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: found.events("round"), "the end of the round", LIMIT_S, run)
    os.kill(pid, signal.SIGCONT)
    text = said(run)
    assert run.returncode == 0, text
    summary = found.summary()
    assert summary["stopped"].keys() == {"client-3"} and summary["stopped"]["client-3"] > 1.5
    assert "client-3 stood still for" in summary["fidelity"]["host"]["reason"]


def test_a_host_that_is_cut_off_is_gone_and_with_strict_the_run(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    agent = found.agent(1)
    run = found.launch("--rounds=500", "--strict", "--no-calibrate", PLACE, *SMALL)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    theirs = below(agent)
    found.cut(1)
    words = said(run)
    assert "--strict with --no-calibrate: nobody probes the links" in words
    assert "--strict: host b is gone: " in words
    assert run.returncode == 1
    assert not alive(theirs)
    assert agent.poll() is None


def test_a_driver_that_is_killed_leaves_nothing_and_its_agent_has_the_next_run(
    machines: Make, until: Callable[..., Any]
):
    found = machines()
    agent = found.agent(1)
    run = found.launch("--rounds=500", PLACE, *SMALL)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    processes = below(run) | below(agent)
    busy = found.launch(*LINKS, out="busy")
    assert "host b at 10.1.0.2:7400: its agent has a run already" in said(busy)
    os.kill(run.pid, signal.SIGKILL)
    assert not alive(processes)
    again = found.launch("--rounds=1", PLACE, *SMALL, out="again")
    text = said(again)
    assert again.returncode == 0, text


@pytest.mark.quiet
@pytest.mark.parametrize("how", ["agent", "everything", "cut"])
def test_a_host_that_is_gone_is_so_in_the_record_within_seconds(
    machines: Make, until: Callable[..., Any], how: str
):
    """A cut one after 3 s, and what this machine takes beside."""
    found = machines()
    agent = found.agent(1)
    run = found.launch("--rounds=500", "--no-calibrate", "--pcap", PLACE, *SMALL)
    until(lambda: found.events("round"), "a round", LIMIT_S, run)
    (began,) = found.events("run")
    theirs = below(agent)
    gone_s = (time.monotonic_ns() - began["origin_ns"]) / 1e9
    if how == "cut":
        found.cut(1)
        cut_s = time.monotonic()
        assert not still_run(theirs, 4 * TOLD_S)
        print("their part ended after, s:", time.monotonic() - cut_s)
        assert time.monotonic() - cut_s < TOLD_S
    else:
        for process in below(agent) if how == "everything" else ():
            process.kill()
        agent.kill()
    (told,) = until(lambda: found.events("host_gone"), "word of it", LIMIT_S, run)
    print("told after, s:", told["t"] - gone_s)
    assert 0 < told["t"] - gone_s < TOLD_S
    lost = until(lambda: found.events("lost")[1:] and found.events("lost"), "words", LIMIT_S, run)
    assert [event["peer"] for event in lost] == ["client-3", "client-4"]
    assert all(event["t"] - gone_s < TOLD_S for event in lost)
    run.send_signal(signal.SIGINT)
    text = said(run)
    assert run.returncode == 130, text
    (captured,) = found.events("captured")
    assert captured["failure"] == "host b is gone with what it captured"
    assert [count > 0 for count in captured["packets"]] == [True, True, False, False]


SCHEDULE = f"""
[[schedule]]
at_s = 0
clients = [1, 3]
up = {{ rate_kbit = {SLOW_KBIT} }}
[[schedule]]
at_s = 3
clients = [1, 3]
up = {{ rate_kbit = 10000 }}
[[schedule]]
at_s = 5000
outage_s = 5000
"""
AWAY = """
[[away]]
clients = [2, 4]
at_s = 0
for_s = 0.5
"""


@pytest.mark.thorough
def test_links_and_presence_change_at_their_times_on_each_host(machines: Make):
    found = machines()
    found.agent(1)
    (found.folder / "schedule.toml").write_text(SCHEDULE)
    (found.folder / "away.toml").write_text(AWAY)
    files = [f"--{name}={found.folder / file}.toml" for name, file in FILES.items()]
    run = found.launch(f"--rounds={MANY}", "--no-calibrate", PLACE, *SMALL, *files)
    text = said(run)
    assert run.returncode == 0, text
    # Who is away has a link that nothing passes.
    shaped = [
        (event["node"], event["at_s"])
        for event in found.events("shaped")
        if event["node"] in ("client-1", "client-3")
    ]
    assert sorted(shaped) == [("client-1", 0), ("client-1", 3), ("client-3", 0), ("client-3", 3)]
    changes = [*found.events("shaped"), *found.events("back")]
    assert all(0 <= event["actual_s"] - event["at_s"] < LATE_S for event in changes)
    assert {event["node"] for event in found.events("back")} == {"client-2", "client-4"}
    first = found.summary()["rounds"][0]
    assert {each["client"] for each in first["missed"]} == {"client-2", "client-4"}
    sent = [event for event in found.events("message") if event["node"] == "server"]
    took = {
        (event["peer"], event["round"]): (event["received_ns"] - event["sent_ns"]) / 1e9
        for event in sent
        if event["round"]
    }
    least_s = 8 * max(event["payload_bytes"] for event in sent) / (1000 * SLOW_KBIT)
    for client in ("client-1", "client-3"):
        assert took[client, 1] > 0.9 * least_s
        assert min(took[client, number] for number in LAST) < 0.75 * least_s
