"""Clients' own test samples: held back from their training, and only where they are asked for."""

import numpy as np
import pytest
import torch

from nodes.program import FineTuning
from nodes.workload import splits
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, load

SHARE = 0.25
FEDMD = {"public_samples": 16, "public_batch": 8}


def task(local_test: float | None, **more: object) -> FineTuning:
    found = FineTuning(
        RunConfig(
            method="fedmd",
            options=FEDMD,
            train_samples=200,
            local_test=local_test,
            **more,  # type: ignore[arg-type]
        ),
        4,
    )
    found.prepare()
    return found


def test_each_client_has_its_share_of_its_own_samples_and_trains_on_the_rest() -> None:
    without, held = task(None), task(SHARE)
    for number in range(1, 5):
        whole, shard = without._shard(number), held._shard(number)
        assert whole.test is None and shard.test is not None
        images, labels = shard.test
        count = len(whole.targets)
        assert len(labels) == len(images) == round(SHARE * count)
        assert len(shard.targets) == len(shard.inputs) == count - len(labels)
        both = torch.cat([shard.inputs, images]).flatten(1), torch.cat([shard.targets, labels])
        found = {(label.item(), tuple(image.tolist())) for image, label in zip(*both, strict=True)}
        known = zip(whole.inputs.flatten(1), whole.targets, strict=True)
        assert found == {(label.item(), tuple(image.tolist())) for image, label in known}
    assert held._shard(0).test is None


def test_which_they_are_depends_on_the_seed_and_the_client() -> None:
    parts = [np.arange(40), np.arange(40)]
    one, again, other = (splits.local_tests(parts, SHARE, seed=seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(one[0], again[0])
    assert not np.array_equal(one[0], one[1]) and not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [(8, None, 8), (8, 0.01, 7), (8, 0.25, 6), (8, 0.99, 1), (2, 0.5, 1), (100, 0.2, 80)],
)
def test_at_least_one_is_held_back_and_one_is_left(
    samples: int, share: float | None, expected: int
) -> None:
    assert splits.left(samples, share) == expected
    train, test = splits.local_tests([np.arange(samples)], share, seed=0)
    assert (len(train[0]), len(test[0])) == (expected, samples - expected)


def test_methods_hear_before_the_start_how_few_a_client_may_train_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[list[int]] = []
    monkeypatch.setattr(
        "methods.fedmd.check_samples", lambda config, samples: heard.append(samples), raising=False
    )
    found = task(SHARE)
    assert heard == [[6] * 4, [len(found._shard(number).targets) for number in range(1, 5)]]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=f"local_test = {share}"):
        load(None, {"local_test": share})


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        FineTuning(RunConfig(local_test=SHARE), 2)
    assert str(caught.value).startswith(
        "local_test = 0.25: clients of method fedpeft have no models of their own to evaluate; "
        "those of dispfl, fedkd, fedmd, kdfft"
    )
    with pytest.raises(ConfigError, match=r"local_test = 0.25: .*nothing is learnt"):
        FineTuning(RunConfig(method="kdfft", local_test=SHARE, compute="modelled"), 2)
