"""Memory that nodes take at least, by what they train."""

import pytest

import methods
from experiments import footprint
from nodes.program import FineTuning
from testbed.machine.doctor import CLIENT_MB, RUN_MB
from testbed.network.hosts import Needs
from testbed.run.config import RunConfig

MB = 10**6


def needs(**fields: object) -> Needs:
    config = RunConfig(clients=10, **fields)
    return footprint.of(config, FineTuning(config, 10))


def test_who_trains_all_weights_has_them_and_their_gradients():
    found = needs(method="fedavg")
    weights = found.shared - RUN_MB * MB
    assert weights > MB
    assert found == Needs(CLIENT_MB * MB + 2 * weights, CLIENT_MB * MB + 2 * weights, found.shared)


def test_a_larger_model_takes_more_of_a_host_and_of_each_client_that_trains_all_of_it():
    whole, adapted = (needs(method=name, model="vit-b16") for name in ("fedavg", "fedpeft"))
    # 86 million parameters of four bytes.
    assert 300 * MB < whole.shared - RUN_MB * MB < 400 * MB
    assert 600 * MB < whole.client - CLIENT_MB * MB < 800 * MB
    assert whole.shared == pytest.approx(adapted.shared, rel=0.1)
    assert adapted.client < whole.client / 10


def test_modelled_computing_takes_no_tensors():
    found = needs(method="fedavg", model="vit-b16", compute="modelled")
    assert found == Needs(CLIENT_MB * MB, CLIENT_MB * MB, RUN_MB * MB)


# That one is of text alone.
@pytest.mark.parametrize("method", sorted({*methods.names()} - {"fedsp"}))
def test_every_method_has_one(method: str):
    found = needs(method=method)
    assert CLIENT_MB * MB <= found.client < 100 * MB
    assert RUN_MB * MB < found.shared < (RUN_MB + 100) * MB
