"""Clients killed in each phase, bad links, a server that stops: what must hold, holds."""

import os
import signal

import pytest
from running import FAST, all_gone

LINK = """
title = "Broken"
summary = "For a test."
sources = ["nobody"]
up = {{ {up} }}
down = {{ {down} }}
[provenance]
up = {{ {up_why} }}
down = {{ {down_why} }}
"""
SLOW = "rate_kbit = 100, delay_ms = 5"
"""Half a hundred kilobytes of LoRA's weights take some four seconds."""
QUICK = "rate_kbit = 100000, delay_ms = 5"
CALM = "rate_kbit = 6000, delay_ms = 5"
"""A megabyte of weights takes longer than a fifth of a second."""


def link(folder, name, *, up=QUICK, down=QUICK):
    """A profile's file."""
    why = [
        ", ".join(f'{entry.split("=")[0].strip()} = "assumed: test"' for entry in way.split(","))
        for way in (up, down)
    ]
    file = folder / f"{name}.toml"
    file.write_text(LINK.format(up=up, down=down, up_why=why[0], down_why=why[1]))
    return str(file)


# A client killed in each phase. Devices are modelled, so that phases have their times.

DEVICES = (
    "--compute=modelled",
    "--partition=iid",
    "--set=local_epochs=1",
    "--no-calibrate",
    "--clients=2",
    "--rounds=2",
    "--train-samples=180",
)
SECONDS_OF_WORK = "--device-class=1"

JOINING = ("started", {"node": "client-2"})
RECEIVING = ("round_started", {"round": 1})
COMPUTING = ("message", {"node": "client-2", "round": 1})
SENDING = ("message", {"node": "server", "peer": "client-1", "round": 1})
"""Client 1 began to send at the same time, and its line is fast."""


@pytest.mark.parametrize(
    ("moment", "slow", "rounds"),
    [
        (JOINING, {}, (1, 1)),
        (RECEIVING, {"down": SLOW}, (1, 1)),
        (COMPUTING, {}, (1, 1)),
        (SENDING, {"up": SLOW}, (1, 1)),
    ],
    ids=["joining", "receiving", "computing", "sending"],
)
def test_a_client_killed_in_any_phase_costs_its_own_part(
    launch, best_links, tmp_path, moment, slow, rounds
):
    links = f"--profile={link(tmp_path, 'fast')}:1,{link(tmp_path, 'other', **slow)}:1"
    run = launch(best_links, links, SECONDS_OF_WORK, *DEVICES)
    kind, fields = moment
    run.wait_for(kind, **fields)
    processes = run.tree()
    os.kill(run.pid_of("client-2"), signal.SIGKILL)
    assert run.finish() == 0, run.describe()
    assert not all_gone(processes)
    summary = run.summary
    assert summary["status"] == "ok"
    assert [client["lost"] for client in summary["per_client"]] == [None, "killed by SIGKILL"]
    assert [entry["clients_ok"] for entry in summary["rounds"]] == list(rounds)
    assert [entry["clients_failed"] for entry in summary["rounds"]] == [1, 1]
    first = [entry for entry in summary["rounds"][0]["missed"]]
    killed = [{"client": "client-2", "reason": "killed by SIGKILL"}]
    assert first == ([] if moment is JOINING else killed)


def test_an_update_that_arrived_counts_though_its_client_dies(launch, best_links, tmp_path):
    links = f"--profile={link(tmp_path, 'fast')}:1,{link(tmp_path, 'slow', up=SLOW)}:1"
    run = launch(best_links, links, SECONDS_OF_WORK, *DEVICES)
    kind, fields = SENDING
    run.wait_for(kind, **fields)
    os.kill(run.pid_of("client-1"), signal.SIGKILL)
    assert run.finish() == 0, run.describe()
    first, second = run.summary["rounds"]
    assert (first["clients_ok"], first["clients_failed"], first["missed"]) == (2, 0, [])
    assert (second["clients_ok"], second["clients_failed"]) == (1, 1)


# Bad links and a server that stops. The weights must be those of an undisturbed run.

LEARNING = ("--clients=2", "--rounds=2", "--partition=iid", "--no-calibrate", *FAST)


@pytest.fixture(scope="module")
def undisturbed(launch_for_module):
    """The model's loss after an undisturbed run."""
    run = launch_for_module("--links=loopback", "--profile=unlimited", *LEARNING)
    assert run.finish() == 0, run.describe()
    return run.summary["metrics"]["final"]["loss"]


