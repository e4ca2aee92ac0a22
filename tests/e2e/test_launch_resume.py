"""A run that is killed, at any point, and goes on: it ends with the model of one that was not."""

import json
import os
import signal
from typing import Any

import pytest
from running import Run

SMALL = (
    *("--links=loopback", "--profile=ethernet", "--no-calibrate", "--clients=3", "--rounds=4"),
    *("--train-samples=96", "--eval-samples=40", "--time-limit=150"),
)
PUBLIC = ("--set=public_samples=16", "--set=public_batch=8")
FEDAVG = ("--method=fedavg", "--set=local_epochs=1")
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fedpeft lora, a round told": ((), {"event": "round", "round": 2}),
    "fedavg of two in three, private by sample, amid a round": (
        (*FEDAVG, "--set=dp=sample", "--set=dp_noise=1.0", "--clients-per-round=2"),
        {"event": "message", "node": "server", "round": 3},
    ),
    "fedavg private by client, one client done": (
        (*FEDAVG, "--set=dp=client", "--set=dp_noise=0.1"),
        {"event": "saved", "node": "client-2", "round": 2},
    ),
    "kdfft with a student, the server done": (
        ("--method=kdfft", "--set=student=true", *PUBLIC, "--train-samples=112"),
        {"event": "saved", "node": "server", "round": 3},
    ),
    "fedmd, a round begun": (
        ("--method=fedmd", "--set=first_epochs=2", *PUBLIC, "--train-samples=112"),
        {"event": "round_started", "round": 3},
    ),
    "flora with a client left out each round, amid a stack": (
        ("--method=flora", "--set=ranks=8,4", "--clients-per-round=2"),
        {"event": "message", "kind": "adapter", "node": "server", "round": 3},
    ),
    "fedavg of two in three by stages both ways, amid a round": (
        (
            *(*FEDAVG, "--clients-per-round=2", "--stage=topk:k=0.05,feedback=true"),
            *("--stage=int8", "--stage-down=int8"),
        ),
        {"event": "message", "node": "server", "round": 3},
    ),
    "fedavg of two in three by cossgd both ways, rounded at random": (
        (
            *(*FEDAVG, "--clients-per-round=2", "--stage=cossgd:rounding=random,feedback=true"),
            "--stage-down=cossgd:weights=true,rounding=random",
        ),
        {"event": "message", "node": "server", "round": 3},
    ),
    "fedcompress of two in three, amid codes": (
        (
            *("--method=fedcompress", "--set=local_epochs=1", "--set=distill_epochs=1"),
            *("--set=public_samples=16", "--clients-per-round=2"),
        ),
        {"event": "message", "kind": "clustered", "node": "server", "round": 3},
    ),
    "fedpruning of two in three, amid masks": (
        ("--method=fedpruning", "--set=structures=both", "--clients-per-round=2"),
        {"event": "message", "node": "server", "round": 3},
    ),
    "feddm of two in three, amid images": (
        ("--method=feddm", "--set=iterations=3", "--set=server_epochs=2", "--clients-per-round=2"),
        {"event": "message", "node": "server", "round": 3},
    ),
    "fedptr, amid a round that is pulled": (
        ("--method=fedptr", "--set=match_steps=3"),
        {"event": "message", "node": "server", "round": 3},
    ),
    "fedptr by clients, one client done": (
        ("--method=fedptr", "--set=match_steps=3", "--set=projection=client"),
        {"event": "saved", "node": "client-2", "round": 3},
    ),
    "salientgrads of two in three, who came later gets the mask then": (
        ("--method=salientgrads", "--set=local_epochs=1", "--clients-per-round=2"),
        {"event": "message", "kind": "model", "node": "server", "round": 3},
    ),
    "fedkd of two in three, amid a mean": (
        ("--method=fedkd", "--set=student_blocks=1", "--clients-per-round=2"),
        {"event": "message", "kind": "update", "node": "server", "round": 3},
    ),
    "fedsp of two in three, who came later gets the auxiliary model then": (
        (
            *("--method=fedsp", "--model=llama-docs", "--dataset=docs", "--clients-per-round=2"),
            *("--set=align_steps=2", "--set=local_steps=1", "--set=server_samples=8"),
            *("--train-samples=40", "--eval-samples=8"),
        ),
        {"event": "message", "kind": "prefix", "node": "server", "round": 3},
    ),
    "splitfed, amid its batches": (
        ("--method=splitfed", "--set=variant=v2"),
        {"event": "message", "kind": "smashed", "node": "server", "round": 2},
    ),
    "fedlite by codes both ways, amid its batches": (
        ("--method=fedlite", "--set=quantise_down=true"),
        {"event": "message", "kind": "smashed", "node": "server", "round": 3},
    ),
    "sfprompt, the last round over": (("--method=sfprompt",), {"event": "wire", "round": 4}),
}
MOMENTS = {
    "fedpeft lora, a round told",
    "fedavg private by client, one client done",
    "kdfft with a student, the server done",
    "fedmd, a round begun",
    "fedavg of two in three by stages both ways, amid a round",
    "splitfed, amid its batches",
    "sfprompt, the last round over",
}
"""One case of each moment; the others are of what methods keep."""


