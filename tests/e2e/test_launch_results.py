"""What a finished run leaves: its folder, its numbers, and the same numbers a second time."""

import re
import subprocess
import tomllib

import pytest
from documented_events import undocumented
from running import CLI, FAST, KINDS, ROOT

from testbed.links.userspace import backend as userspace

CONTRACT = {
    "schema", "run_id", "command", "method", "model", "dataset", "profile", "links", "clients",
    "rounds_done", "seed", "status", "reason", "seconds", "bytes", "rounds", "metrics",
    "trainable_parameters", "total_parameters", "processes", "fidelity", "environment",
}  # fmt: skip
ROUND_CONTRACT = {
    "round", "seconds", "compute_s", "transfer_s", "wait_s", "bytes", "metrics", "clients_ok",
    "clients_failed",
}  # fmt: skip
LEVELS = ("payload", "message", "wire")
WAYS = ("up", "down")
SAMPLES = 480
CLIENTS = {"userspace": 2, "loopback": 3}
FLAGS = {
    "userspace": ("--profile=ethernet", "--clients=2", "--rounds=3", "--seed=7",
                  "--set=local_epochs=1", "--set=batch_size=32", f"--train-samples={SAMPLES}"),
    "loopback": ("--profile=wifi:1,ethernet:2", "--partition=iid", "--rounds=2", *FAST,
                 f"--train-samples={SAMPLES}"),
}  # fmt: skip
PROFILES = {"userspace": 2 * ["ethernet"], "loopback": ["wifi", "ethernet", "ethernet"]}
OTHER_ORDER = {"userspace": "ethernet:2", "loopback": "ethernet:2,wifi:1"}
"""The second time another client's update comes last."""
METHODS = {"userspace": "fedpeft", "loopback": "fedavg"}
ROUNDS = {"userspace": 3, "loopback": 2}
MOST_WIRE = {"userspace": 1.3, "loopback": 1.08}
"""Of a message's bytes: headers, acknowledgements and, of packets, a resent one or two."""


@pytest.fixture(scope="module")
def first(launch_for_module):
    """One run over each kind of links that works here, all at once."""
    kinds = [kind for kind in FLAGS if kind != "userspace" or userspace.probe() is None]
    runs = {kind: launch_for_module(f"--links={kind}", *FLAGS[kind]) for kind in kinds}
    statuses = {kind: run.finish() for kind, run in runs.items()}
    assert set(statuses.values()) == {0}, [run.describe() for run in runs.values()]
    return runs


@pytest.fixture(scope="module")
def again(launch_for_module, first):
    """Each of them once more, from the configuration that it left, the links dealt out anew."""
    runs = {
        kind: launch_for_module(
            *(f"--config={run.folder / 'config.toml'}", f"--profile={OTHER_ORDER[kind]}"), anew=True
        )
        for kind, run in first.items()
    }
    assert {run.finish() for run in runs.values()} == {0}
    return runs


@pytest.fixture(params=list(FLAGS))
def kind(request, first):
    if request.param not in first:
        pytest.skip(f"{request.param}: {userspace.probe()}")
    return request.param


@pytest.fixture
def run(kind, first):
    return first[kind]


@pytest.fixture
def summary(run):
    return run.summary


def test_a_folder_holds_these_files_and_no_others(run):
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.toml", "events.jsonl", "nodes.log", "report.html", "summary.json", "trace.json",
    ]  # fmt: skip
    assert (run.folder / "nodes.log").read_text() == ""


def test_the_summary_has_every_key_of_the_contract(summary, kind):
    assert summary.keys() >= CONTRACT
    assert all(entry.keys() >= ROUND_CONTRACT for entry in summary["rounds"])
    assert summary["schema"] == 1
    assert (summary["status"], summary["reason"]) == ("ok", None)
    assert (summary["links"], summary["method"]) == (kind, METHODS[kind])
    assert (summary["model"], summary["dataset"]) == ("vit-glyphs", "digits")
    assert summary["clients"] == CLIENTS[kind]
    assert summary["rounds_done"] == ROUNDS[kind] == len(summary["rounds"])
    assert summary["fidelity"]["verdict"] in ("pass", "fail", "skipped")
    assert 0 < summary["trainable_parameters"] <= summary["total_parameters"]
    environment = summary["environment"]
    assert environment.keys() >= {
        "python", "torch", "kernel", "cores", "memory_mb", "git", "packages",
    }  # fmt: skip


def test_seconds_add_up(summary):
    seconds = summary["seconds"]
    assert 0 < seconds["startup"] < seconds["total"]
    assert seconds["startup"] + seconds["training"] <= seconds["total"]
    assert sum(entry["seconds"] for entry in summary["rounds"]) <= seconds["training"] + 0.1
    for entry in summary["rounds"]:
        parts = [entry[name] for name in ("compute_s", "transfer_s", "wait_s")]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(entry["seconds"], abs=0.02)


def test_every_payload_byte_is_a_trainable_parameter(summary, kind):
    one_way = 4 * summary["trainable_parameters"]
    total = ROUNDS[kind] * CLIENTS[kind] * one_way
    assert summary["bytes"]["payload"] == {"up": total, "down": total}
    by_kind = summary["bytes"]["by_kind"]
    assert by_kind[KINDS[METHODS[kind]]] == {"up": total, "down": total}
    assert sum(amounts[way] for amounts in by_kind.values() for way in WAYS) == 2 * total
    for client in summary["per_client"]:
        assert client["bytes"]["payload"] == dict.fromkeys(WAYS, ROUNDS[kind] * one_way)
    for entry in summary["rounds"]:
        assert entry["bytes"]["payload"] == dict.fromkeys(WAYS, CLIENTS[kind] * one_way)


