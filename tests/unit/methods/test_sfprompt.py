"""SFPrompt: each phase against its definition, and the wire against the paper's formula."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import nn
from torch.nn import functional as F

from methods import Shard, sfprompt
from methods.shared.local_training import trainable_state
from methods.split_model.exchange import batches, sizes
from nodes.program import FineTuning
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.run.config import RunConfig

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=3, heads=2)
PROMPTS = 2
TOKENS, WIDTH = SPEC.tokens + PROMPTS, SPEC.width
SAMPLES = {"client-1": 5, "client-2": 9, "client-3": 3}
CUTS = [(head, tail) for head in range(3) for tail in range(3 - head)]


def config(head: int = 1, tail: int = 0, **more: Any) -> sfprompt.Config:
    options = {"prompt_length": PROMPTS, "batch_size": 4, "learning_rate": 0.02, **more}
    return sfprompt.Config(head_blocks=head, tail_blocks=tail, **options)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def adapted(options: sfprompt.Config) -> nn.Module:
    return sfprompt.adapt(options, plain())


def parts(*names: str) -> dict[str, Shard]:
    return {n: shard for n, shard in shards(SAMPLES, (1, 4, 4), CLASSES).items() if n in names}


def played(
    options: sfprompt.Config,
    data: dict[str, Shard],
    network: Network | None = None,
    rounds: int = 1,
) -> tuple[nn.Module, Network]:
    """The model after some rounds, and what was sent."""
    server = sfprompt.Server(options, adapted(options), data["client-1"], 0)
    clients = {
        name: sfprompt.Client(options, adapted(options), shard, 10 + shard.client)
        for name, shard in data.items()
    }
    network = play(server, clients, {n: len(d.targets) for n, d in data.items()}, rounds, network)
    return server.model, network


def one_client(options: sfprompt.Config) -> sfprompt.Client:
    return sfprompt.Client(options, adapted(options), parts("client-2")["client-2"], 0)


# The split pass


@pytest.mark.parametrize(
    ("transfer", "head", "tail"),
    [("tokens", *cut) for cut in CUTS] + [("cls", *cut) for cut in CUTS if cut[1] == 0],
)
def test_any_cut_trains_as_the_whole(transfer: str, head: int, tail: int) -> None:
    options = config(head, tail, transfer=transfer, gamma=1.0, local_epochs=0, split_epochs=2)
    data = parts("client-1")
    found, _ = played(options, data, rounds=2)
    whole = adapted(options)
    generator = torch.Generator().manual_seed(11)
    for _ in range(2):
        optimizer = torch.optim.Adam([p for p in whole.parameters() if p.requires_grad], 0.02)
        for images, labels in batches(data["client-1"], 2, 4, generator):
            optimizer.zero_grad()
            F.cross_entropy(whole(images), labels).backward()
            optimizer.step()
    after, right = trainable_state(found), trainable_state(whole)
    torch.testing.assert_close(after, right, rtol=1e-5, atol=1e-5)
    first = trainable_state(adapted(options))
    assert all(not torch.equal(after[name], first[name]) for name in first)


@pytest.mark.parametrize("transfer", ["tokens", "cls"])
@pytest.mark.parametrize("head", [0, 1, 2])
def test_gradients_of_prompts_over_the_wire_are_autograds(head: int, transfer: str) -> None:
    options = config(head, 0, transfer=transfer, gamma=1.0, local_epochs=0, batch_size=100)
    data = parts("client-2")
    client = one_client(options)
    server = sfprompt.Server(options, adapted(options), data["client-2"], 0)
    play(server, {"client-2": client}, SAMPLES)
    whole = adapted(options)
    F.cross_entropy(whole(data["client-2"].inputs), data["client-2"].targets).backward()
    for part in client.parts.trained.values():
        for name, parameter in part.named_parameters():
            expected = dict(whole.named_parameters())[name].grad
            if expected is not None:
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-7)
    assert float(whole.embed.prompt.grad.abs().max()) > 1e-6


def test_a_round_is_the_mean_of_what_was_learnt_by_samples() -> None:
    found, network = played(config(), parts(*SAMPLES))
    for name, tensor in trainable_state(found).items():
        ups = [message for message in network.of("up") if name in message.tensors]
        expected = np.average(
            [message.tensors[name].numpy() for message in ups],
            axis=0,
            weights=[SAMPLES[message.sender] for message in ups],
        )
        assert len(ups) == 3
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_the_same_seed_gives_the_same_result_whoever_comes_first() -> None:
    results = []
    for first, then in (("client-1", "client-2"), ("client-2", "client-1")):
        found, _ = played(config(), parts(*SAMPLES), Network(waits_for={then: first}), rounds=2)
        results.append(trainable_state(found))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("sent", [0, 1, 2, 3])
def test_a_client_that_dies_leaves_the_mean_to_the_others(sent: int) -> None:
    network = Network(dies_after={"client-2": sent})
    found, _ = played(config(), parts(*SAMPLES), network)
    assert network.missed() == {("client-2", "killed")}
    expected, _ = played(config(), parts("client-1", "client-3"))
    right = trainable_state(expected)
    assert all(torch.equal(t, right[name]) for name, t in trainable_state(found).items())


def test_head_and_body_stay_as_they_were() -> None:
    options = config(1, 1)
    found, _ = played(options, parts(*SAMPLES))
    before = dict(adapted(options).named_parameters())
    for name, parameter in found.named_parameters():
        trained = name == "embed.prompt" or name.startswith(("blocks.2.", "head."))
        assert parameter.requires_grad == trained
        assert torch.equal(parameter, before[name]) != trained, name


# The self-update


def local_path(whole: nn.Module, head: int, tail: int, pool: str, images: torch.Tensor) -> Any:
    """Embedding and prompts, the head's blocks, the tail's, the classifier."""
    prompts = whole.embed.prompt.expand(len(images), -1, -1)
    tokens = torch.cat([whole.embed.embed(images), prompts], dim=1)
    for block in whole.blocks[:head]:
        tokens = block(tokens)
    if pool == "mean":
        tokens = torch.cat([tokens.mean(dim=1)[:, None], tokens[:, 1:]], dim=1)
    for block in whole.blocks[len(whole.blocks) - tail :]:
        tokens = block(tokens)
    return whole.head(tokens)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("head", "tail"), CUTS)
def test_the_self_update_against_torchs_own_steps(head: int, tail: int, pool: str) -> None:
    options = config(head, tail, pool=pool, local_epochs=2, local_learning_rate=0.01)
    client = one_client(options)
    client._update_by_itself()
    whole = adapted(options)
    optimizer = torch.optim.Adam([p for p in whole.parameters() if p.requires_grad], 0.01)
    for images, labels in batches(client.shard, 2, 4, torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        F.cross_entropy(local_path(whole, head, tail, pool, images), labels).backward()
        optimizer.step()
    learnt = {**trainable_state(client.parts.head), **trainable_state(client.parts.tail)}
    torch.testing.assert_close(learnt, trainable_state(whole), rtol=1e-5, atol=1e-6)


def test_el2n_is_the_distance_from_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 5, generator=generator), torch.arange(20) % 5
    raised = np.exp(logits.double().numpy())
    wrong = raised / raised.sum(axis=1, keepdims=True) - np.eye(5)[labels.numpy()]
    expected = np.sqrt((wrong**2).sum(axis=1))
    np.testing.assert_allclose(sfprompt.el2n(logits, labels).numpy(), expected, rtol=1e-5)
    sure = torch.tensor([[100.0, 0.0], [100.0, 0.0]])
    assert sfprompt.el2n(sure, torch.tensor([0, 1])).tolist() == [0, pytest.approx(math.sqrt(2))]


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1 / 3, 0.5, 0.7, 0.99, 1.0])
def test_the_hardest_are_kept_and_as_many_as_gamma_says(gamma: float) -> None:
    client = one_client(config(gamma=gamma))
    hardest = client._hardest()
    with torch.no_grad():
        scores = sfprompt.el2n(client.parts.joined(client.shard.inputs), client.shard.targets)
    count = math.ceil(gamma * 9)
    assert len(hardest.targets) == len(hardest.inputs) == count
    with torch.no_grad():
        found = sfprompt.el2n(client.parts.joined(hardest.inputs), hardest.targets)
    expected = scores.sort(descending=True).values[:count]
    torch.testing.assert_close(found.sort(descending=True).values, expected)


def test_a_fraction_that_is_whole_is_not_rounded_up() -> None:
    # 0.07 * 100 is 7.000000000000001
    assert [sfprompt.kept(100, gamma) for gamma in (0.07, 0.071, 1e-9, 1.0)] == [7, 8, 1, 100]
    assert sfprompt.kept(1, 0.01) == 1


@pytest.mark.parametrize(
    ("head", "pool", "sees"), [(0, "cls", False), (0, "mean", True), (1, "cls", True)]
)
def test_what_the_class_token_of_the_joined_path_has_seen(head: int, pool: str, sees: bool) -> None:
    """The trap: without a block in the head, EL2N depends on the label and on nothing else."""
    client = one_client(config(head, pool=pool))
    with torch.no_grad():
        logits = client.parts.joined(client.shard.inputs)
    assert (float(logits.std(dim=0).max()) > 1e-6) == sees


def shares_of_the_label(clients: int, **options: Any) -> list[float]:
    """How much of EL2N's variance within a client its labels explain, after one self-update."""
    run = RunConfig(method="sfprompt", options=options, train_samples=600)
    task = FineTuning(run, 8)
    task.prepare()
    found = []
    for number in range(1, clients + 1):
        client = sfprompt.Client(task._options, copied(task._model), task._shard(number), number)
        client._update_by_itself()
        client._training(False)
        labels = client.shard.targets
        with torch.no_grad():
            scores = sfprompt.el2n(client.parts.joined(client.shard.inputs), labels)
        known, which = labels.unique(return_inverse=True)
        means = torch.stack([scores[labels == label].mean() for label in known])[which]
        found.append(float(means.var() / scores.var()))
    return found


