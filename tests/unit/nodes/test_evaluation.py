"""How many images a model is evaluated on, and which."""

from typing import Any

import pytest

import methods
from nodes import evaluation, method_options
from nodes.requirements import training_samples
from nodes.workload import tasks
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, load


def check(**fields: Any) -> None:
    config = RunConfig(**fields)
    evaluation.check(config, tasks.of(config, 20))


def unasked() -> float:
    raise AssertionError("it does not matter here")


@pytest.mark.parametrize("there", [1, 360, 1_000])
def test_a_small_test_set_is_evaluated_whole_whatever_it_costs(there: int) -> None:
    assert evaluation.count(None, there, 1_000, unasked, models=1) == there


@pytest.mark.parametrize(
    ("sample_flops", "models", "expected"),
    [
        (1e6, 1, 26_032),
        (1e7, 1, 10_000),
        (1e7, 4, 2_500),
        (1e7, 21, 1_000),
        (35e9, 1, 1_000),
        (0.0, 1, 26_032),
    ],
)
def test_a_large_one_as_far_as_operations_allow(
    sample_flops: float, models: int, expected: int
) -> None:
    assert evaluation.count(None, 26_032, 1_000, lambda: sample_flops, models) == expected


def test_what_is_asked_for_is_taken() -> None:
    assert evaluation.count(7, 360, 1_000, unasked, models=1) == 7
    assert evaluation.count(20_000, 26_032, 1_000, unasked, models=21) == 20_000


def test_fewer_images_are_a_part_of_more_and_always_the_same() -> None:
    few, more = evaluation.chosen(100, 10_000), evaluation.chosen(1_000, 10_000)
    assert len(set(few.tolist())) == 100 and set(few.tolist()) < set(more.tolist())
    assert (few == evaluation.chosen(100, 10_000)).all()
    # Of all of the set, whose order may be by class.
    assert few.min() < 500 and few.max() > 9_500 and (few[1:] > few[:-1]).all()
    assert evaluation.chosen(360, 360).tolist() == list(range(360))


def test_more_than_there_are_is_refused() -> None:
    check(eval_samples=360)
    check()
    with pytest.raises(ConfigError, match="eval_samples = 361: must be at most 360, the test"):
        check(eval_samples=361)
    check(eval_samples=288, eval_on="validation")
    with pytest.raises(ConfigError, match="= 289: must be at most 288, the validation images"):
        check(eval_samples=289, eval_on="validation")


def test_a_validation_split_of_nothing_learnt_is_refused() -> None:
    check(compute="modelled")
    with pytest.raises(ConfigError, match="eval_on = 'validation': where compute is modelled"):
        check(compute="modelled", eval_on="validation")


def test_clients_lack_the_validation_split_before_anything_starts() -> None:
    config = RunConfig(eval_on="validation")
    assert training_samples(config, tasks.of(config, 20), 143, 0) is None
    with pytest.raises(ConfigError, match=r"less its validation split, has 1149 .* 143 clients"):
        training_samples(config, tasks.of(config, 20), 144, 0)


@pytest.mark.parametrize("asked", [0, -5])
def test_none_at_all_is_refused(asked: int) -> None:
    with pytest.raises(ConfigError, match=rf"eval_samples = {asked}: .*>= 1"):
        load(None, {"eval_samples": asked})
    assert RunConfig().eval_samples is None


def check_target(target: str, method: str = "fedavg", **fields: Any) -> None:
    config = RunConfig(target=target, method=method, **fields)
    found = methods.load(method)
    task = tasks.of(config, 20)
    evaluation.check_target(config, task, found, method_options.of(config, found))


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("accuracy=0.9", {}),
        ("epsilon=8", {"options": {"dp": "client", "dp_noise": 1.0}}),
        ("client_loss=1", {"method": "fedmd"}),
        ("accuracy=0.9", {"method": "fedmd"}),
        ("client_local_accuracy=0.9", {"method": "dispfl", "local_test": 0.2}),
        ("kept=0.5", {"method": "fedpruning"}),
        ("staleness_max=3", {"method": "fedbuff"}),
        ("share_up=0.5", {"method": "fedkd"}),
        ("score=0.5", {"method": "fedcompress"}),
        ("perplexity=20", {"model": "llama-docs", "dataset": "docs"}),
        ("exact_match=0.5", {"model": "llama-docs", "dataset": "instructions"}),
    ],
)
def test_a_target_of_a_metric_that_the_run_has_is_taken(
    target: str, fields: dict[str, Any]
) -> None:
    check_target(target, **fields)


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("perplexity=20", {}),
        ("client_accuracy=0.9", {}),
        ("epsilon=8", {}),
        ("kept=0.5", {}),
        ("client_local_accuracy=0.9", {"method": "dispfl"}),
        ("exact_match=0.5", {"model": "llama-docs", "dataset": "docs"}),
    ],
)
def test_a_target_that_is_never_reached_is_refused_before_the_start(
    target: str, fields: dict[str, Any]
) -> None:
    name = target.partition("=")[0]
    with pytest.raises(ConfigError, match=f"target = '{target}'.* has no metric {name}.*Known: "):
        check_target(target, **fields)


def test_a_target_of_modelled_compute_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"accuracy=0\.9.*--compute=real"):
        check_target("accuracy=0.9", compute="modelled")
