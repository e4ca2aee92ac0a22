"""When a run ends before its last round, and how much data it asks for."""

from pathlib import Path

import pytest

import methods
from nodes.requirements import check_budget, training_samples
from nodes.server import check_there, ended, reaches
from nodes.workload import tasks
from testbed.config_error import ConfigError
from testbed.metrics import Target, target
from testbed.run.config import RunConfig, load


def test_a_target_is_reached_by_the_global_model_or_else_by_the_clients_own() -> None:
    target = Target("accuracy", 0.9)
    assert reaches({"accuracy": 0.9}, target)
    assert not reaches({"accuracy": 0.89, "client_accuracy": 0.95}, target)
    assert reaches({"client_accuracy": 0.95}, target)
    assert not reaches({}, target)
    assert not reaches({"accuracy": 1.0}, None)


def test_a_target_of_what_less_is_better_is_reached_from_above() -> None:
    for metric in ("loss", "perplexity", "client_loss"):
        assert reaches({metric: 19.5}, Target(metric, 20.0))
        assert not reaches({metric: 20.5}, Target(metric, 20.0))
    assert reaches({"exact_match": 0.5, "loss": 9.0}, Target("exact_match", 0.5))


def test_a_budget_of_payload_ends_a_run_too() -> None:
    run = RunConfig(rounds=5, target="accuracy=0.9", budget_mb=2.0)
    assert ended(run, 1, {"accuracy": 0.5}, 1_999_999) is None
    assert ended(run, 1, {"accuracy": 0.5}, 2_000_000) == "budget"
    assert ended(run, 1, {"accuracy": 0.9}, 2_000_000) == "target"
    assert ended(run, 5, {"accuracy": 0.5}, 0) == "rounds"
    assert ended(RunConfig(rounds=5), 4, {}, 10**12) is None


@pytest.mark.parametrize("value", [0, -1, float("inf"), "much"])
def test_a_budget_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="budget_mb = "):
        load(None, {"budget_mb": value})


def test_a_budget_is_refused_where_the_server_does_not_see_what_is_spent() -> None:
    for run in (RunConfig(method="dispfl", budget_mb=1), RunConfig(transport="gloo", budget_mb=1)):
        with pytest.raises(ConfigError, match=r"budget_mb = 1: clients .* speak to one another"):
            check_budget(run, methods.load(run.method))
    check_budget(RunConfig(budget_mb=1), methods.load("fedpeft"))
    check_budget(RunConfig(method="dispfl"), methods.load("dispfl"))


def test_a_metric_that_the_run_does_not_have_ends_it() -> None:
    with pytest.raises(RuntimeError, match=r"no metric perplexity.* it has accuracy, loss"):
        check_there({"accuracy": 0.1, "loss": 2.0}, Target("perplexity", 20.0))
    check_there({"client_accuracy": 0.1}, Target("accuracy", 0.9))
    check_there({}, Target("accuracy", 0.9))
    check_there({"accuracy": 0.1}, None)


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("0.9", "write METRIC=VALUE, such as accuracy=0.9 or perplexity=20"),
        ("accuracy=", "write METRIC=VALUE"),
        ("perplexty=5", "no metric is called perplexty: did you mean perplexity?"),
        ("Client_Accurracy=0.5", "no metric is called .*: did you mean client_accuracy"),
        ("accuracy=much", "'much' is no number"),
        ("accuracy=inf", "inf: must be a finite number"),
        ("accuracy=1.5", "accuracy is a share: must be above 0, and at most 1"),
        ("client_exact_match=0", "client_exact_match is a share"),
        ("perplexity=1", "perplexity must be above 1"),
        ("loss=0", "loss must be above 0"),
        ("my metric=1", "a metric's name has letters, digits and _, and not 'my metric'"),
    ],
)
def test_a_target_that_is_none_is_refused(target: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"target = '{target}': {wrong}"):
        load(None, {"target": target})


def test_a_share_to_reach_is_a_target_in_old_files_and_flags(tmp_path: Path) -> None:
    old = tmp_path / "config.toml"
    old.write_text("target_accuracy = 0.9\n")
    assert load(old, {}).target == load(None, {"target_accuracy": 0.9}).target == "accuracy=0.9"
    # A flag wins over the file, whichever of the two it is.
    assert load(old, {"target": "loss=1.5"}).aim == Target("loss", 1.5)
    new = tmp_path / "new.toml"
    new.write_text('target = "loss=1.5"\n')
    assert load(new, {"target_accuracy": 0.8}).aim == Target("accuracy", 0.8)
    with pytest.raises(ConfigError, match=r"'loss=1\.5' and target_accuracy = 0\.9: .* leave one"):
        load(None, {"target": "loss=1.5", "target_accuracy": 0.9})
    for wrong in (0, 1.5, "much", True):
        with pytest.raises(ConfigError, match=r"target_accuracy = .*: must be a number above 0"):
            load(None, {"target_accuracy": wrong})


def taken(config: RunConfig) -> int | None:
    return training_samples(config, tasks.of(config, 20), clients=5, public=0)


def test_as_many_training_images_as_were_asked_for() -> None:
    asked = RunConfig(train_samples=100)
    assert training_samples(asked, tasks.of(asked, 20), clients=5, public=60) == 100
    assert taken(RunConfig(dataset="glyphs", train_samples=100)) == 100
    for clients, public in ((13, 0), (5, 61)):
        with pytest.raises(ConfigError, match=r"train_samples = 100: must be at least 10[14]"):
            training_samples(asked, tasks.of(asked, 20), clients, public)
    with pytest.raises(ConfigError, match="at most the 1437 of digits"):
        taken(RunConfig(train_samples=1438))


def test_a_metric_of_a_methods_own_may_be_called_much_like_a_usual_one() -> None:
    for name in ("accuracy_of_five", "client_local_accuracy", "f1", "bleu"):
        assert target(f"{name}=0.5").metric == name
