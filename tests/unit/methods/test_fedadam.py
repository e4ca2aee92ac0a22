"""FedAdam, FedYogi and FedAdagrad: their servers' steps by hand, and what is refused."""

import numpy as np
import pytest
from made_rounds import Rounds, same

from methods import fedadam, fedavg
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

RULES = ("adam", "yogi", "adagrad")
TRAINING = {"learning_rate": 0.05, "batch_size": 4}


@pytest.mark.parametrize("given", [{}, {"beta1": 0.6, "beta2": 0.7, "tau": 0.05}])
@pytest.mark.parametrize("lost", [{}, {"client-2": 1}])
@pytest.mark.parametrize("rule", RULES)
def test_three_steps_of_the_server_by_hand(
    rule: str, lost: dict[str, int], given: dict[str, float]
) -> None:
    eta = 0.03
    played = Rounds(
        fedadam, dies_after=lost, rule=rule, server_learning_rate=eta, **TRAINING, **given
    )
    b1 = given.get("beta1", 0.0 if rule == "adagrad" else 0.9)
    b2, tau = given.get("beta2", 0.99), given.get("tau", 1e-3)
    expected = {name: each.double().numpy() for name, each in played.states[0].items()}
    m = {name: np.zeros_like(each) for name, each in expected.items()}
    v = {name: np.full_like(each, tau**2) for name, each in expected.items()}
    for number in (1, 2, 3):
        for name, mean in played.mean(number).items():
            d = mean - expected[name]
            m[name] = b1 * m[name] + (1 - b1) * d
            v[name] = {
                "adagrad": v[name] + d**2,
                "yogi": v[name] - (1 - b2) * d**2 * np.sign(v[name] - d**2),
                "adam": b2 * v[name] + (1 - b2) * d**2,
            }[rule]
            expected[name] = expected[name] + eta * m[name] / (np.sqrt(v[name]) + tau)
            found = played.states[number][name].numpy()
            np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-6)


def test_the_rules_differ() -> None:
    states = [Rounds(fedadam, rule=rule, **TRAINING).states for rule in RULES]
    assert not any(same(states[k], states[k - 1]) for k in range(3))


def test_its_bytes_are_fedavgs() -> None:
    assert Rounds(fedadam).network.payload() == Rounds(fedavg).network.payload()


def test_adagrad_has_no_momentum_unless_it_is_given() -> None:
    assert [fedadam.Config(rule=rule).beta1 for rule in RULES] == [0.9, 0.9, 0.0]  # type: ignore[arg-type]
    assert fedadam.Config(rule="adagrad", beta1=0.5).beta1 == 0.5
    options = FineTuning(RunConfig(method="fedadam"), 2).options
    assert options["beta1"] == 0.9 and None not in options.values()


@pytest.mark.parametrize("dp", [{"dp": "sample"}, {"dp": "client"}])
def test_privacy_is_fedavgs(dp: dict[str, str]) -> None:
    options = {**TRAINING, **dp, "dp_noise": 1.0}
    ours, theirs = (Rounds(each, **options) for each in (fedadam, fedavg))
    some = ours.parts["client-1"]
    spent = [each.server.evaluate(some.inputs, some.targets)["epsilon"] for each in (ours, theirs)]
    assert spent[0] == spent[1] > 0


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("rule", "adem", "rule = 'adem': must be one of adam, yogi, adagrad"),
        ("beta1", 1.0, "beta1 = 1.0: Expected `float` < 1"),
        ("beta2", 1.5, "beta2 = 1.5: Expected `float` < 1"),
        ("tau", 0.0, "tau = 0.0: Expected `float` > 0"),
        ("server_learning_rate", -1.0, "server_learning_rate = -1.0: Expected `float` > 0"),
    ],
)
def test_bad_options_are_refused(option: str, value: object, reason: str) -> None:
    config = RunConfig(method="fedadam", options={option: value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        FineTuning(config, 2)
    assert reason in str(refused.value)
