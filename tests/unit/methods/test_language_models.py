"""Every method on a tiny language model: bytes by formula, real and modelled, or its refusal."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import few
import msgspec
import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play
from made_text import LENGTH, SAMPLES, SPEC, language_model, nobody, text_shards
from torch import Tensor

import methods
from methods import sfprompt
from methods.distillation.mutual import View, with_attention_maps
from methods.distillation.mutual import loss as mutual_loss
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from methods.shared.local_training import trainable_state
from methods.shared.objective import IGNORED
from nodes.compute import Modelled, noise

V, D, H, DEPTH, T = SPEC.vocabulary, SPEC.width, SPEC.mlp_width, SPEC.depth, LENGTH
N = sum(SAMPLES.values())
BLOCK = 4 * D * D + 3 * D * H + 2 * D
ALL = V * D + DEPTH * BLOCK + D
"""Parameters; with a classifier of its own V * D more."""
CLIENTS, ROUNDS = len(SAMPLES), 2
EACH = CLIENTS * ROUNDS
"""Times that a client takes part."""
FAST = 1e18


def lora(rank: int) -> int:
    """Bytes of adapters on query and value of each block."""
    return 4 * DEPTH * 2 * rank * (D + D)


class Case(NamedTuple):
    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    up: int | None = None
    """Payload bytes of all clients in both rounds; None: what the other device's is."""
    down: int | None = None
    spec: Mapping[str, Any] = MappingProxyType({})
    """Of the model, where it is another."""


def same(name: str, options: dict[str, Any], bytes_each: int, **spec: Any) -> Case:
    """A client sends and receives as much in each round."""
    return Case(name, options, EACH * bytes_each, EACH * bytes_each, spec)


def logits(count: int, top_k: int = 0) -> int:
    """Bytes of predictions on so many texts, the seed with them."""
    each = 4 * top_k + 4 + top_k if top_k else 4 * V
    return count * T * each + 8


def rows(samples: int, batch: int) -> list[int]:
    """Sizes of batches."""
    return [min(batch, samples - first) for first in range(0, samples, batch)]


def fedkd_update(rank: int, blocks: int) -> int:
    shapes = [(D, D)] * 4 + [(H, D)] * 2 + [(D, H)]
    cut = sum(rank * (p + q + 1) for p, q in shapes)
    return 4 * (blocks * (cut + 2 * D) + D)


HEAD_PART = V * D + BLOCK
"""The embedding and a block."""
TAIL = D + V * D
"""The last norm and the classifier."""
KEPT = 3
"""Hidden units of a block that pruning leaves."""


def pruned(kept: int) -> int:
    return V * D + DEPTH * (4 * D * D + 2 * D + 3 * D * kept) + D


def packed(weights: int, clusters: int) -> int:
    return math.ceil(weights * (clusters - 1).bit_length() / 8)


def clustered(clusters: int) -> int:
    """Each matrix, the tied one too, in codes, and what is none as it is."""
    sizes = [V * D] + DEPTH * ([D * D] * 4 + [D * H] * 3)
    codes = sum(packed(size, clusters) + 4 * clusters for size in sizes)
    return codes + 4 * (DEPTH * 2 * D + D)


