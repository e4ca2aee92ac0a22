"""Links that change while a run goes on, and files of links that are refused."""

import tomllib

import pytest
from running import Run

from testbed.links.userspace import backend as userspace

SLOW_KBIT = 800
OUTAGE_S = 3.0
"""Longer than all else takes: at its end nothing but the clock wakes the supervisor."""
SCHEDULE = f"""
[[schedule]]
at_s = 0
clients = [1]
up = {{ rate_kbit = {SLOW_KBIT} }}
[[schedule]]
at_s = 0
clients = [2]
outage_s = {OUTAGE_S}
[[schedule]]
at_s = 5000
outage_s = 5000
"""
PROFILE = """
title = "Traced"
summary = "12 Mbit/s each way."
sources = ["nobody"]
[up]
trace = "ms.up"
[down]
trace = "ms.up"
[provenance]
up.trace = "assumed: for a test"
down.trace = "assumed: for a test"
"""
POSITIONS = """
step_s = 0.05
[access_point]
position = [0, 0, 0]
mode = "g"
range_m = 100
[[station]]
path = [[0, 10, 0, 0], [0.1, 50, 0, 0], [0.2, 10, 0, 0]]
[[station]]
position = [20, 0, 0]
"""
TRAINING = ("--rounds=1", "--set=local_epochs=1", "--no-calibrate", "--train-samples=300")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the runs here are given."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "schedule.toml").write_text(SCHEDULE)
    (folder / "traced.toml").write_text(PROFILE)
    (folder / "ms.up").write_text("1\n")
    (folder / "walk.toml").write_text(POSITIONS)
    return folder


@pytest.fixture(scope="module")
def runs(launch_for_module, folder) -> dict[str, Run]:
    """One run over each kind of links that works here, and one by positions, all at once."""
    profile = f"--profile=ethernet:2,{folder / 'traced.toml'}:1"
    flags = (profile, f"--schedule={folder / 'schedule.toml'}", *TRAINING)
    kinds = ["loopback"] + ["userspace"] * (userspace.probe() is None)
    found = {kind: launch_for_module(f"--links={kind}", *flags) for kind in kinds}
    walk = ("--links=loopback", f"--positions={folder / 'walk.toml'}", *TRAINING)
    found["positions"] = launch_for_module(*walk)
    assert {run.finish() for run in found.values()} == {0}, [r.describe() for r in found.values()]
    return found


@pytest.fixture(params=["loopback", "userspace"])
def run(request, runs) -> Run:
    if request.param not in runs:
        pytest.skip(f"{request.param}: {userspace.probe()}")
    return runs[request.param]


def update(run: Run, client: str) -> dict:
    (found,) = run.events("message", node="server", peer=client, round=1)
    return found


def test_every_change_that_training_reached_is_recorded_and_no_other(run):
    shaped = [(event["node"], event["at_s"]) for event in run.events("shaped")]
    # A link with a trace is shaped at the start too, so that the trace begins with training.
    assert shaped == [("client-1", 0), ("client-2", 0), ("client-3", 0), ("client-2", OUTAGE_S)]
    began = run.events("joined")[0]["t"]
    for event in run.events("shaped"):
        assert event["actual_s"] >= event["at_s"]
        assert event["t"] - began >= event["at_s"]
    dynamics = run.summary["dynamics"]
    assert dynamics["changes"] == 4
    assert 0 <= dynamics["lateness_mean_ms"] <= dynamics["lateness_max_ms"]


def test_a_link_that_became_slow_takes_its_time(run):
    slow, fast = update(run, "client-1"), update(run, "client-3")
    seconds = [(event["received_ns"] - event["sent_ns"]) / 1e9 for event in (slow, fast)]
    least_s = 8 * slow["payload_bytes"] / (1000 * SLOW_KBIT)
    assert seconds[0] >= 0.95 * least_s
    assert seconds[1] < seconds[0]


def test_nothing_passes_in_an_outage_and_all_of_it_afterwards(run):
    order = run.events()
    (end,) = run.events("shaped", node="client-2", at_s=OUTAGE_S)
    assert order.index(end) < order.index(update(run, "client-2"))
    assert run.summary["per_client"][1]["lost"] is None