@pytest.mark.thorough
def test_the_default_ranks_samples_and_not_labels_alone() -> None:
    """pool = mean without a block in the head is no cure of the trap; a block is, in part."""
    trap = shares_of_the_label(4, head_blocks=0, pool="cls")
    mean = shares_of_the_label(4, head_blocks=0, pool="mean")
    ours = shares_of_the_label(4)
    assert min(trap) > 0.999 and np.mean(mean) > 0.97
    assert np.mean(ours) < 0.95 and np.mean(ours) < np.mean(mean) - 0.03
    assert [sfprompt.Config(head_blocks=n).pool for n in (0, 1, 2)] == ["mean", "cls", "cls"]


# The wire


@pytest.mark.thorough
@pytest.mark.parametrize("transfer", ["tokens", "cls"])
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_bytes_are_the_formulas(head: int, transfer: str, gamma: float) -> None:
    options = config(head, transfer=transfer, gamma=gamma, split_epochs=2)
    _, network = played(options, parts(*SAMPLES), rounds=2)
    rounds, clients = 2, 3
    m = sum(2 * math.ceil(gamma * samples) for samples in SAMPLES.values())
    prompt, tail = PROMPTS * WIDTH, 2 * WIDTH + WIDTH * CLASSES + CLASSES
    block = 4 * 8 * 8 + 2 * 8 * 16 + 4 * 8 + 16 + 8 + 4 * 8
    embedding = 2 * 2 * 8 + 8 + 8 + SPEC.tokens * WIDTH
    whole = rounds * m * TOKENS * WIDTH * 4
    back = rounds * m * (1 if transfer == "cls" else TOKENS) * WIDTH * 4
    weights = {"prompt": rounds * clients * prompt * 4, "tail": rounds * clients * tail * 4}
    assert network.payload() == {
        "up": {**weights, "smashed": whole, "gradient": back},
        "down": {
            **weights,
            "head": clients * (embedding + head * block) * 4,
            "smashed": back,
            "gradient": whole,
        },
    }
    # As the paper's account has it.
    total = sum(sum(way.values()) for way in network.payload().values())
    once = network.payload()["down"]["head"]
    if transfer == "tokens":
        paper = clients * 2 * (prompt + tail) * 4 + m * 4 * TOKENS * WIDTH * 4
    else:
        paper = clients * 2 * (prompt + tail) * 4 + m * (2 * TOKENS + 2) * WIDTH * 4
    assert total == rounds * paper + once


