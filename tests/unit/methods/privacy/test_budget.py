"""What privacy costs, against opacus' accountant and the Gaussian mechanism by hand; refusals."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import heavy
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import fedavg, privacy
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

DELTA = 1e-3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=1, heads=2)


def opacus_says(*history: tuple[float, float, int], delta: float = DELTA) -> float:
    """``history``: noise multiplier, rate and steps."""
    accountant = heavy.accountants.RDPAccountant()
    accountant.history = list(history)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [
        (1.4, 0.2, 50),
        pytest.param(1.0, 1 / 3, 5, marks=pytest.mark.thorough),
        pytest.param(1.1, 0.08, 130, marks=pytest.mark.thorough),
        pytest.param(5.0, 1.0, 20, marks=pytest.mark.thorough),
        pytest.param(0.8, 0.02, 300, marks=pytest.mark.thorough),
    ],
)
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int) -> None:
    expected = opacus_says((noise, rate, steps))
    # Fewer orders can only make the bound looser.
    found = heavy.dp_budget.epsilon(noise, DELTA, Counter({rate: steps}))
    assert expected - 1e-9 <= found < 1.01 * expected


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("noise", [1.0, 3.0, 20.0])
def test_epsilon_of_the_gaussian_mechanism_by_hand(noise: float, steps: int) -> None:
    found = heavy.dp_budget.epsilon(noise, DELTA, Counter({1.0: steps}))
    # Renyi divergence alpha * steps / (2 noise^2), turned into epsilon for the best of all orders.
    alpha = np.linspace(1.01, 200, 200_000)
    bounds = alpha * steps / (2 * noise**2) + np.log((alpha - 1) / alpha)
    bounds -= (math.log(DELTA) + np.log(alpha)) / (alpha - 1)
    assert bounds.min() <= found + 1e-4 and found < 1.01 * bounds.min()
    # Balle and Wang, 2018: the least delta that holds with this epsilon.
    mu = math.sqrt(steps) / noise
    norm = heavy.stats.norm
    exact = norm.cdf(mu / 2 - found / mu) - math.exp(found) * norm.cdf(-mu / 2 - found / mu)
    assert 0.05 * DELTA < exact <= DELTA


@pytest.mark.parametrize(
    "target", [1.0, *(pytest.param(each, marks=pytest.mark.thorough) for each in (0.1, 5.0, 50.0))]
)
def test_the_calibrated_noise_is_the_least_that_suffices(target: float) -> None:
    noise = heavy.dp_budget.calibrate(target, DELTA, 0.2, 50)
    plan = Counter({0.2: 50})
    found, less = (heavy.dp_budget.epsilon(each, DELTA, plan) for each in (noise, 0.99 * noise))
    assert found <= target < less


def test_no_noise_for_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"dp_epsilon = 0\.1: no noise suffices for 10{14} steps"):
        heavy.dp_budget.calibrate(0.1, 1e-9, 1.0, 10**14)


def test_a_budget_lasts_for_its_rounds_and_no_longer() -> None:
    options = fedavg.Config(dp="sample", dp_epsilon=2.0, dp_rounds=3)
    budget = heavy.dp_budget.Budget(options, 0.25, steps=8)
    spent = []
    for _ in range(3):
        assert budget.spend(0.25, steps=8)
        spent.append(budget.epsilon)
    assert 0 < spent[0] < spent[1] < spent[2] <= 2.0 < 1.01 * spent[2]
    assert not budget.spend(0.25, steps=8) and budget.epsilon == spent[2]


@pytest.mark.thorough
def test_rounds_of_different_rates_add_up() -> None:
    budget = heavy.dp_budget.Budget(fedavg.Config(dp="client", dp_noise=1.5), 0.1)
    for rate in (0.1, 0.5, 0.1):
        assert budget.spend(rate)
    assert budget.epsilon == pytest.approx(opacus_says((1.5, 0.1, 2), (1.5, 0.5, 1)), rel=0.01)


# Options


def refusal(method: str = "fedpeft", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        FineTuning(RunConfig(method=method, options=options), 2)
    return str(caught.value)


@pytest.mark.parametrize("method", ["fedavg", "fedpeft"])
def test_noise_is_given_in_one_of_two_ways(method: str) -> None:
    text = f"options of method {method}: dp = 'sample' takes either dp_noise, or dp_epsilon and "
    text += "dp_rounds; given: "
    assert refusal(method, dp="sample") == text + "none of them"
    assert refusal(method, dp="sample", dp_epsilon=5) == text + "dp_epsilon"
    both = refusal(method, dp="sample", dp_noise=1, dp_epsilon=5, dp_rounds=5)
    assert both == text + "dp_noise, dp_epsilon, dp_rounds"
    for options in ({"dp_noise": 1.0}, {"dp_epsilon": 5.0, "dp_rounds": 5}):
        FineTuning(RunConfig(method=method, options={"dp": "sample", **options}), 2)


def test_noise_without_a_level_is_refused() -> None:
    expected = "options of method fedpeft: dp = 'none' with dp_epsilon: take dp=sample or dp=client"
    assert refusal(dp_epsilon=5) == expected


def test_an_unknown_level_is_told_the_known_ones() -> None:
    assert refusal(dp="user").endswith("dp = 'user': must be one of none, sample, client")


@pytest.mark.parametrize(
    ("option", "value"), [("dp_clip", 0), ("dp_noise", 0), ("dp_epsilon", 0), ("dp_delta", 1)]
)
def test_an_option_out_of_range_is_refused(option: str, value: float) -> None:
    assert f"{option} = {value}: Expected" in refusal(dp="sample", **{option: value})


def test_without_opacus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    expected = "dp = 'client' needs opacus: pip install 'wiretune[privacy]'"
    assert refusal(dp="client", dp_noise=1).endswith(expected)
    FineTuning(RunConfig(), 2)


@pytest.mark.thorough
def test_opacus_is_imported_only_for_privacy() -> None:
    code = (
        "import sys\n"
        "from methods import fedpeft, privacy\n"
        "from nodes.workload.models import ModelSpec, VisionTransformer\n"
        "config = fedpeft.Config(variant='head')\n"
        "fedpeft.adapt(config, VisionTransformer(ModelSpec(depth=1), 2))\n"
        "fedpeft.Config(dp='client', dp_noise=1.0)\n"
        "assert 'opacus' not in sys.modules\n"
        "privacy.load('client')\n"
        "assert 'opacus' in sys.modules"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


# Models

PER_SAMPLE = fedavg.Config(dp="sample", dp_noise=1.0)
PER_CLIENT = fedavg.Config(dp="client", dp_noise=1.0)


def test_a_model_that_normalises_over_batches_has_no_gradient_by_sample() -> None:
    model = VisionTransformer(SPEC, 3)
    model.head.norm = nn.BatchNorm1d(SPEC.width)
    with pytest.raises(ValueError, match=r"head\.norm normalises over a batch"):
        fedavg.check(PER_SAMPLE, model)
    # Its statistics would be sent: a variance with noise may be negative.
    with pytest.raises(ValueError, match=r"buffer head\.norm\.running_mean is no weight"):
        fedavg.check(PER_CLIENT, model)
    model.head.norm = nn.BatchNorm1d(SPEC.width, track_running_stats=False)
    fedavg.check(PER_CLIENT, model)


def test_a_model_that_torch_cannot_take_by_sample_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens if tokens.sum().item() > 0 else F.relu(tokens)

    model = VisionTransformer(SPEC, 3)
    model.head.norm = Branching()
    with pytest.raises(ValueError, match="this model's gradients cannot be taken by sample"):
        fedavg.adapt(PER_SAMPLE, model)
    assert fedavg.adapt(PER_CLIENT, model) is model


def test_a_model_without_values_can_be_prepared() -> None:
    with torch.device("meta"):
        model = VisionTransformer(SPEC, 3)
    assert fedavg.adapt(PER_SAMPLE, model) is model