def kill_after(run: Run, event: str, /, **fields: Any) -> None:
    """SIGKILL the supervisor as soon as the event is in the record."""
    run.wait_for(event, **fields)
    os.kill(run.pid, signal.SIGKILL)
    assert run.finish() == -signal.SIGKILL


def outcome(run: Run) -> dict[str, Any]:
    assert run.finish() == 0, run.describe()
    assert run.stderr == ""
    assert (run.folder / "nodes.log").read_text() == ""
    return run.summary


def metrics(summary: dict[str, Any]) -> list[dict[str, float]]:
    return [entry["metrics"] for entry in summary["rounds"]]


def check_alike(resumed: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert (resumed["status"], resumed["rounds_done"]) == ("ok", undisturbed["rounds_done"])
    rounds = range(1, resumed["rounds_done"] + 1)
    assert [entry["round"] for entry in resumed["rounds"]] == list(rounds)
    assert all(entry["finished"] for entry in resumed["rounds"])
    assert not any(client["lost"] for client in resumed["per_client"])
    for own, other in zip(metrics(resumed), metrics(undisturbed), strict=True):
        assert own == pytest.approx(other, rel=0, abs=1e-6)
    assert resumed["metrics"]["initial"] == undisturbed["metrics"]["initial"]
    # What the killed process had done of a round that was done again does not count.
    assert resumed["bytes"]["payload"] == undisturbed["bytes"]["payload"]
    assert resumed["bytes"]["by_kind"] == undisturbed["bytes"]["by_kind"]
    assert resumed["staged"] == undisturbed["staged"]
    for own, other in zip(resumed["rounds"], undisturbed["rounds"], strict=True):
        assert own["bytes"]["payload"] == other["bytes"]["payload"]
        assert own["bytes"]["wire"]["up"] > own["bytes"]["payload"]["up"] > 0


@pytest.mark.parametrize(
    "case",
    [pytest.param(each, marks=[pytest.mark.thorough] * (each not in MOMENTS)) for each in CASES],
)
def test_a_killed_run_ends_as_an_undisturbed_one(launch, case):
    flags, moment = CASES[case]
    undisturbed, killed = launch(*SMALL, *flags), launch(*SMALL, *flags)
    fields = dict(moment)
    kill_after(killed, fields.pop("event"), **fields)
    resumed = launch(resume=killed.folder)
    summary = outcome(resumed)
    check_alike(summary, outcome(undisturbed))
    (again,) = summary["resumed"]
    # A client of fedmd still digests a round as the server begins the next: then its last
    # state is of the one before.
    assert again["from_round"] in range(moment["round"] - 2, moment["round"] + 1)
    events = resumed.events()
    at = next(n for n, event in enumerate(events) if event["event"] == "resumed")
    began = [event["round"] for event in events[at:] if event["event"] == "round_started"]
    assert began == list(range(again["from_round"] + 1, 5))
    times = [event["t"] for event in events]
    assert times[at - 1] <= times[at] and times[at:] == sorted(times[at:])
    assert not (resumed.folder / "state").exists()


def test_a_killed_asynchronous_run_goes_on(launch):
    flags = ("--method=fedbuff", "--set=buffer_size=2", "--rounds=8", "--set=local_epochs=8")
    calm = ("--partition=iid", "--set=learning_rate=0.003")
    run = launch(*SMALL, *flags, *calm)
    kill_after(run, "wire", round=4)
    summary = outcome(launch(resume=run.folder))
    (again,) = summary["resumed"]
    assert again["from_round"] >= 3  # Its state of the last may have been on its way.
    assert (summary["status"], summary["rounds_done"]) == ("ok", 8)
    assert all(entry["metrics"]["staleness_max"] <= 4 for entry in summary["rounds"])
    assert summary["metrics"]["final"]["loss"] < summary["metrics"]["initial"]["loss"]


def refusal(launch, run: Run, *flags: str) -> str:
    refused = launch(*flags, resume=run.folder)
    assert refused.finish() == 2, refused.describe()
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    return refused.stderr


def test_a_run_goes_on_twice_around_what_is_torn(launch):
    flags = (*SMALL, "--rounds=8", "--set=local_epochs=4")
    undisturbed, run = launch(*flags), launch(*flags)
    # 1. It is killed, and its record and the server's last state are torn.
    kill_after(run, "wire", round=2)
    folder = run.folder
    last = max((folder / "state").glob("server.*"))
    last.write_bytes(last.read_bytes()[:-1])
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"t":9999,"node":"serv')
    assert "--rounds: the run goes on as it was" in refusal(launch, run, "--rounds=9")
    # 2. It goes on after the round before, and is killed again.
    second = launch(resume=folder)
    kill_after(second, "wire", round=5)
    # 3. It goes on to its end.
    third = launch(resume=folder)
    summary = outcome(third)
    check_alike(summary, outcome(undisturbed))
    first, then = (again["from_round"] for again in summary["resumed"])
    assert first == int(last.name.split(".")[1]) - 1 < then
    lost = summary["resumed"][0]["lost"]
    assert lost["payload"]["up"] > 0 and lost["seconds"] > 0
    seconds = summary["seconds"]
    # Rounds are timed by the server, and training by when the supervisor hears of it.
    assert seconds["training"] >= sum(entry["seconds"] for entry in summary["rounds"]) - 0.1
    parts = [seconds["startup"], seconds["training"]]
    parts += [again["startup_s"] + again["lost"]["seconds"] for again in summary["resumed"]]
    # Beside those only what a process did between the end of a round and its own.
    assert sum(parts) == pytest.approx(seconds["total"], abs=2.0)
    page = (folder / "report.html").read_text()
    assert f"went on after round {first}, and after round {then}" in page
    trace = json.loads((folder / "trace.json").read_text())
    begun = [e["name"] for e in trace["traceEvents"] if e["name"].startswith("round ")]
    assert sorted(begun) == sorted(f"round {n}" for n in range(1, 9) for _ in range(4))
    assert "is over" in refusal(launch, third)


def test_a_killed_client_is_there_again_and_nobody_goes_on_with_a_run_that_runs(launch):
    run = launch(*SMALL, "--rounds=6", "--set=local_epochs=8")
    run.wait_for("wire", round=1)
    os.kill(run.pid_of("client-2"), signal.SIGKILL)
    run.wait_for("lost", peer="client-2")
    os.killpg(run.pid, signal.SIGSTOP)  # So that it is not done before it is looked at.
    assert "still goes on in another process" in refusal(launch, run)
    os.kill(run.pid, signal.SIGKILL)
    run.finish()
    summary = outcome(launch(resume=run.folder))
    (again,) = summary["resumed"]
    assert not any(client["lost"] for client in summary["per_client"])
    for entry in summary["rounds"][again["from_round"] :]:
        assert (entry["clients_ok"], entry["clients_failed"]) == (3, 0)


def test_a_run_killed_before_its_first_round_is_over_begins_anew(launch):
    run = launch(*SMALL, "--rounds=1", *FEDAVG)
    kill_after(run, "round_started", round=1)
    summary = outcome(launch(resume=run.folder))
    (again,) = summary["resumed"]
    assert (again["from_round"], summary["rounds_done"]) == (0, 1)
    assert summary["seconds"]["startup"] == pytest.approx(again["startup_s"])
    assert summary["metrics"]["initial"]["accuracy"] < summary["metrics"]["final"]["accuracy"]


def test_a_run_without_checkpoints_cannot_go_on(launch):
    run = launch(*SMALL, "--no-checkpoints", *FEDAVG)
    kill_after(run, "wire", round=1)
    assert not (run.folder / "state").exists()
    text = refusal(launch, run)
    assert "server.1.safetensors: is missing" in text and "--config" in text


def test_a_changed_configuration_is_not_gone_on_with(launch):
    run = launch(*SMALL, *FEDAVG)
    kill_after(run, "wire", round=1)
    config = run.folder / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    assert "seed = 1 in its config.toml is not the run's own, 0" in refusal(launch, run)


SCHEDULE = """
[[schedule]]
at_s = 0.2
up = { rate_kbit = 50_000 }

[[schedule]]
at_s = 900
up = { rate_kbit = 60_000 }
"""


def test_modelled_nodes_on_links_of_their_own_go_on(launch, best_links, tmp_path):
    schedule = tmp_path / "schedule.toml"
    schedule.write_text(SCHEDULE)
    flags = (best_links, "--profile=ethernet", "--clients=2", "--rounds=6", "--time-limit=150")
    flags += ("--compute=modelled", "--device-class=10", "--train-samples=160")
    run = launch(*flags, f"--schedule={schedule}")
    run.wait_for("shaped", node="client-2", at_s=0.2)
    kill_after(run, "wire", round=3)
    resumed = launch(resume=run.folder)
    summary = outcome(resumed)
    (again,) = summary["resumed"]
    assert (summary["status"], summary["rounds_done"]) == ("ok", 6)
    # The links are in the state that they had, from the first round on, and no earlier one.
    events = resumed.events()
    at = next(n for n, event in enumerate(events) if event["event"] == "resumed")
    shaped = [event for event in events[at:] if event["event"] == "shaped"]
    assert [event["node"] for event in shaped] == ["client-1", "client-2"]
    assert all(event["up"]["rate_kbit"] == 50_000 for event in shaped)
    trained_s = sum(entry["seconds"] for entry in summary["rounds"][: again["from_round"]])
    # By when the supervisor heard of rounds, which is some milliseconds apart from their seconds.
    assert trained_s > 0.2
    assert all(event["at_s"] >= trained_s - 0.05 for event in shaped)
    # Bytes of the links before and after add up.
    wire = {"up": 0, "down": 0}
    for entry in summary["rounds"]:
        assert entry["bytes"]["wire"]["up"] > entry["bytes"]["payload"]["up"] > 0
        wire = {way: wire[way] + entry["bytes"]["wire"][way] for way in wire}
    for way, total in summary["bytes"]["wire"].items():
        assert total == sum(client["bytes"]["wire"][way] for client in summary["per_client"])
        assert wire[way] <= total < 1.05 * wire[way] + 20_000
