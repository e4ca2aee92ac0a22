"""Clients that are away, late or slow: what a round does without them, through the command line.

Devices are modelled, so that who is late does not depend on the machine.
"""

import pytest

COMMON = (
    "--links=loopback",
    "--profile=unlimited",
    "--clients=3",
    "--compute=modelled",
    "--partition=iid",
    "--set=variant=head",
    "--set=local_epochs=1",
    "--no-calibrate",
    "--train-samples=144",
)
"""A client's part in a round takes a device of 0.1 GFLOP/s some five seconds."""


def missed(run):
    return [
        {entry["client"]: entry["reason"] for entry in entry["missed"]}
        for entry in run.summary["rounds"]
    ]


def sent(run, **who):
    return [event for event in run.events("message", **who) if event["kind"] == "head"]


def test_who_is_late_for_the_deadline_is_left_out_and_stays_in_the_run(launch):
    run = launch(*COMMON, "--device-class=0.1:1,100:2", "--deadline=2", "--rounds=2")
    assert run.finish() == 0, run.describe()
    late = {"client-1": "nothing by the deadline of 2 s"}
    assert missed(run) == [late, late]
    assert [entry["clients_ok"] for entry in run.summary["rounds"]] == [2, 2]
    assert all(client["lost"] is None for client in run.summary["per_client"])
    # It learns that nobody waits for its update before it sends it.
    assert run.events("overtaken", node="client-1")
    assert not sent(run, peer="client-1")


def test_who_is_away_is_not_asked_and_comes_back(launch, tmp_path):
    file = tmp_path / "away.toml"
    file.write_text(
        "[[away]]\nclients = [1]\nat_s = 0\n[[away]]\nclients = [2]\nat_s = 0\nfor_s = 0.5\n"
    )
    # Each round lasts for the seconds that client 3 computes.
    run = launch(*COMMON, "--device-class=100:2,0.2:1", "--rounds=2", f"--availability={file}")
    assert run.finish() == 0, run.describe()
    first, second = missed(run)
    assert first == {"client-1": "away since 0 s", "client-2": "away since 0 s"}
    assert second == {"client-1": "away since 0 s"}
    assert [entry["clients_failed"] for entry in run.summary["rounds"]] == [2, 1]
    assert not sent(run, node="client-1")
    (back,) = run.events("back")
    assert back["node"] == "client-2" and back["actual_s"] >= back["at_s"] == 0.5
    assert [event["node"] for event in run.events("away")] == ["client-1", "client-2"]


def test_a_round_begins_when_somebody_is_there(launch, tmp_path):
    file = tmp_path / "away.csv"
    file.write_text("client,leaves_s,returns_s\n1,0,0.5\n2,0,1\n3,0,1\n")
    # The round lasts until the others are back, whose end would else be waited for.
    run = launch(*COMMON, "--device-class=0.2", "--rounds=1", f"--availability={file}")
    assert run.finish() == 0, run.describe()
    (began,), (back, *_) = run.events("round_started"), run.events("back")
    assert back["node"] == "client-1" and began["t"] >= back["t"]
    assert run.summary["rounds"][0]["clients_ok"] == 1


@pytest.fixture(scope="module")
def asynchronous(launch_for_module):
    run = launch_for_module(
        *COMMON,
        "--method=fedbuff",
        "--set=buffer_size=2",
        "--device-class=2:1,10:2",
        "--rounds=12",
    )
    assert run.finish() == 0, run.describe()
    return run


def test_an_asynchronous_step_takes_late_answers_and_waits_for_none(asynchronous):
    rounds = asynchronous.summary["rounds"]
    assert [entry["clients_ok"] for entry in rounds] == 12 * [2]
    assert missed(asynchronous) == 12 * [{}]
    order = [
        event
        for event in asynchronous.events(node="server")
        if event["event"] == "round_started"
        or (event["event"], event.get("kind")) == ("message", "head")
    ]
    running, staleness = 0, {}
    for event in order:
        if event["event"] == "round_started":
            running = event["round"]
        else:
            staleness.setdefault(event["peer"], []).append(running - event["round"])
    assert max(staleness["client-1"]) >= 1
    assert len(staleness["client-1"]) < len(staleness["client-2"])


def test_asynchronous_rounds_claim_no_ideal(asynchronous):
    assert asynchronous.summary["asynchronous"] is True
    assert {entry["ideal_s"] for entry in asynchronous.summary["rounds"]} == {None}
    report = (asynchronous.folder / "report.html").read_text()
    assert "fedbuff" in report


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--deadline=700",), "deadline_s = 700: must be below round_timeout_s = 600"),
        (("--availability=on:5",), "availability = 'on:5': must be as on:120,off:30"),
        (("--availability=no.toml",), "cannot read it: No such file"),
        (("--method=fedbuff", "--set=dp=client", "--set=dp_noise=1"), "take dp=sample"),
    ],
)
def test_what_cannot_be_is_refused(launch, flags, reason):
    run = launch("--links=loopback", "--clients=2", *flags)
    assert run.finish() == 2
    assert reason in " ".join(run.stderr.split())
    assert run.folders == []


def test_a_deadline_that_nobody_can_meet_is_refused(launch):
    run = launch("--links=loopback", "--clients=2", "--profile=2g", "--deadline=0.5")
    assert run.finish() == 1
    assert "no client can meet deadline_s = 0.5" in run.summary["reason"]
