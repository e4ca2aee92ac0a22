"""Images as if there were no text: what serves both gives what image-only code does, bit by bit.

Both are computed in this process, since another processor's last bits are others.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import few
import msgspec
import pytest
import torch
from in_process import Network, play, shards
from torch import Tensor, nn
from torch.nn import functional as F

import methods
from methods import Shard, salientgrads, sfprompt
from methods.shared import objective
from nodes.workload.models import ModelSpec, VisionTransformer

SPEC = ModelSpec(side=8, patch=4, width=8, depth=3, heads=2)
CLASSES, SHAPE = 3, (1, 8, 8)
COUNTS = {"client-1": 5, "client-2": 9}
ROUNDS = 2
OF_TEXT = {"fedsp"}

# Image-only forms, as they were before there was text


def plain_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(logits, labels, reduction=reduction)


def plain_scores(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    model.eval()
    right, total = 0, 0.0
    with torch.inference_mode():
        for some, truth in zip(images.split(256), labels.split(256), strict=True):
            logits = model(some)
            right += int((logits.argmax(dim=1) == truth).sum())
            total += float(F.cross_entropy(logits, truth, reduction="sum"))
    return {"accuracy": right / len(labels), "loss": total / len(labels)}


def plain_el2n(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)


PLAIN: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {
        objective.loss: plain_loss,
        objective.scores: plain_scores,
        objective.precise: lambda tensor: tensor,
        sfprompt.el2n: plain_el2n,
        salientgrads.as_published: lambda logits, labels: F.nll_loss(logits, labels),
    }
)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def data(counts: Mapping[str, int], public: int) -> dict[str, Shard]:
    generator = torch.Generator().manual_seed(2)
    common = torch.rand(public, *SHAPE, generator=generator)
    found = {n: s._replace(public=common) for n, s in shards(counts, SHAPE, CLASSES).items()}
    none = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), common, 0)
    return {"server": none, **found}


def backbone() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


class Played:
    """Rounds of a method on images, and what its nodes say of their models then."""

    def __init__(
        self, name: str, options: Mapping[str, Any], counts: Mapping[str, int] = COUNTS
    ) -> None:
        method = methods.load(name)
        config = msgspec.convert(dict(options), method.Config)
        made = {}
        self.parts = data(counts, method.public_samples(config))
        for number, (node, shard) in enumerate(self.parts.items()):
            kind = method.Server if node == "server" else method.Client
            model = method.adapt(config, backbone())
            torch.manual_seed(number)
            made[node] = kind(config, model, shard, number)
        self.server = made.pop("server")
        self.network: Network = play(self.server, made, counts, rounds=ROUNDS)
        seen = self.parts["client-1"]
        self.told = [
            node.evaluate(seen.inputs, seen.targets)
            for node in (self.server, *made.values())
            if hasattr(node, "evaluate")
        ]

    def sent(self) -> list[tuple[str, str, str, dict[str, bytes]]]:
        """Of each client by itself: whose message comes first is for threads to say."""
        found = [
            (way, client, message.kind, {n: bits(each) for n, each in message.tensors.items()})
            for way, client, message in self.network.log
        ]
        return sorted(found, key=lambda each: each[:2])


# The loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (5, 3), (16, 10), (64, 100), (257, 1000)])
def test_the_loss_and_its_gradient_are_torchs_of_images(
    batch: int, classes: int, reduction: str
) -> None:
    generator = torch.Generator().manual_seed(batch)
    logits = 5 * torch.randn(batch, classes, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    found = []
    for each in (objective.loss, plain_loss):
        own = logits.clone().requires_grad_()
        value = each(own, labels, reduction)
        value.backward()
        assert own.grad is not None
        found.append((bits(value), bits(own.grad)))
    assert found[0] == found[1]


# Every method


ONE = {"client-1": 9}
"""A client alone, so that no order of arrivals shows."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {"batch_size": 4}),
    ("fedavg", {"batch_size": 4, "dp": "client", "dp_noise": 0.1}),
    ("fedavg", {"batch_size": 4, "dp": "sample", "dp_noise": 0.1}),
    *(("fedpeft", {"variant": each}) for each in ("full", "head", "bias", "adapter", "prompt")),
    *(("fedpeft", {"variant": each}) for each in ("lora", "ffalora", "ia3")),
    ("fedprox", {"rank": 2}),
    ("fedavgm", {"rank": 2}),
    ("fedadam", {"rank": 2}),
    ("fedbuff", {"buffer_size": 1}),
    ("diloco", {"rank": 2, "local_steps": 3}),
    ("feddf", {"rank": 2, "public_samples": 8}),
    ("feddm", {"iterations": 3, "server_epochs": 2}),
    ("fedptr", {"rank": 2, "match_steps": 3}),
    ("flora", {"ranks": "4"}),
    ("flexlora", {"ranks": "4"}),
    ("hetlora", {"ranks": "4"}),
    ("kdfft", {"public_samples": 8, "public_batch": 4, "rank": 2}),
    ("fedmd", {"public_samples": 8, "public_batch": 4, "depths": "2"}),
    ("fedkd", {"rank": 2, "batch_size": 4}),
    *(("split", {"labels": each, "batch_size": 4}) for each in ("shared", "private")),
    *(("splitfed", {"variant": each, "batch_size": 4}) for each in ("v1", "v2")),
    ("fedlite", {"batch_size": 4, "centroids": 3}),
    ("sfprompt", {"batch_size": 2, "gamma": 0.5}),
    ("fedcompress", {"adaptive": False, "public_samples": 8}),
    ("fedpruning", {}),
    ("fedkseed", {"candidates": 64, "steps": 5}),
    *(("salientgrads", {"saliency_loss": each}) for each in ("cross_entropy", "as_published")),
    ("dispfl", {"topology": "full"}),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_method_of_both_is_as_one_of_images_alone(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = COUNTS if name == "dispfl" else ONE
    options = few.options(name, options)
    found = Played(name, options, counts)
    replaced = 0
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] == "methods":
            for attribute, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__hash__", None) and value in PLAIN:
                    monkeypatch.setattr(module, attribute, PLAIN[value])
                    replaced += 1
    assert replaced > len(PLAIN)
    plain = Played(name, options, counts)
    assert found.sent() == plain.sent() != []
    assert found.told == plain.told
    assert not found.network.missed()