def check_whole(run, undisturbed):
    """All updates came, and what was learnt of them is the same."""
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert [entry["clients_ok"] for entry in summary["rounds"]] == [2, 2]
    assert summary["dropped_messages"] == []
    assert summary["metrics"]["final"]["loss"] == pytest.approx(undisturbed, abs=1e-6)
    one_way = 4 * summary["trainable_parameters"]
    assert summary["bytes"]["payload"] == {"up": 4 * one_way, "down": 4 * one_way}
    return summary


def test_corrupt_packets_change_no_weight(launch, userspace_links, undisturbed, tmp_path):
    bad = f"{QUICK}, corrupt_percent = 1"
    profile = link(tmp_path, "corrupt", up=bad, down=bad)
    run = launch("--links=userspace", f"--profile={profile}", *LEARNING)
    summary = check_whole(run, undisturbed)
    # TCP's checksum found them out, and they were sent again.
    resent = [
        client["retransmitted"][way] for client in summary["per_client"] for way in ("up", "down")
    ]
    assert sum(figures["segments"] for figures in resent) > 10


def test_a_queue_that_overflows_loses_nothing(launch, userspace_links, undisturbed, tmp_path):
    narrow = "rate_kbit = 20000, delay_ms = 5, max_packets = 12"
    profile = link(tmp_path, "narrow", up=narrow, down=narrow)
    run = launch("--links=userspace", f"--profile={profile}", "--congestion=cubic", *LEARNING)
    summary = check_whole(run, undisturbed)
    for way in ("up", "down"):
        assert sum(client["queue_drops"][way] for client in summary["per_client"]) > 0


def test_a_server_that_stands_still_for_a_while_loses_nothing(launch, best_links, undisturbed):
    run = launch(best_links, "--profile=ethernet", *LEARNING)
    run.wait_for("message", node="client-1", round=1)
    server = run.pid_of("server")
    os.kill(server, signal.SIGSTOP)
    try:
        # Both clients have sent their updates by then: nothing but the server is slow.
        run.wait_for("usage", node="client-1")
        run.wait_for("usage", node="client-2")
    finally:
        os.kill(server, signal.SIGCONT)
    check_whole(run, undisturbed)


CUT_S = (2, 20, 200)
CUTS = (
    "--clients=4",
    "--partition=iid",
    "--no-calibrate",
    "--set=local_epochs=1",
    "--method=fedavg",
)


def cuts(folder, *cut_s):
    """A schedule that cuts the links of the first clients while the model is on its way."""
    entry = "[[schedule]]\nat_s = 0.2\nclients = [{}]\noutage_s = {}\n"
    file = folder / "cuts.toml"
    file.write_text("".join(entry.format(n, s) for n, s in enumerate(cut_s, start=1)))
    return f"--schedule={file}"


@pytest.mark.patient
@pytest.mark.timeout(600)
def test_packets_lost_in_an_outage_are_sent_again_and_nobody_waits_forever(
    launch, userspace_links, tmp_path
):
    """TCP waits longer each time before it tries again: 20 s without a link cost it 20 to 100."""
    deadline_s = 100
    flags = ("--links=userspace", f"--deadline={deadline_s}", "--rounds=2", cuts(tmp_path, *CUT_S))
    run = launch(
        f"--profile={link(tmp_path, 'slow', up=CALM, down=CALM)}", *flags, *CUTS, limit_s=500
    )
    assert run.finish() == 0, run.describe()
    first, second = run.summary["rounds"]
    never = [{"client": "client-3", "reason": f"nothing by the deadline of {deadline_s} s"}]
    assert (first["clients_ok"], first["missed"]) == (3, never)
    assert second["clients_ok"] >= 3
    # What was acknowledged is whole: one model down and one up of each who took part.
    one_way = 4 * run.summary["trainable_parameters"]
    arrived = {event["peer"] for event in run.events("message", node="server", round=1)}
    late = {event["peer"] for event in run.events("dropped")}
    assert arrived - late == {"client-1", "client-2", "client-4"}
    assert {e["payload_bytes"] for e in run.events("message", round=1)} == {one_way}


def test_a_stream_that_was_cut_goes_on_where_it_was(launch, tmp_path, undisturbed):
    flags = ("--links=loopback", "--rounds=2", cuts(tmp_path, 1, 3))
    run = launch(f"--profile={link(tmp_path, 'slow', up=CALM, down=CALM)}", *LEARNING, *flags)
    check_whole(run, undisturbed)
    assert run.summary["rounds"][0]["seconds"] > 3