def test_the_head_need_not_be_sent() -> None:
    _, network = played(config(send_head=False), parts(*SAMPLES))
    assert not network.of("down", "head") and not network.missed()


def test_a_head_of_other_weights_is_taken_and_an_equal_one_not_written() -> None:
    options, data = config(1), parts("client-2")
    client = one_client(options)
    written = {name: p._version for name, p in client.parts.head.named_parameters()}
    name = "blocks.0.expand.weight"
    server = sfprompt.Server(options, adapted(options), data["client-2"], 0)
    theirs = dict(server.model.named_parameters())[name]
    with torch.no_grad():
        theirs += 1
    play(server, {"client-2": client}, SAMPLES)
    own = dict(client.parts.head.named_parameters())
    assert torch.equal(own[name], theirs)
    changed = {n for n, parameter in own.items() if parameter._version != written[n]}
    assert changed == {name, "embed.prompt"}


def test_labels_never_leave() -> None:
    _, network = played(config(), parts(*SAMPLES), rounds=2)
    assert {message.kind for message in network.of("up")} == {
        "smashed",
        "gradient",
        "prompt",
        "tail",
    }
    for message in network.of("up"):
        assert not message.details
        assert not any("label" in name for name in message.tensors)
        assert all(tensor.is_floating_point() for tensor in message.tensors.values())