MASKED = DEPTH * (4 * D * D + 3 * D * H)
"""Weights of linear layers that are no embedding."""
MASK = DEPTH * (4 * D * D + 3 * D * H) // 8
SALIENT = 4 * (int(0.3 * MASKED) + V * D + DEPTH * 2 * D + D)
QUANTISED = 4 * 8 * 8
"""Bytes of a codebook of 8 centroids of 8 features."""
LITE = [QUANTISED + math.ceil(size * T * D // 8 * 3 / 8) for n in SAMPLES.values()
        for size in rows(n, 4)]  # fmt: skip
PROMPT = {"prompt_length": 3}
SPLIT = N * T * D * 4
"""Activations of all samples, one way."""
SMASHED = sum(math.ceil(n / 2) for n in SAMPLES.values()) * (T + 3) * D * 4

CASES = [
    same("fedavg", {"batch_size": 4}, 4 * ALL),
    same("fedavg", {"batch_size": 4}, 4 * (ALL + V * D), tied=False),
    same("fedavg", {"batch_size": 4, "local_steps": 2}, 4 * ALL),
    same("fedpeft", {"variant": "full"}, 4 * ALL),
    same("fedpeft", {"rank": 2}, lora(2)),
    same("fedpeft", {"variant": "ffalora", "rank": 2}, lora(2) // 2),
    same("fedpeft", {"variant": "adapter"}, 4 * (2 * D * 2 + 2 + D)),
    same("fedpeft", {"variant": "ia3"}, 4 * DEPTH * (2 * D + H)),
    same("fedpeft", {"variant": "prompt", **PROMPT}, 4 * DEPTH * 3 * D),
    same("fedpeft", {"variant": "head"}, 4 * V * D, tied=False),
    same("fedprox", {"rank": 2, "mu": 0.1}, lora(2)),
    same("fedavgm", {"rank": 2}, lora(2)),
    same("fedadam", {"variant": "full"}, 4 * ALL),
    same("fedbuff", {"rank": 2, "buffer_size": 3}, lora(2)),
    same("diloco", {"rank": 2, "local_steps": 3}, lora(2)),
    same("feddf", {"rank": 2, "public_samples": 8, "drop_worst": True}, lora(2)),
    Case(
        "flora",
        {"ranks": "4,2"},
        ROUNDS * (lora(4) + lora(2) + lora(4)),
        # The first round has no stack.
        CLIENTS * lora(4 + 2 + 4),
    ),
    Case("flexlora", {"ranks": "4,2"}, *[ROUNDS * (lora(4) + lora(2) + lora(4))] * 2),
    Case("hetlora", {"ranks": "4,2"}, *[ROUNDS * (lora(4) + lora(2) + lora(4))] * 2),
    Case("fedkseed", {"candidates": 64, "steps": 5}, EACH * 5 * 8, EACH * 64 * 4),
    *(
        Case(
            name,
            {"public_samples": 8, "public_batch": 4, "top_k": top_k, **options},
            EACH * logits(4, top_k),
            CLIENTS * (8 + logits(4, top_k)),
        )
        for name, options in (
            ("kdfft", {"rank": 2}),
            ("kdfft", {"rank": 2, "sharpen": True}),
            ("fedmd", {"depths": "1,2"}),
        )
        for top_k in (0, 5)
    ),
    Case(
        "fedkd",
        {"rank": 2, "attention_loss": False, "batch_size": 4},
        EACH * fedkd_update(2, 2),
        CLIENTS * fedkd_update(2, 2),
    ),
    Case(
        "fedkd",
        {"rank": 2, "student_blocks": 1},
        EACH * fedkd_update(2, 1),
        CLIENTS * fedkd_update(2, 1),
        {"kv_heads": None},
    ),
    Case(
        "split",
        {"batch_size": 4},
        EACH * 4 * HEAD_PART + ROUNDS * (SPLIT + 8 * T * N),
        EACH * 4 * HEAD_PART + ROUNDS * SPLIT,
    ),
    Case(
        "split",
        {"batch_size": 4, "labels": "private"},
        *[EACH * 4 * (HEAD_PART + TAIL) + ROUNDS * 2 * SPLIT] * 2,
    ),
    *(
        Case(
            "splitfed",
            {"batch_size": 4, "variant": variant},
            EACH * 4 * HEAD_PART + ROUNDS * (SPLIT + 8 * T * N),
            EACH * 4 * HEAD_PART + ROUNDS * SPLIT,
        )
        for variant in ("v1", "v2")
    ),
    Case(
        "fedlite",
        {"batch_size": 4, "centroids": 8},
        EACH * 4 * HEAD_PART + ROUNDS * (sum(LITE) + 8 * T * N),
        EACH * 4 * HEAD_PART + ROUNDS * SPLIT,
    ),
    Case(
        "sfprompt",
        {"batch_size": 4, **PROMPT},
        EACH * 4 * (3 * D + TAIL) + ROUNDS * 2 * SMASHED,
        EACH * 4 * (3 * D + TAIL) + ROUNDS * 2 * SMASHED + CLIENTS * 4 * HEAD_PART,
    ),
    Case(
        "fedcompress",
        {"adaptive": False, "public_samples": 8, "public_source": "held-out"},
        *[EACH * clustered(8)] * 2,
    ),
    Case(
        "fedpruning",
        {"schedule": "constant", "layers": "uniform", "sparsity": 0.875, "refine_rounds": 0},
        EACH * 4 * pruned(KEPT),
        # The mask once, unless the second one is another.
        None,
    ),
    Case("fedpruning", {"structures": "both"}),
    Case(
        "salientgrads",
        {"batch_size": 4},
        EACH * SALIENT + CLIENTS * 4 * MASKED,
        EACH * SALIENT + CLIENTS * MASK,
    ),
    Case("dispfl", {"batch_size": 4, "topology": "full"}),
    Case(
        "fedsp",
        {"prefix_length": 3, "align_steps": 2, "server_samples": 8},
        EACH * 4 * 3 * DEPTH * 2 * D,
        EACH * 4 * 3 * DEPTH * 2 * D + CLIENTS * 4 * (HEAD_PART + D),
    ),
]
REFUSED = [
    ("fedpeft", {"variant": "head"}, "its embedding too"),
    ("fedpeft", {"variant": "bias"}, "needs biases, and this model has none"),
    ("feddm", {}, "reads ids, which have none"),
    ("fedptr", {}, "reads ids, which have none"),
    ("sfprompt", {"transfer": "cls"}, "no class token"),
    ("fedcompress", {"adaptive": False}, "take public_source=held-out"),
    ("fedcompress", {"public_source": "held-out"}, "take representations=gram"),
    ("kdfft", {"rank": 2, "top_k": 40}, "top_k = 40: must be less than the 40 logits"),
    ("fedmd", {"depths": "1,2", "top_k": 41}, "top_k = 41: must be less than the 40 logits"),
    ("fedlite", {"subvectors": 3}, "subvectors = 3: must divide the 16"),
]


@pytest.fixture(scope="module")
def some_noise() -> Tensor:
    return noise(0)


class Played(NamedTuple):
    server: Any
    clients: dict[str, Any]
    network: Network
    before: Any


def played(case: Case, device: str = "cpu", rounds: int = ROUNDS, **compute: Any) -> Played:
    method = methods.load(case.name)
    config = few.config(case.name, case.options)
    method.check(config, language_model("meta", **case.spec))
    data = text_shards()
    own = nobody()
    if device == "meta":
        data = {
            name: each._replace(inputs=each.inputs.to("meta"), public=each.public.to("meta"))
            for name, each in data.items()
        }
        own = own._replace(inputs=own.inputs.to("meta"), public=own.public.to("meta"))

    made = language_model(device, **case.spec)
    torch.manual_seed(1)
    before = method.adapt(config, made)
    server = method.Server(config, copied(before), own, 0)
    clients = {
        name: method.Client(config, copied(before), shard, shard.client)
        for name, shard in data.items()
    }
    network = play(server, clients, SAMPLES, rounds, **compute)
    return Played(server, clients, network, before)


def named(case: Case) -> str:
    options = ",".join(f"{name}={value}" for name, value in case.options.items())
    return "-".join([case.name, options, *map(str, case.spec)])


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_method_plays_by_its_formula_with_values_and_without(
    case: Case, some_noise: Tensor
) -> None:
    real = played(case)
    assert not real.network.missed()
    sent = real.network.payload()
    for way, expected in (("up", case.up), ("down", case.down)):
        assert expected is None or sum(sent[way].values()) == expected, (way, sent)
    metrics = real.server.evaluate(*text_shards()["client-1"][:2])
    own = [each for each in real.clients.values() if hasattr(each, "evaluate")]
    for found in [metrics, *(each.evaluate(*text_shards()["client-1"][:2]) for each in own)]:
        assert all(math.isfinite(float(value)) for value in found.values()), found
        assert not found or 0 < found["loss"] < 10
    assert metrics or own
    modelled = played(case, "meta", compute=lambda: Modelled(FAST, some_noise))
    assert modelled.network.payload() == sent
    assert not modelled.network.missed()


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_client_has_at_least_the_bytes_and_operations_that_are_told(case: Case) -> None:
    method = methods.load(case.name)
    config = msgspec.convert(dict(case.options), method.Config)
    model = method.adapt(config, language_model(**case.spec))
    text = text_shards()["client-1"].inputs[:1]
    if method.traffic is not None:
        up, down = method.traffic(config, model)
        assert case.up is None or 0 <= CLIENTS * up <= case.up
        assert case.down is None or 0 <= CLIENTS * down <= case.down
    told: list[Callable[..., Any] | None] = [method.client_flops, method.fixed_flops]
    found = [each(config, model, text) for each in told if each is not None]
    counts = [max(each) if isinstance(each, list) else each for each in found]
    assert method.client_flops is None or sum(counts) > 0


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED)
def test_what_makes_no_sense_of_text_is_refused_before_anything_starts(
    name: str, options: dict[str, Any], reason: str
) -> None:
    method = methods.load(name)
    with pytest.raises(ValueError, match=reason):
        method.check(msgspec.convert(options, method.Config), language_model("meta"))


def test_every_method_plays_or_is_refused() -> None:
    known = {case.name for case in CASES} | {name for name, _, _ in REFUSED}
    assert set(methods.names()) == known


# Tied weights


def test_a_model_that_is_cut_trains_its_embedding_and_its_classifier_apart() -> None:
    for options in ({}, {"labels": "private"}):
        found = played(Case("split", {"batch_size": 4, "learning_rate": 0.01, **options}))
        before = language_model().embed.weight
        embedding, classifier = found.server.model.embed.weight, found.server.model.head.classifier
        assert torch.equal(found.before.head.classifier.weight, before)
        assert not torch.equal(embedding, before)
        assert not torch.equal(classifier.weight, before)
        assert not torch.equal(classifier.weight, embedding)


@pytest.mark.thorough
def test_averaging_keeps_weights_tied() -> None:
    for name in ("fedavg", "fedcompress", "salientgrads", "fedpruning"):
        case = next(case for case in CASES if case.name == name)
        model = played(case).server.model
        assert model.head.classifier.weight is model.embed.weight
        assert not torch.equal(model.embed.weight, language_model().embed.weight)


def test_what_a_variant_does_not_train_stays() -> None:
    found = played(Case("fedpeft", {"rank": 2, "learning_rate": 0.1}))
    start = dict(found.before.named_parameters())
    for name, each in found.server.model.named_parameters():
        assert torch.equal(each, start[name]) != each.requires_grad, name


# Losses and scores of sequences


def some_logits() -> tuple[Tensor, Tensor]:
    """Of three sequences, and targets of which not all count."""
    generator = torch.Generator().manual_seed(5)
    targets = text_shards()["client-1"].targets[:3]
    return torch.randn(3, T, V, generator=generator), targets


def probabilities(logits: Tensor) -> np.ndarray:
    found = np.exp(logits.double().numpy())
    return np.asarray(found / found.sum(axis=-1, keepdims=True))


def test_a_sequence_is_as_hard_as_the_tokens_that_count() -> None:
    logits, targets = some_logits()
    expected = [
        np.mean([np.linalg.norm(p - np.eye(V)[t]) for p, t in zip(own, truth, strict=True)
                 if t != IGNORED])
        for own, truth in zip(probabilities(logits), targets.tolist(), strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(sfprompt.el2n(logits, targets).numpy(), expected, rtol=1e-5)


def test_teacher_and_student_learn_of_one_another_where_targets_count() -> None:
    ours, targets = some_logits()
    theirs = 2 * ours.flip(dims=(0,))
    own, other = View(theirs, [], []), View(ours, [], [])
    p, q = probabilities(ours), probabilities(theirs)
    counts = (targets != IGNORED).numpy()
    ce = [-np.log(each[counts][np.arange(counts.sum()), targets.numpy()[counts]]).mean()
          for each in (p, q)]  # fmt: skip
    mutual = ((p - q) * (np.log(p) - np.log(q))).mean(axis=-1)[counts].mean()
    found = float(mutual_loss((own, other), targets, as_published=False))
    assert found == pytest.approx(sum(ce) + mutual / sum(ce), rel=1e-5)


def test_clusters_of_a_language_model_grow_by_the_features_of_its_tokens() -> None:
    options = {"representations": "gram", "public_source": "held-out", "public_samples": 8}
    found = played(Case("fedcompress", options))
    assert found.network.payload()["up"] == {
        "clustered": EACH * clustered(8),
        "representation": EACH * 4 * D * D,
    }
    metrics = found.server.evaluate(*text_shards()["client-1"][:2])
    assert 1 < metrics["score"] <= D and metrics["clusters"] == 8


# Attention maps


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_attention_maps_are_those_that_the_model_weighs_tokens_by(kv_heads: int | None) -> None:
    block = language_model(kv_heads=kv_heads).blocks[0]
    tokens = torch.randn(2, T, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        after, maps = with_attention_maps(block, tokens)
        assert torch.equal(after, block(tokens)) and maps.shape == (2, 2, T, T)
        assert torch.allclose(maps.sum(dim=-1), torch.ones(2, 2, T))
        attention, normed = block.attention, block.norm_attention(tokens)
        values = attention.value(normed).unflatten(-1, (-1, D // 2)).transpose(1, 2)
        mixed = maps @ values.expand(-1, 2, -1, -1)
        expected = attention.output(mixed.transpose(1, 2).flatten(2))
        assert torch.allclose(attention(normed), expected, atol=1e-6)


# Prompts


def test_prompts_of_a_cut_model_stand_before_its_tokens() -> None:
    found = played(Case("sfprompt", {"batch_size": 4, **PROMPT}), rounds=1)
    model, text = found.server.model, text_shards()["client-1"].inputs[:2]
    with torch.no_grad():
        tokens = torch.cat([model.embed.prompt.expand(2, -1, -1), model.embed.embed(text)], dim=1)
        for block in model.blocks:
            tokens = block(tokens)
        expected = model.head.classifier(model.head.norm(tokens[:, 3:]))
        logits = model(text)
        assert logits.shape == (2, T, V) and torch.allclose(logits, expected, atol=1e-6)
        later = text.clone()
        later[:, -1] = (later[:, -1] + 1) % V
        assert torch.allclose(model(later)[:, :-1], logits[:, :-1], atol=1e-6)
    assert not torch.equal(model.embed.prompt, found.before.embed.prompt)
    assert torch.equal(model.embed.embed.weight, found.before.embed.embed.weight)


def test_the_same_seed_gives_the_same_result() -> None:
    for case in (Case("sfprompt", {"batch_size": 4}), Case("kdfft", {"rank": 2, "top_k": 5,
                 "public_samples": 8, "public_batch": 4})):  # fmt: skip
        one, other = (trainable_state(played(case).server.model) for _ in range(2))
        assert all(torch.equal(each, other[name]) for name, each in one.items())


# Stages


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("case", "up", "down"),
    [
        (Case("fedavg"), "powersgd:rank=2", "int8"),
        (Case("fedpeft", {"variant": "full"}), "topk:k=0.1", "bf16"),
        (Case("split", {"batch_size": 4}), "int8", "int8"),
        (Case("sfprompt", {"batch_size": 4}), "fp16", "fp16"),
        (Case("kdfft", {"rank": 2, "public_samples": 8, "public_batch": 4}), "int8", "int8"),
        (
            Case("kdfft", {"rank": 2, "public_samples": 8, "public_batch": 4, "top_k": 5}),
            "fp16",
            "fp16",
        ),
    ],
    ids=str,
)
def test_what_a_method_sends_of_text_goes_through_stages(case: Case, up: str, down: str) -> None:
    coders = {name: Coder(Chain([up]), Chain([down]), 7) for name in ("server", *SAMPLES)}
    plain, staged = played(case).network, played(case, coders=coders).network
    assert not staged.missed()
    for way in ("up", "down"):
        less = sum(staged.payload()[way].values())
        assert 0 < less < sum(plain.payload()[way].values())