def test_each_level_of_bytes_holds_the_one_above(summary, kind):
    for amounts in (summary["bytes"], *(client["bytes"] for client in summary["per_client"])):
        for way in WAYS:
            payload, message, wire = (amounts[level][way] for level in LEVELS)
            assert 0 < payload < message < wire
            assert wire < MOST_WIRE[kind] * message
    for level in LEVELS:
        for way in WAYS:
            clients = sum(client["bytes"][level][way] for client in summary["per_client"])
            assert summary["bytes"][level][way] == clients


def test_training_works(summary):
    accuracy = [summary["metrics"]["initial"]["accuracy"]]
    accuracy += [entry["metrics"]["accuracy"] for entry in summary["rounds"]]
    losses = [entry["metrics"]["loss"] for entry in summary["rounds"]]
    assert losses == sorted(losses, reverse=True)
    assert accuracy[1] > accuracy[0] + 0.3
    assert accuracy[-1] > 0.8
    assert summary["metrics"]["final"] == summary["rounds"][-1]["metrics"]


def test_every_client_took_part_in_every_round(summary, kind):
    for number, entry in enumerate(summary["rounds"], start=1):
        assert entry["round"] == number
        assert (entry["clients_ok"], entry["clients_failed"]) == (CLIENTS[kind], 0)
        assert entry["missed"] == []
    assert summary["dropped_messages"] == []
    assert [client["lost"] for client in summary["per_client"]] == CLIENTS[kind] * [None]
    assert sum(client["samples"] for client in summary["per_client"]) == SAMPLES


def test_a_mix_of_profiles_is_recorded_client_by_client(summary, kind):
    expected = {"userspace": "ethernet", "loopback": "wifi:1,ethernet:2"}
    assert summary["profile"] == expected[kind]
    assert [client["profile"] for client in summary["per_client"]] == PROFILES[kind]


def test_processes_are_accounted_for(summary, run, kind):
    rows = {row["node"]: row for row in summary["processes"]}
    assert rows.keys() == {"server", *(f"client-{n}" for n in range(1, CLIENTS[kind] + 1))}
    assert len({row["pid"] for row in rows.values()}) == CLIENTS[kind] + 1
    for name, row in rows.items():
        assert row["pid"] == run.events("started", node=name)[0]["pid"]
        assert row["private_mb"] > 0 and row["cpu_s"] > 0


def test_each_connection_has_the_congestion_control_that_is_pinned(summary, run, kind):
    # Each connection has two ends.
    assert sum(summary["connections"].values()) == 2 * CLIENTS[kind]
    if kind == "loopback":
        assert (summary["congestion"], summary["congestion_asked"]) == (None, None)
        return
    # Whatever the host's own is.
    pinned = run.events("run")[0]["config"]["congestion"]
    assert set(summary["connections"]) == {pinned} and summary["congestion"] == pinned
    assert summary["congestion_asked"] == "cubic"


def test_the_links_kept_their_own_time(summary, kind):
    facts = summary["link_facts"]
    assert facts["releases"] > 0
    assert 0 <= facts["late_releases"] <= facts["releases"]
    if kind == "userspace":
        assert facts["rootless"] is False
        assert (facts["unroutable_packets"], facts["write_errors"]) == (0, 0)


def test_events_are_in_order_and_the_last_one_closes(run, kind):
    events = run.events()
    assert (events[0]["event"], events[-1]["event"]) == ("run", "closed")
    times = [event["t"] for event in events]
    assert times == sorted(times)
    assert [event["round"] for event in run.events("round")] == list(range(1, ROUNDS[kind] + 1))
    for name in ("server", "client-1", "client-2"):
        assert [event["how"] for event in run.events("ended", node=name)] == ["exited with 0"]
    for event in run.events("message"):
        assert event["received_ns"] >= event["sent_ns"]


def test_every_event_and_field_is_documented(run):
    assert undocumented(run.events()) == []


def test_the_configuration_that_is_left_starts_the_same_run(first, again, kind):
    before, after = (
        tomllib.loads((runs[kind].folder / "config.toml").read_text()) for runs in (first, again)
    )
    assert before.pop("out") != after.pop("out")
    # The flag won over the file.
    assert after.pop("profile") == OTHER_ORDER[kind]
    before.pop("profile")
    assert before == after
    assert before["options"]["local_epochs"] == 1


def test_the_same_seed_gives_the_same_metrics(first, again, kind):
    runs = first[kind].summary, again[kind].summary
    pairs = [(one["metrics"]["initial"], two["metrics"]["initial"]) for one, two in [runs]]
    pairs += [
        (one["metrics"], two["metrics"])
        for one, two in zip(*(found["rounds"] for found in runs), strict=True)
    ]
    for one, two in pairs:
        assert one["accuracy"] == two["accuracy"]
        assert one["loss"] == pytest.approx(two["loss"], rel=0, abs=1e-6)


def test_without_a_terminal_the_output_is_plain_lines(run, kind):
    text = run.stdout + run.stderr
    assert "\x1b" not in text and "\r" not in text
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0] == f"results: {run.folder}"
    assert lines[1].startswith(f"links: {kind}")
    rounds = [line for line in lines if re.match(r"round \d+/\d+  accuracy 0\.\d{3}  loss ", line)]
    assert len(rounds) == ROUNDS[kind]


@pytest.mark.parametrize("name", ["--help", "-h"])
def test_help_names_every_flag(name):
    done = subprocess.run(
        [*CLI, "launch", name], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    for flag in (
        "config", "profile", "positions", "schedule", "clients", "method", "rounds", "links",
        "seed", "model", "dataset", "partition", "alpha", "classes-per-client", "round-timeout",
        "time-limit", "set", "out", "help",
    ):  # fmt: skip
        assert re.search(rf"(^|\s)--{flag}\b", done.stdout), flag