def test_every_method_of_images_is_among_them() -> None:
    assert {name for name, _ in CASES} == set(methods.names()) - OF_TEXT


# Against a loop in torch alone


def forward(p: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The same vision transformer by torch's functions, with adapters or without."""

    def linear(path: str, features: Tensor) -> Tensor:
        if f"{path}.lora_A" not in p:
            return F.linear(features, p[f"{path}.weight"], p[f"{path}.bias"])
        result = F.linear(features, p[f"{path}.layer.weight"], p[f"{path}.layer.bias"])
        return result + F.linear(F.linear(features, p[f"{path}.lora_A"]), p[f"{path}.lora_B"])

    def norm(path: str, features: Tensor) -> Tensor:
        return F.layer_norm(features, (SPEC.width,), p[f"{path}.weight"], p[f"{path}.bias"], 1e-5)

    patches = F.conv2d(images, p["embed.patches.weight"], p["embed.patches.bias"], SPEC.patch)
    first = p["embed.class_token"].expand(len(images), -1, -1)
    tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + p["embed.positions"]
    for block in (f"blocks.{number}" for number in range(SPEC.depth)):
        normed = norm(f"{block}.norm_attention", tokens)
        query, key, value = (
            linear(f"{block}.attention.{part}", normed).unflatten(-1, (2, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + linear(f"{block}.attention.output", mixed)
        hidden = F.gelu(linear(f"{block}.expand", norm(f"{block}.norm_mlp", tokens)))
        tokens = tokens + linear(f"{block}.contract", hidden)
    return linear("head.classifier", norm("head.norm", tokens[:, 0]))


def averaged(
    model: nn.Module, parts: Mapping[str, Shard], *, rate: float, batch: int
) -> dict[str, Tensor]:
    """FedAvg's rounds over the parameters that are to be trained; all parameters after them."""
    whole = {name: each.detach().clone() for name, each in model.named_parameters()}
    wanted = [name for name, each in model.named_parameters() if each.requires_grad]
    draws = {part.client: torch.Generator().manual_seed(part.client) for part in parts.values()}
    for _ in range(ROUNDS):
        sums = {name: torch.zeros_like(whole[name], dtype=torch.float64) for name in wanted}
        for part in parts.values():
            own = whole | {name: whole[name].clone().requires_grad_() for name in wanted}
            optimizer = torch.optim.AdamW([own[name] for name in wanted], rate, weight_decay=1e-4)
            for _ in range(2):
                order = torch.randperm(len(part.targets), generator=draws[part.client])
                for chosen in order.split(batch):
                    optimizer.zero_grad()
                    logits = forward(own, part.inputs[chosen])
                    F.cross_entropy(logits, part.targets[chosen]).backward()
                    optimizer.step()
            for name in wanted:
                sums[name] += len(part.targets) * own[name].detach().double()
        total = sum(len(part.targets) for part in parts.values())
        whole |= {name: (each / total).float() for name, each in sums.items()}
    return whole


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "options", "rate"),
    [
        ("fedavg", {"batch_size": 4}, 1e-3),
        ("fedpeft", {"variant": "full", "batch_size": 4}, 1e-3),
        ("fedpeft", {"variant": "lora", "rank": 2, "lora_alpha": 2.0, "batch_size": 4}, 1e-2),
        ("fedpeft", {"variant": "head", "batch_size": 4}, 1e-2),
    ],
    ids=str,
)
def test_averaging_is_a_loop_in_torch_alone(
    name: str, options: dict[str, Any], rate: float
) -> None:
    found = Played(name, {**options, "learning_rate": rate})
    config = msgspec.convert(options, methods.load(name).Config)
    model = methods.load(name).adapt(config, backbone())
    parts = {node: part for node, part in found.parts.items() if node != "server"}
    expected = averaged(model, parts, rate=rate, batch=4)
    state = dict(found.server.model.named_parameters())
    assert state.keys() == expected.keys()
    assert [each for each in state if bits(state[each]) != bits(expected[each])] == []
    moved = dict(model.named_parameters())
    assert any(bits(moved[each]) != bits(expected[each]) for each in expected)
    seen = parts["client-1"]
    logits = forward(expected, seen.inputs)
    assert found.told[0] == {
        "accuracy": int((logits.argmax(dim=1) == seen.targets).sum()) / len(seen.targets),
        "loss": float(F.cross_entropy(logits, seen.targets, reduction="sum")) / len(seen.targets),
    }
