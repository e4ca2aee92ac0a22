"""When a run ends before its last round, and how much data it asks for."""

import pytest

from nodes.requirements import training_samples
from nodes.server import reaches
from nodes.workload import tasks
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig


def test_a_target_is_reached_by_the_global_model_or_else_by_the_clients_own() -> None:
    assert reaches({"accuracy": 0.9}, 0.9)
    assert not reaches({"accuracy": 0.89, "client_accuracy": 0.95}, 0.9)
    assert reaches({"client_accuracy": 0.95}, 0.9)
    assert not reaches({}, 0.9)
    assert not reaches({"accuracy": 1.0}, None)


def taken(config: RunConfig) -> int | None:
    return training_samples(config, tasks.of(config), clients=5, public=0)


def test_as_many_training_images_as_were_asked_for() -> None:
    asked = RunConfig(train_samples=100)
    assert training_samples(asked, tasks.of(asked), clients=5, public=60) == 100
    assert taken(RunConfig(dataset="glyphs", train_samples=100)) == 100
    for clients, public in ((13, 0), (5, 61)):
        with pytest.raises(ConfigError, match=r"train_samples = 100: must be at least 10[14]"):
            training_samples(asked, tasks.of(asked), clients, public)
    with pytest.raises(ConfigError, match="at most the 1437 of digits"):
        taken(RunConfig(train_samples=1438))
