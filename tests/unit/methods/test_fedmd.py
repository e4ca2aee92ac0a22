"""FedMD: clients with different models in one round, against means worked out another way."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from told import Told
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Shard, fedmd
from methods.distillation import predict
from methods.shared.objective import scores
from nodes.program import FineTuning
from nodes.server import count_parameters
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, convert

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=3, heads=2)
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 2, "client-4": 4}
PUBLIC, BATCH = 12, 7
SEED = 4
BYTES = BATCH * CLASSES * 4 + 8


def config(**options: Any) -> fedmd.Config:
    small = {"public_samples": PUBLIC, "public_batch": BATCH, "first_epochs": 2, "depths": "1,3"}
    return fedmd.Config(**{**small, "batch_size": 4, "digest_batch_size": 4, **options})


def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def public() -> Tensor:
    return torch.rand(PUBLIC, 1, 4, 4, generator=torch.Generator().manual_seed(8))


def parts() -> dict[str, Shard]:
    found = shards(SAMPLES, (1, 4, 4), CLASSES)
    return {name: shard._replace(public=public()) for name, shard in found.items()}


class Played(SimpleNamespace):
    server: fedmd.Server
    clients: dict[str, fedmd.Client]
    network: Network


def played(options: fedmd.Config, rounds: int = 1, network: Network | None = None) -> Played:
    start = model()
    nothing = shards({"server": 0}, (1, 4, 4), 1)["server"]._replace(public=public(), client=0)
    server = fedmd.Server(options, start, nothing, SEED)
    clients = {
        name: fedmd.Client(options, copied(start), shard, 10 + shard.client)
        for name, shard in parts().items()
    }
    network = play(server, clients, SAMPLES, rounds, network)
    return Played(server=server, clients=clients, network=network)


# Models of their own


def test_client_k_has_the_first_blocks_of_the_backbone_and_a_classifier() -> None:
    start = model()
    for name, shard in parts().items():
        client = fedmd.Client(config(depths="1,3,2"), copied(start), shard, 0)
        depth = [1, 3, 2][int(name[-1]) % 3]
        shallow = VisionTransformer(
            ModelSpec(side=4, patch=2, width=8, depth=depth, heads=2), CLASSES
        )
        own = dict(client.model.named_parameters())
        assert own.keys() == dict(shallow.named_parameters()).keys()
        shallow.load_state_dict(own)
        assert torch.equal(predict(client.model, public()), predict(shallow, public()))
        assert all(parameter.requires_grad for parameter in own.values())


def test_all_of_a_clients_model_is_trained_and_nothing_beyond_it() -> None:
    start, shard = model(), parts()["client-2"]
    whole = copied(start)
    client = fedmd.Client(config(depths="1"), whole, shard, 0)
    client.round(Told(1, SEED))
    after = dict(whole.named_parameters())
    for name, before in start.named_parameters():
        kept = name.startswith(("blocks.1.", "blocks.2."))
        # Softmax does not show what is added to every key.
        if not name.endswith("key.bias"):
            assert torch.equal(before, after[name]) == kept, name


def test_models_of_different_depths_take_part_in_one_round() -> None:
    found = played(config())
    sizes = {name: count_parameters(c.model) for name, c in found.clients.items()}
    assert sizes["client-1"] != sizes["client-2"] == sizes["client-4"]
    sent = {m.sender: m.tensors["logits"] for m in found.network.of("up", "logits")}
    assert sent.keys() == SAMPLES.keys()
    subset = found.server.public.subset(SEED, 1)
    for name, logits in sent.items():
        assert torch.equal(logits, predict(found.clients[name].model, subset))
    assert found.server.consensus is not None
    # Plain, whatever the samples.
    expected = torch.stack(list(sent.values())).double().mean(dim=0).float()
    torch.testing.assert_close(found.server.consensus.logits, expected)


def test_the_server_has_no_model() -> None:
    found = played(config())
    assert found.server.model is None and count_parameters(None) == {}
    assert found.server.evaluate(public(), torch.zeros(PUBLIC, dtype=torch.int64)) == {}
    client, labels = found.clients["client-1"], torch.zeros(PUBLIC, dtype=torch.int64)
    assert client.evaluate(public(), labels) == scores(client.model, public(), labels)


# A round


@pytest.mark.parametrize(
    ("rounds", "epochs"),
    [
        ([Told(1, SEED)], [5]),
        ([Told(1, SEED), Told(2, SEED, 1, torch.zeros(BATCH, CLASSES))], [5, 3]),
    ],
)
def test_a_client_first_trains_alone_and_revisits_what_it_digested(
    rounds: list[Told], epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    monkeypatch.setattr(fedmd, "train", lambda *_, epochs, **__: done.append(epochs))
    options = config(first_epochs=5, local_epochs=3)
    client = fedmd.Client(options, model(), parts()["client-1"], 0)
    for told in rounds:
        client.round(told)
    assert done == epochs


def test_a_client_that_joins_late_trains_alone_before_it_digests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(fedmd, "train", lambda *_, epochs, **__: done.append(f"train {epochs}"))
    monkeypatch.setattr(fedmd, "digest", lambda *_, **__: done.append("digest"))
    options = config(first_epochs=5, local_epochs=3)
    client = fedmd.Client(options, model(), parts()["client-1"], 0)
    client.round(Told(4, SEED, 3, torch.zeros(BATCH, CLASSES)))
    assert done == ["train 5", "digest", "train 3"]


@pytest.mark.thorough
def test_digesting_brings_scores_to_the_consensus() -> None:
    options = config(learning_rate=1e-12, digest_epochs=100, digest_learning_rate=3e-3)
    client = fedmd.Client(options, model(), parts()["client-2"], 0)
    subset = client.public.subset(SEED, 1)
    consensus = 2 * F.one_hot(torch.arange(BATCH) % 2, CLASSES).float()

    def distance() -> float:
        return (predict(client.model, subset) - consensus).abs().mean().item()

    before = distance()
    client.round(Told(2, SEED, 1, consensus))
    # Scores, and not only their softmax: the distance is of the sizes too.
    assert distance() < before / 4


def test_a_digest_is_a_step_of_mean_absolute_error() -> None:
    options = config(digest_batch_size=BATCH, learning_rate=1e-12, first_epochs=1)
    consensus = torch.linspace(-2, 2, BATCH * CLASSES).view(BATCH, CLASSES)
    client = fedmd.Client(options, model(), parts()["client-2"], 0)
    client.is_new = False
    start = copy.deepcopy(client.model)
    client.round(Told(2, SEED, 1, consensus))
    difference = start(client.public.subset(SEED, 1)) - consensus
    difference.abs().mean().backward()
    # Adam's first step is its rate, whatever the gradient's size.
    for (name, before), after in zip(
        start.named_parameters(), client.model.parameters(), strict=True
    ):
        if before.grad is None or name.endswith("key.bias"):
            continue
        clear = before.grad.abs() > 1e-6
        step = (after - before)[clear]
        torch.testing.assert_close(step, -1e-3 * before.grad.sign()[clear], rtol=0.05, atol=1e-6)


# What travels


@pytest.mark.parametrize("depths", ["1", "1,2,3"])
def test_bytes_are_the_formulas_whatever_the_models(depths: str) -> None:
    options, rounds, clients = config(depths=depths), 3, len(SAMPLES)
    found = played(options, rounds)
    assert found.network.payload() == {
        "up": {"logits": rounds * clients * BYTES},
        "down": {"logits": clients * ((rounds - 1) * BYTES + 8)},
    }
    assert fedmd.traffic(options, model()) == (BYTES, BYTES)


def test_a_client_that_is_gone_is_left_out_and_without_any_the_consensus_stays() -> None:
    gone = Network(dies_after={"client-1": 0, "client-2": 1, "client-3": 1, "client-4": 1})
    found = played(config(), rounds=2, network=gone)
    sent = [message.tensors["logits"] for message in found.network.of("up", "logits")]
    assert len(sent) == 3
    consensus = found.server.consensus
    assert consensus is not None and consensus.round == 1
    torch.testing.assert_close(consensus.logits, torch.stack(sent).mean(dim=0))


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_models() -> None:
    one, other = played(config(), rounds=2), played(config(), rounds=2)
    for name, client in one.clients.items():
        again = other.clients[name].model.state_dict()
        for key, value in client.model.state_dict().items():
            assert torch.equal(value, again[key]), (name, key)


# Options


@pytest.mark.parametrize("depths", ["", "2,", "a", "0", "2,0,4", "-1", "2;3"])
def test_depths_that_are_none_are_refused(depths: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert({"depths": depths}, fedmd.Config, "options of method fedmd")
    assert f"depths = {depths!r}: must be numbers of blocks, at least 1" in str(caught.value)


def test_one_depth_may_be_a_number() -> None:
    assert fedmd.depths_of(convert({"depths": 3}, fedmd.Config, "")) == [3]
    assert fedmd.depths_of(convert({"depths": "2, 4"}, fedmd.Config, "")) == [2, 4]


def test_all_is_every_block_for_every_client() -> None:
    start = model()
    for shard in parts().values():
        client = fedmd.Client(config(depths="all"), copied(start), shard, 0)
        assert torch.equal(predict(client.model, public()), predict(start, public()))
    fedmd.check(config(depths="all"), start)


def test_the_options_of_public_images_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="public_batch = 500: must be at most"):
        convert({"public_batch": 500}, fedmd.Config, "options of method fedmd")


def test_depths_outside_the_model_are_refused_before_anything_starts() -> None:
    FineTuning(RunConfig(method="fedmd", options={"depths": "1,4"}), clients=2)
    with pytest.raises(ConfigError, match="depths = 2,5: the model has 4 blocks"):
        FineTuning(RunConfig(method="fedmd", options={"depths": "2,5"}), clients=2)
