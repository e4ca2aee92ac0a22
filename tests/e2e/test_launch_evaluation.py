"""Evaluation: on how many images, and never within a round."""

import pytest

SMALL = ("--links=loopback", "--profile=unlimited", "--no-calibrate", "--clients=3", "--rounds=2")
FEDMD = (
    *("--method=fedmd", "--set=first_epochs=1", "--set=local_epochs=1", "--set=public_batch=16"),
    *("--train-samples=300", "--set=public_samples=32"),
)


@pytest.fixture(scope="module")
def fedmd(launch_for_module):
    run = launch_for_module(*SMALL, *FEDMD, "--eval-samples=120")
    assert run.finish() == 0, run.describe()
    return run


def test_clients_evaluate_their_models_when_all_are_done_with_the_round(fedmd):
    for number in (1, 2):
        messages = fedmd.events("message", round=number)
        updates = [each for each in messages if each["kind"] == "logits"]
        asked = [each for each in messages if each["kind"] == "evaluate"]
        told = [each for each in messages if each["kind"] == "metrics"]
        assert len(asked) == len(told) == 3
        assert updates, {each["kind"] for each in messages}
        over_ns = max(each["received_ns"] for each in updates if each["node"] == "server")
        assert over_ns < min(each["sent_ns"] for each in asked)


def test_the_record_and_the_summary_say_how_many_images(fedmd):
    (event,) = fedmd.events("evaluated")
    assert (event["images"], event["of"]) == (120, 360)
    assert fedmd.summary["evaluated"] == {"images": 120, "of": 360, "split": "test"}
    assert all(entry["evaluation_s"] > 0 for entry in fedmd.summary["rounds"])
    assert "test samples evaluated" in fedmd.stdout and "120 of 360" in fedmd.stdout
    accuracy = fedmd.summary["metrics"]["final"]["client_accuracy"]
    assert (120 * 3 * accuracy) == pytest.approx(round(120 * 3 * accuracy))


def test_clients_evaluate_on_their_own_test_samples_too(launch):
    run = launch(*SMALL, *FEDMD, "--local-test=0.25")
    assert run.finish() == 0, run.describe()
    for entry in run.summary["rounds"]:
        own = entry["metrics"]
        assert own.keys() == {
            *("client_accuracy", "client_loss", "client_local_accuracy", "client_local_loss")
        }
        assert own["client_local_loss"] != own["client_loss"]
    # 300 less 32 public ones, of which each client holds a quarter back.
    samples = sum(each["samples"] for each in run.summary["per_client"])
    assert 268 * 3 // 4 - 2 <= samples <= 268 * 3 // 4 + 2


def test_a_small_test_set_is_evaluated_whole(launch):
    run = launch(*SMALL, "--rounds=1", "--set=variant=head", "--set=local_epochs=1")
    assert run.finish() == 0, run.describe()
    assert run.summary["evaluated"] == {"images": 360, "of": 360, "split": "test"}
    assert "test samples evaluated" not in run.stdout


def test_a_run_on_the_validation_split_says_so(launch):
    head = ("--rounds=1", "--set=variant=head", "--set=local_epochs=1")
    run = launch(*SMALL, *head, "--eval-on=validation")
    assert run.finish() == 0, run.describe()
    assert run.summary["evaluated"] == {"images": 288, "of": 288, "split": "validation"}
    assert "validation samples evaluated" in run.stdout and "288 of 288" in run.stdout
    assert sum(each["samples"] for each in run.summary["per_client"]) == 1149
    assert "288 of 288 validation samples" in (run.folder / "report.html").read_text()


def test_a_run_ends_after_the_round_that_spends_its_budget_of_payload(launch):
    # A head of 970 weights each way of 3 clients: 23,280 bytes a round.
    head = ("--set=variant=head", "--set=local_epochs=1", "--rounds=9")
    run = launch(*SMALL, *head, "--budget-mb=0.04")
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert (summary["rounds_done"], summary["ended"]) == (2, "budget")
    assert summary["bytes"]["payload"] == {"up": 23_280, "down": 23_280}
    (done,) = run.events("done")
    assert done["because"] == "budget"
    assert "of the payload budget of 0.04 MB, spent" in run.stdout and "116.40%" in run.stdout


def test_a_target_that_the_run_has_no_metric_for_is_refused_before_it_starts(launch):
    run = launch(*SMALL, "--set=variant=head", "--target=perplexity=20")
    assert run.finish() == 2, run.describe()
    assert "has no metric perplexity" in run.stderr and "Known: accuracy, loss." in run.stderr
    assert run.folders == []