def test_the_files_of_links_are_found_again_from_anywhere(run, runs, folder):
    config = tomllib.loads((run.folder / "config.toml").read_text())
    assert config["schedule"] == str(folder / "schedule.toml")
    assert config["profile"] == f"ethernet:2,{folder / 'traced.toml'}:1"
    walked = tomllib.loads((runs["positions"].folder / "config.toml").read_text())
    assert (walked["positions"], walked["clients"]) == (str(folder / "walk.toml"), 2)
    assert "profile" not in walked


def test_a_station_that_moves_has_its_link_changed(runs):
    walk = runs["positions"]
    shaped = walk.events("shaped")
    assert {event["node"] for event in shaped} == {"client-1"}
    rates = {event["at_s"]: event["up"]["rate_kbit"] for event in shaped}
    assert rates[0.05] == pytest.approx(11_000 * 1.01**-30, abs=0.1)
    # Training may end before the walk does.
    assert [event["at_s"] for event in shaped] == [0.05, 0.1, 0.15, 0.2][: len(shaped)]
    link = walk.summary["profile"]
    assert link.startswith("walk@")
    assert [client["profile"] for client in walk.summary["per_client"]] == [link, link]


REFUSED = {
    "negative rate": (
        {"own.toml": PROFILE.replace('trace = "ms.up"', "rate_kbit = -5", 1)},
        "--profile=own.toml",
        ["own.toml: up.rate_kbit = -5: must be above 0 kbit/s"],
    ),
    "unknown key": (
        {"own.toml": PROFILE.replace('trace = "ms.up"', "rate = 5", 1)},
        "--profile=own.toml",
        ["own.toml: up.rate = 5: is no key here", "did you mean rate_kbit"],
    ),
    "missing unit": (
        {"own.toml": PROFILE.replace('trace = "ms.up"', "delay = 5", 1)},
        "--profile=own.toml",
        ["own.toml: up.delay = 5: must be a text with its unit", '"5ms"'],
    ),
    "empty trace": (
        {"own.toml": PROFILE, "ms.up": ""},
        "--profile=own.toml",
        ["own.toml: up.trace ", "ms.up: is empty; it needs one integer millisecond a line"],
    ),
    "schedule out of order": (
        {"s.toml": "schedule = [{ at_s = 9, outage_s = 1 }, { at_s = 5, outage_s = 1 }]"},
        "--schedule=s.toml",
        ["s.toml: schedule entry 2: at_s = 5: is before 9 of entry 1"],
    ),
    "schedule for a client that is not there": (
        {"s.toml": "schedule = [{ at_s = 9, outage_s = 1, clients = [21] }]"},
        "--schedule=s.toml",
        ["s.toml: schedule entry 1: clients = [21]", "1 to 20"],
    ),
    "schedule that is not there": ({}, "--schedule=s.toml", ["s.toml: cannot read it: No such"]),
    "stations and profile": (
        {"p.toml": POSITIONS},
        "--positions=p.toml --profile=4g",
        ["positions = 'p.toml'", "profile = '4g'", "leave one out"],
    ),
    "stations and clients": (
        {"p.toml": POSITIONS},
        "--positions=p.toml --clients=3",
        ["clients = 3: p.toml has 2 stations"],
    ),
    "unknown mode": (
        {"p.toml": POSITIONS.replace('"g"', '"x"')},
        "--positions=p.toml",
        ["p.toml: access_point.mode = 'x': must be one of a, b, g, n, ac, ax"],
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_mistake_in_a_file_of_links_is_one_line_that_helps(launch, tmp_path, case):
    files, flags, words = REFUSED[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    run = launch(*(flag.replace("=", f"={tmp_path}/", 1) if ".toml" in flag else flag
                   for flag in flags.split()))  # fmt: skip
    assert run.finish() == 2, run.describe()
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    shown = run.stderr.replace(f"{tmp_path}/", "")
    assert [word for word in words if word not in shown] == [], shown
    assert run.stdout == "" and not run.out.exists()
