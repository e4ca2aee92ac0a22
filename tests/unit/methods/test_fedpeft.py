"""FedPEFT's rounds: what travels, what is averaged, that it learns, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from in_process import Network, play, shards
from torch import nn

from methods import fedpeft, peft
from methods.shared.local_training import trainable_state
from nodes.program import FineTuning
from nodes.workload import models
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=16, depth=2, heads=2)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
VARIANTS = peft.names()
KINDS = {
    "full": "model",
    "head": "head",
    "bias": "bias",
    "adapter": "adapter",
    "prompt": "prompt",
    "lora": "adapter",
    "ffalora": "adapter",
    "ia3": "adapter",
}


class Played:
    """A round of a variant, and what there was before it."""

    def __init__(self, variant: str) -> None:
        self.config = fedpeft.Config(variant=variant, batch_size=4)  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.before = fedpeft.adapt(self.config, VisionTransformer(SPEC, CLASSES))
        self.parts = shards(SAMPLES, (1, 4, 4), CLASSES)
        nothing = self.parts["client-1"]
        self.server = fedpeft.Server(self.config, copy.deepcopy(self.before), nothing, 0)
        self.network: Network = play(
            self.server,
            {
                name: fedpeft.Client(self.config, copy.deepcopy(self.before), shard, number)
                for number, (name, shard) in enumerate(self.parts.items())
            },
            SAMPLES,
        )

    def loss(self, model: nn.Module) -> float:
        """Over all the clients' samples."""
        server = fedpeft.Server(self.config, model, self.parts["client-1"], 0)
        images = torch.cat([part.inputs for part in self.parts.values()])
        labels = torch.cat([part.targets for part in self.parts.values()])
        return server.evaluate(images, labels)["loss"]


@pytest.fixture(scope="module", params=VARIANTS)
def played(request: pytest.FixtureRequest) -> Played:
    return Played(request.param)


def test_each_trainable_parameter_travels_once_each_way(played: Played) -> None:
    trainable = trainable_state(played.before)
    total = 4 * sum(each.numel() for each in trainable.values())
    kind = KINDS[played.config.variant]
    assert played.network.payload() == {"up": {kind: 3 * total}, "down": {kind: 3 * total}}
    for message in (*played.network.of("up"), *played.network.of("down")):
        assert message.payload_bytes == total
        assert message.tensors.keys() == trainable.keys()
    assert fedpeft.traffic(played.config, played.before) == (total, total)


def test_the_new_weights_are_the_mean_by_samples(played: Played) -> None:
    updates = played.network.of("up")
    found = trainable_state(played.server.model)
    for name, tensor in found.items():
        expected = np.average(
            [update.tensors[name].double().numpy() for update in updates],
            axis=0,
            weights=[SAMPLES[update.sender] for update in updates],
        )
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_what_is_trained_moves_and_the_rest_stays(played: Played) -> None:
    after = dict(played.server.model.named_parameters())
    for name, before in played.before.named_parameters():
        # A key's bias gets no gradient but rounding.
        assert name.endswith("key.bias") or torch.equal(before, after[name]) != before.requires_grad


def test_a_round_makes_the_loss_smaller(played: Played) -> None:
    assert played.loss(played.server.model) < played.loss(played.before) - 0.01


# Options


PAPER = {"full": 1e-3, "head": 5e-3, "bias": 1e-2, "adapter": 5e-3, "prompt": 1e-2}


@pytest.mark.parametrize(("variant", "rate"), PAPER.items())
def test_with_sgd_the_learning_rate_is_the_papers(variant: str, rate: float) -> None:
    found = fedpeft.Config(variant=variant, optimizer="sgd").learning_rate  # type: ignore[arg-type]
    assert found == rate


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_a_rate_for_each_optimizer_and_what_is_given_wins(variant: str) -> None:
    for optimizer in ("adamw", "sgd"):
        chosen = {"variant": variant, "optimizer": optimizer}
        own = fedpeft.Config(**chosen).learning_rate  # type: ignore[arg-type]
        assert own == peft.load(variant).LEARNING_RATE[optimizer] and 0 < own < 1
        given = fedpeft.Config(**chosen, learning_rate=0.7)  # type: ignore[arg-type]
        assert given.learning_rate == 0.7


def test_the_default_is_lora_with_its_rate() -> None:
    config = fedpeft.Config()
    assert (config.variant, config.rank, config.lora_alpha) == ("lora", 8, 8.0)
    assert (config.optimizer, config.learning_rate) == ("adamw", 1e-2)


def test_the_record_names_the_rate_and_reads_back_the_same() -> None:
    options = FineTuning(RunConfig(options={"variant": "head"}), 2).options
    assert options["learning_rate"] == peft.load("head").LEARNING_RATE["adamw"]
    assert None not in options.values()
    assert FineTuning(RunConfig(options=options), 2).options == options  # type: ignore[arg-type]


# Refusals


def refusal(config: RunConfig, clients: int = 2) -> str:
    with pytest.raises(ConfigError) as caught:
        FineTuning(config, clients)
    return str(caught.value)


def test_an_unknown_variant_is_told_the_known_ones() -> None:
    text = refusal(RunConfig(options={"variant": "lorra"}))
    assert text == (
        "options of method fedpeft: variant = 'lorra': must be one of full, head, bias, adapter, "
        "prompt, lora, ffalora, ia3"
    )


@pytest.mark.parametrize(
    ("option", "value"), [("prompt_length", 0), ("adapter_width", 0), ("adapter_width", 1.5)]
)
def test_an_option_out_of_range_is_refused(option: str, value: float) -> None:
    assert f"{option} = {value}: Expected" in refusal(RunConfig(options={option: value}))


def test_a_model_without_what_the_variant_needs_is_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_queries(name: str, classes: int) -> nn.Module:
        model = VisionTransformer(SPEC, classes)
        for block in model.blocks:
            block.attention = nn.Identity()
        return model

    monkeypatch.setattr(models, "skeleton", without_queries)
    assert refusal(RunConfig()) == (
        "method fedpeft cannot train model vit-glyphs: variant lora needs query and value, which "
        "this model lacks: take another model, or another variant"
    )
    FineTuning(RunConfig(options={"variant": "prompt"}), 2)