@pytest.mark.parametrize("transfer", ["tokens", "cls"])
def test_traffic_is_what_a_client_of_one_sample_has(transfer: str) -> None:
    options = config(transfer=transfer, send_head=False)
    shard = parts("client-1")["client-1"]
    one = shard._replace(inputs=shard.inputs[:1], targets=shard.targets[:1])
    _, network = played(options, {"client-1": one})
    found = tuple(sum(network.payload()[way].values()) for way in ("up", "down"))
    assert sfprompt.traffic(options, adapted(options)) == found


# Configuration


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": 3}, "head_blocks = 3: must be 0 to 2"),
        ({"head": 1, "tail": 2}, "tail_blocks = 2: must be 0 to 1"),
        ({"tail": 1, "transfer": "cls"}, "tail_blocks = 1: with transfer = cls"),
    ],
)
def test_a_cut_outside_the_model_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sfprompt.check(config(**options), plain())


@pytest.mark.parametrize("gamma", [0, -0.5, 1.001])
def test_gamma_outside_its_range_is_refused(gamma: float) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"gamma"):
        msgspec.convert({"gamma": gamma}, sfprompt.Config)


def test_the_client_leaves_frozen_weights_to_all() -> None:
    """Nothing but prompts and tail is written or has a gradient."""
    options = config(1, 1)
    shared = adapted(options)
    client = sfprompt.Client(options, shared, parts("client-2")["client-2"], 0)
    before = {name: (p._version, p.clone()) for name, p in shared.named_parameters()}
    server = sfprompt.Server(options, copied(shared), client.shard, 0)
    play(server, {"client-2": client}, SAMPLES)
    for name, parameter in shared.named_parameters():
        if not parameter.requires_grad:
            assert parameter._version == before[name][0] and parameter.grad is None


def test_batches_and_their_sizes_agree() -> None:
    shard = parts("client-2")["client-2"]
    for size in (1, 2, 4, 9, 100):
        made = list(batches(shard, 3, size, torch.Generator()))
        assert [len(batch.targets) for batch in made] == sizes(9, 3, size)
