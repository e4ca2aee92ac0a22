"""The method that README.md shows: whole, short, and doing what it says."""

import re
from pathlib import Path

import msgspec
import pytest
import torch
from in_process import play, shards

import methods
from methods import Method
from methods.shared.local_training import trainable_state
from nodes.workload.models import ModelSpec, VisionTransformer

README = (Path(__file__).parents[3] / "README.md").read_text()
MOST_LINES = 41
SAMPLES = {"client-1": 24, "client-2": 40}


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """It as launch would find it, were it saved as the text says."""
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = (text for text in found if "class Server" in text)
    assert len(code.splitlines()) <= MOST_LINES
    (name,) = re.findall(r"`methods/(\w+)\.py`, it is `--method=\1`", README)
    assert name not in methods.names()
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    return methods.load(name)


def test_a_round_of_it_learns_and_sends_half_the_bytes_up(method: Method) -> None:
    torch.manual_seed(0)
    config = msgspec.convert({"learning_rate": 1e-2}, method.Config)
    models = [VisionTransformer(ModelSpec(depth=1), classes=4) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    before = trainable_state(models[0])
    held = shards(SAMPLES, (1, 16, 16), classes=4)
    server = method.Server(config, models[0], next(iter(held.values())), 0)
    clients = {
        name: method.Client(config, model, held[name], seed)
        for seed, (name, model) in enumerate(zip(SAMPLES, models[1:], strict=True), 1)
    }
    network = play(server, clients, SAMPLES)
    size = 4 * sum(tensor.numel() for tensor in before.values())
    assert network.payload() == {"up": {"change": 2 * size // 2}, "down": {"model": 2 * size}}
    # The mean of the changes, weighted by samples, to the precision of 16 bits.
    after = trainable_state(models[0])
    changes = {name: trainable_state(client.model) for name, client in clients.items()}
    for name, old in before.items():
        sums = [count * (changes[c][name] - old) for c, count in SAMPLES.items()]
        mean = old + sum(sums) / sum(SAMPLES.values())
        torch.testing.assert_close(after[name], mean, rtol=2e-3, atol=2e-4)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    images, labels = held["client-1"].inputs, held["client-1"].targets
    assert server.evaluate(images, labels).keys() == {"accuracy", "loss"}


def test_its_options_are_checked(method: Method) -> None:
    for wrong in ({"learning_rate": "fast"}, {"rate": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, method.Config)
