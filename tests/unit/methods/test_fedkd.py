"""FedKD: its cut against numpy's, its loss against sums by hand, and who gets what in a round."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods import Shard, fedkd
from methods.distillation.mutual import Pair, View, loss, student_of, with_attention_maps
from methods.shared import flops
from methods.shared.local_training import learnt, trainable_state
from nodes.program import FineTuning
from nodes.workload.models import Block, ModelSpec, VisionTransformer
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, convert

CLASSES = 3
SHAPE = (1, 4, 4)
SPEC = ModelSpec(side=4, patch=2, width=16, depth=4, heads=2)
SAMPLES = {"client-1": 12, "client-2": 20, "client-3": 8}
STUDENT = 4 * (2 * (4 * 16 * 17 + 2 * 32 + 33 * 16 + 32 * 17) + 32 + 17 * CLASSES)
"""Bytes of two blocks, the last norm and the classifier."""


def config(**options: Any) -> fedkd.Config:
    return fedkd.Config(**{"batch_size": 4, "learning_rate": 3e-3} | options)


def model(options: fedkd.Config, spec: ModelSpec = SPEC) -> nn.Module:
    torch.manual_seed(0)
    return fedkd.adapt(options, VisionTransformer(spec, CLASSES))


class Played:
    """A server and clients after some rounds."""

    def __init__(self, rounds: int = 1, parts: dict[str, Shard] | None = None, **options: Any):
        self.config = config(**options)
        before = model(self.config)
        parts = parts or shards(SAMPLES, SHAPE, CLASSES)
        nothing = parts["client-1"]._replace(client=0)
        self.server = fedkd.Server(self.config, copied(before), nothing, 0)
        self.first = trainable_state(self.server.model)
        self.clients = {
            name: fedkd.Client(self.config, copied(before), shard, shard.client)
            for name, shard in parts.items()
        }
        self.done = 0
        self.network = Network()
        self.play(rounds)

    def play(self, rounds: int, *names: str, **more: Any) -> Network:
        some = {name: self.clients[name] for name in names or self.clients}
        first, self.done = self.done + 1, self.done + rounds
        self.network = more.pop("network", None) or Network()
        return play(self.server, some, SAMPLES, self.done, self.network, first=first, **more)

    def down(self, client: str) -> list[tuple[str, int]]:
        sent = [each.message for each in self.network.log if each[:2] == ("down", client)]
        return [(each.kind, each.payload_bytes) for each in sent if each.kind != "start"]

    def student(self) -> dict[str, Tensor]:
        return trainable_state(self.server.model)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# The cut


def cut_by_hand(matrix: np.ndarray, tau: float) -> tuple[int, np.ndarray]:
    """K, and the best matrix of that rank, one singular value after the other."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    total, sum_, found = (values**2).sum(), 0.0, np.zeros_like(matrix, dtype=np.float64)
    for count, value in enumerate(values, start=1):
        sum_ += value**2
        found += value * np.outer(left[:, count - 1], right[count - 1])
        if sum_ > tau * total:
            return count, found
    return len(values), matrix


def falling(rows: int, columns: int, rate: float, seed: int) -> Tensor:
    """A matrix whose singular values fall by ``rate``."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    short = min(rows, columns)
    values = rate ** torch.arange(short, dtype=torch.float32)
    return (left[:, :short] * values) @ right[:short]


@pytest.mark.parametrize("shape", [(16, 16), (32, 16), (16, 40), (3, 50)])
@pytest.mark.parametrize(("rate", "tau"), [(0.3, 0.95), (0.8, 0.95), (0.8, 0.5), (0.97, 0.2)])
def test_a_matrix_is_cut_by_the_rule_of_energy(
    shape: tuple[int, int], rate: float, tau: float
) -> None:
    options = config(energy_start=tau, energy_end=tau)
    matrix = falling(*shape, rate, seed=1)
    (found,) = fedkd.truncated(options, 1, {"w": matrix}).values()
    count, expected = cut_by_hand(matrix.numpy(), tau)
    rows, columns = shape
    if count * (rows + columns + 1) >= rows * columns:
        assert torch.equal(found, matrix)
        return
    assert found.shape == (count * (rows + columns + 1),)
    assert fedkd.values_of(found, matrix) == count
    rebuilt = fedkd.dense({"w": found}, {"w": matrix})["w"]
    np.testing.assert_allclose(rebuilt.numpy(), expected, atol=1e-6)
    lost = float((matrix - rebuilt).square().sum() / matrix.square().sum())
    assert lost < 1 - tau + 1e-6


def test_both_ways_of_a_matrix_are_among_those_cases() -> None:
    """Else what is above would compare less than it seems to."""
    counts = [cut_by_hand(falling(16, 16, rate, 1).numpy(), 0.95)[0] for rate in (0.3, 0.8, 0.97)]
    assert counts[0] * 33 < 256 > counts[1] * 33 - 33 and counts[2] * 33 >= 256


@pytest.mark.parametrize(
    ("rows", "columns", "most"), [(768, 768, 383), (768, 3072, 614), (96, 96, 47), (96, 192, 63)]
)
def test_the_most_singular_values_that_are_worth_it(rows: int, columns: int, most: int) -> None:
    assert fedkd.most_values(torch.empty(rows, columns, device="meta")) == most
    assert most * (rows + columns + 1) < rows * columns <= (most + 1) * (rows + columns + 1)


def test_tau_goes_from_its_start_to_its_end_and_stays() -> None:
    options = config(energy_start=0.9, energy_end=0.98, energy_rounds=4)
    found = [fedkd.energy(options, number) for number in (1, 2, 4, 5, 100)]
    assert found == pytest.approx([0.92, 0.94, 0.98, 0.98, 0.98])


def test_a_change_of_zeros_takes_no_bytes() -> None:
    like = {"w": torch.zeros(16, 16)}
    found = fedkd.truncated(config(), 1, like)
    assert found["w"].shape == (0,)
    fedkd.check_update(found, like)
    assert equal(fedkd.dense(found, like), like)


def test_what_takes_all_its_values_is_dense() -> None:
    """The authors' code finds no K then, and drops the matrix."""
    alike = torch.eye(3, 40)
    assert torch.equal(fedkd.truncated(config(), 1, {"w": alike})["w"], alike)
    whole = config(energy_start=1.0, energy_end=1.0)
    falls = falling(16, 16, 0.3, seed=1)
    assert torch.equal(fedkd.truncated(whole, 1, {"w": falls})["w"], falls)


def test_vectors_and_counts_stay_and_a_kernel_is_a_matrix() -> None:
    update = {
        "bias": torch.rand(5),
        "count": torch.tensor([[3, 4]]),
        "kernel": falling(16, 27, 0.3, seed=2).view(16, 3, 3, 3),
    }
    found = fedkd.truncated(config(), 1, update)
    assert found["bias"] is update["bias"] and found["count"] is update["count"]
    assert found["kernel"].dim() == 1 and len(found["kernel"]) % 44 == 0
    rebuilt = fedkd.dense(found, update)["kernel"]
    assert rebuilt.shape == (16, 3, 3, 3)
    assert torch.allclose(rebuilt, update["kernel"], atol=0.3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_no_lapack(wrong: float, monkeypatch: Any) -> None:
    def svd(*_: Any, **__: Any) -> None:
        raise AssertionError("LAPACK was given it")

    monkeypatch.setattr(torch.linalg, "svd", svd)
    matrix = torch.zeros(16, 16)
    matrix[3, 4] = wrong
    assert fedkd.truncated(config(), 1, {"w": matrix})["w"] is matrix


def test_singular_values_beyond_a_float_go_dense() -> None:
    matrix = torch.full((16, 16), 3e38)
    assert fedkd.truncated(config(), 1, {"w": matrix})["w"] is matrix


def test_rank_is_every_matrix_s_number() -> None:
    update = {"zeros": torch.zeros(16, 16), "wide": torch.rand(3, 50), "small": torch.rand(3, 8)}
    found = fedkd.truncated(config(rank=2), 1, update)
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "zeros": (2 * 33,),
        "wide": (2 * 54,),
        "small": (3, 8),
    }


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({}, "tensors differ in 'w'"),
        ({"w": torch.rand(16, 16), "b": torch.rand(2)}, "tensors differ in 'b'"),
        ({"w": torch.rand(33).double()}, "w is torch.float64"),
        ({"w": torch.rand(34)}, "K at most 7"),
        ({"w": torch.rand(8 * 33)}, "K at most 7"),
        ({"w": torch.rand(16, 15)}, r"w is \[16, 15\]"),
        ({"w": torch.rand(33, 1)}, r"w is \[33, 1\]"),
    ],
)
def test_what_is_no_update_is_refused(found: dict[str, Tensor], text: str) -> None:
    like = {"w": torch.rand(16, 16)}
    with pytest.raises(ValueError, match=text):
        fedkd.check_update(found, like)
    for right in (7 * 33, 33, 0):
        fedkd.check_update({"w": torch.rand(right)}, like)


# The loss


def views(dtype: torch.dtype = torch.float64) -> tuple[View, View]:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    def one() -> View:
        return View(
            drawn(5, CLASSES),
            [drawn(5, 4, 6) for _ in range(2)],
            [drawn(5, 2, 4, 4) for _ in range(2)],
        )

    return one(), one()


LABELS = torch.tensor([0, 2, 1, 1, 0])


def by_hand(pair: tuple[View, View], divisor: float | None = None) -> float:
    """The loss by its formula; ``divisor``: D, in place of the cross-entropies' sum."""
    teacher, student = (
        [each.detach().numpy() for each in (view.logits, *view.hidden, *view.attention)]
        for view in pair
    )

    def probabilities(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    t, s = probabilities(teacher[0]), probabilities(student[0])
    rows = np.arange(5)
    entropy = -np.log(t[rows, LABELS]).mean() - np.log(s[rows, LABELS]).mean()
    kl = (s * np.log(s / t)).mean() + (t * np.log(t / s)).mean()
    inner = sum(((a - b) ** 2).mean() for a, b in zip(teacher[1:], student[1:], strict=True))
    return float(entropy + (kl + 2 * inner) / (divisor or entropy))


@pytest.mark.parametrize("as_published", [False, True])
def test_the_loss_by_hand(as_published: bool) -> None:
    found = loss(views(), LABELS, as_published=as_published)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(by_hand(views()), rel=1e-12)


@pytest.mark.parametrize("as_published", [False, True])
def test_the_divisor_has_a_gradient_only_as_published(as_published: bool) -> None:
    pair = views()
    loss(pair, LABELS, as_published=as_published).backward()
    with torch.no_grad():
        tasks = (torch.nn.functional.cross_entropy(view.logits, LABELS) for view in pair)
        divisor = None if as_published else float(sum(tasks))
    step = 1e-6
    for view in pair:
        for tensor in (view.logits, view.hidden[1], view.attention[0]):
            place = (1,) * tensor.dim()
            assert tensor.grad is not None
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor[place] += sign * step
                ends.append(by_hand(pair, divisor))
                with torch.no_grad():
                    tensor[place] -= sign * step
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(tensor.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_a_batch_known_by_heart_has_a_finite_loss() -> None:
    logits = torch.tensor([[500.0, 0, 0]], requires_grad=True)
    view = View(logits, [torch.ones(1, 2, 2, requires_grad=True)], [])
    other = view._replace(hidden=[torch.zeros(1, 2, 2)])
    found = loss((view, other), torch.tensor([0]), as_published=False)
    found.backward()
    assert bool(found.isfinite()) and bool(view.hidden[0].grad.isfinite().all())


def test_attention_maps_are_what_the_block_weighs_by() -> None:
    torch.manual_seed(1)
    block = Block(SPEC).double()
    tokens = torch.rand(3, 5, 16, dtype=torch.float64)
    found, maps = with_attention_maps(block, tokens)
    assert torch.equal(found, block(tokens))
    assert maps.shape == (3, 2, 5, 5)
    # With these weights the block's own values come to what its kernel made of them.
    normed = block.norm_attention(tokens)
    values = block.attention.value(normed).view(3, 5, 2, 8).transpose(1, 2)
    mixed = (maps @ values).transpose(1, 2).reshape(3, 5, 16)
    expected = block.attention(normed)
    assert torch.allclose(block.attention.output(mixed), expected, rtol=1e-10)
    assert not block.attention.query._forward_hooks


@pytest.mark.parametrize(
    ("depth", "blocks", "teachers"), [(12, 4, [2, 5, 8, 11]), (4, 2, [1, 3]), (5, 2, [2, 4])]
)
def test_which_blocks_are_compared(depth: int, blocks: int, teachers: list[int]) -> None:
    spec = ModelSpec(side=4, patch=2, width=16, depth=depth, heads=2)
    whole = model(config(), spec)
    pair = Pair(whole, blocks, attention=True)
    images = torch.rand(2, *SHAPE)
    teacher, student = pair(images)
    tokens, behind = whole.embed(images), []
    for block in whole.blocks:
        tokens = block(tokens)
        behind.append(tokens)
    assert torch.equal(teacher.logits, whole(images))
    assert len(teacher.attention) == len(student.attention) == blocks
    for found, number in zip(teacher.hidden, teachers, strict=True):
        assert torch.equal(found, behind[number])
    # Of the same weights to begin with, but for the blocks that it has not.
    for found, own in zip(student.hidden, behind, strict=False):
        assert torch.equal(found, own)
    assert torch.equal(student.logits, pair.student(images))


def test_a_student_of_all_blocks_is_compared_with_each_of_its_teachers() -> None:
    whole = model(config(student_blocks="all"))
    teacher, student = Pair(whole, "all", attention=True)(torch.rand(2, *SHAPE))
    assert torch.equal(teacher.logits, student.logits)
    assert len(teacher.hidden) == len(whole.blocks)
    for found, expected in zip(student.hidden, teacher.hidden, strict=True):
        assert torch.equal(found, expected)
    fedkd.check(config(student_blocks="all"), whole)


def test_a_student_shares_the_embedding_and_nothing_else() -> None:
    whole = model(config())
    student = student_of(whole, 2)
    own = dict(student.named_parameters())
    theirs = dict(whole.named_parameters())
    assert {name.split(".")[1] for name in own if name.startswith("blocks")} == {"0", "1"}
    for name, parameter in own.items():
        assert torch.equal(parameter, theirs[name])
        assert (parameter is theirs[name]) == name.startswith("embed.") != parameter.requires_grad


# Rounds


def test_an_update_is_the_students_change_cut_by_numpy() -> None:
    played = Played()
    tau = 0.95 + 0.03 / 20
    for message in played.network.of("up", "update"):
        client = played.clients[message.sender]
        size = 0
        for name, parameter in learnt(client.student).items():
            change = (parameter.detach() - client.start[name]).numpy()
            found = fedkd._dense(message.tensors[name], parameter).detach().numpy()
            if change.ndim == 1:
                np.testing.assert_array_equal(found, change)
                size += 4 * change.size
                continue
            count, expected = cut_by_hand(change, tau)
            np.testing.assert_allclose(found, expected, atol=1e-6)
            rows, columns = change.shape
            size += 4 * min(count * (rows + columns + 1), change.size)
        assert message.payload_bytes == size < STUDENT
    assert len(played.network.of("up", "update")) == 3


def test_the_student_moves_by_the_mean_cut_again() -> None:
    played = Played()
    tau = 0.95 + 0.03 / 20
    updates = [fedkd.dense(each.tensors, played.first) for each in played.network.of("up")]
    student = played.student()
    for name, start in played.first.items():
        # Without weights, though clients have 12, 20 and 8 samples.
        mean = np.mean([each[name].double().numpy() for each in updates], axis=0)
        if mean.ndim == 2:
            count, expected = cut_by_hand(mean, tau)
            dense = count * (sum(mean.shape) + 1) >= mean.size
            mean = mean if dense else expected
        np.testing.assert_allclose(student[name] - start, mean, atol=1e-6)
    assert not equal(student, played.first)


def test_nothing_goes_down_at_first_and_then_the_mean_alone() -> None:
    played = Played()
    assert played.network.payload()["down"] == {"start": 0}
    sent, student = dict(played.server.update), played.student()
    played.play(1)
    bytes_ = sum(each.numel() * 4 for each in sent.values())
    assert bytes_ < STUDENT
    for name, client in played.clients.items():
        assert played.down(name) == [("update", bytes_)]
        assert equal(client.start, student)


def test_the_student_is_the_same_everywhere_to_the_last_bit() -> None:
    played = Played(rounds=3)
    student = played.student()
    played.play(1)
    assert all(equal(client.start, student) for client in played.clients.values())
    assert played.server.version == 4


@pytest.mark.thorough
def test_who_missed_a_round_gets_the_dense_student_and_then_means_again() -> None:
    played = Played(rounds=1)
    played.play(1, "client-1", "client-2")
    student = played.student()
    played.play(1)
    assert played.down("client-3") == [("student", STUDENT)]
    assert played.down("client-1")[0][0] == "update"
    assert all(equal(client.start, student) for client in played.clients.values())
    student = played.student()
    played.play(1)
    assert played.down("client-3")[0][0] == "update"
    assert all(equal(client.start, student) for client in played.clients.values())


@pytest.mark.thorough
def test_who_is_drawn_again_at_once_gets_the_mean_and_others_the_student() -> None:
    played = Played(rounds=0)
    played.play(5, per_round=2)
    before: set[str] = set()
    for number in range(1, 6):
        now: dict[str, str] = {}
        for way, client, message in played.network.log:
            if (way, message.round) == ("down", number) and message.kind != "start":
                now[client] = message.kind
        for client, kind in now.items():
            assert kind == ("update" if client in before else "student")
        before = {e.client for e in played.network.log if e[0] == "up" and e[2].round == number}
        assert len(before) == 2


@pytest.mark.thorough
def test_a_client_that_is_lost_is_left_out_and_gets_the_student_when_it_is_back() -> None:
    played = Played(rounds=1)
    played.play(1, network=Network(dies_after={"client-2": 0}))
    assert [each.sender for each in played.network.of("up")].count("client-2") == 0
    assert played.server.version == 2 and sorted(played.server.heard) == ["client-1", "client-3"]
    student = played.student()
    played.play(1)
    assert played.down("client-2") == [("student", STUDENT)]
    assert all(equal(client.start, student) for client in played.clients.values())


@pytest.mark.thorough
def test_a_round_without_updates_leaves_the_student() -> None:
    played = Played(rounds=1)
    student = played.student()
    played.play(1, network=Network(dies_after=dict.fromkeys(SAMPLES, 0)))
    assert equal(played.student(), student) and played.server.version == 1
    played.play(1)
    assert all(played.down(name) == [("student", STUDENT)] for name in SAMPLES)
    assert all(equal(client.start, student) for client in played.clients.values())


def test_an_update_that_is_not_finite_is_refused_and_the_others_go_on() -> None:
    played = Played(rounds=1)
    broken = played.clients["client-1"].pair.teacher.blocks[0].expand.weight
    with torch.no_grad():
        broken.fill_(torch.nan)
    played.play(1)
    (missed,) = played.network.missed()
    assert missed[0] == "client-1" and "not finite" in missed[1]
    assert all(bool(each.isfinite().all()) for each in played.student().values())
    assert sorted(played.server.heard) == ["client-2", "client-3"]


def test_an_update_beyond_a_float_is_refused() -> None:
    class Far:
        def round(self, peer: Any) -> None:
            peer.receive("start", like={})
            far = {name: torch.zeros(each.shape) for name, each in played.first.items()}
            factors = torch.full((33,), 1e30)
            peer.send("update", far | {"blocks.0.attention.query.weight": factors})

    played = Played(rounds=0)
    played.clients["client-1"] = Far()  # type: ignore[assignment]
    played.play(1)
    (missed,) = played.network.missed()
    assert missed[0] == "client-1" and "further than its numbers can tell" in missed[1]
    assert sorted(played.server.heard) == ["client-2", "client-3"]


@pytest.mark.parametrize(("told", "found"), [("update", "mean 5"), ("none", "no student 5")])
def test_a_client_refuses_what_it_has_no_student_for(told: str, found: str) -> None:
    class Other:
        async def round(self, fleet: Any) -> None:
            await fleet.broadcast("start", {}, form=told, version=5)
            if told == "update":
                zeros = {name: torch.zeros_like(each) for name, each in played.first.items()}
                await fleet.broadcast(told, zeros)
            async for _ in fleet.gather("update", like={}):
                raise AssertionError

    played = Played(rounds=0)
    played.server = Other()  # type: ignore[assignment]
    played.play(1)
    assert {name for name, _ in played.network.missed()} == set(SAMPLES)
    assert all(found in reason for _, reason in played.network.missed())


@pytest.mark.thorough
def test_clients_without_some_classes_learn_too() -> None:
    parts = shards(SAMPLES, SHAPE, CLASSES)
    parts = {
        name: shard._replace(targets=torch.full_like(shard.targets, shard.client - 1))
        for name, shard in parts.items()
    }
    played = Played(rounds=4, parts=parts, local_epochs=4, learning_rate=0.02)
    assert played.network.missed() == set()
    for client in played.clients.values():
        found = client.evaluate(client.shard.inputs, client.shard.targets)
        assert found["accuracy"] == 1.0


@pytest.mark.thorough
def test_the_student_learns_what_no_client_knows_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(45) % CLASSES
    images = 0.1 * torch.rand(45, *SHAPE, generator=generator) + labels.view(-1, 1, 1, 1) / CLASSES
    parts = {}
    for missing in range(CLASSES):
        mine = labels != missing
        parts[f"client-{missing + 1}"] = Shard(images[mine], labels[mine], images[:0], missing + 1)
    played = Played(rounds=0, parts=parts, local_epochs=4, learning_rate=0.01)
    before = played.server.evaluate(images, labels)
    played.play(4)
    found = played.server.evaluate(images, labels)
    assert found["accuracy"] > 0.9 > before["accuracy"]
    assert 0 < found["share_down"] < 1 and 0 < found["share_up"] < 1


@pytest.mark.thorough
def test_the_teacher_and_adams_state_stay_with_the_client() -> None:
    played = Played(rounds=2)
    own = [dict(client.pair.teacher.named_parameters()) for client in played.clients.values()]
    for name in own[0]:
        same = torch.equal(own[0][name], own[1][name])
        assert same == name.startswith("embed."), name
    sent = {name for each in played.network.of("up") for name in each.tensors}
    assert sent == set(played.first) and not any(name.startswith("embed.") for name in sent)
    (steps,) = {int(state["step"]) for state in played.clients["client-1"].optimizer.state.values()}
    assert steps == 2 * 2 * 3


@pytest.mark.thorough
def test_ranks_tells_k_of_each_matrix() -> None:
    played = Played(ranks=True)
    told = played.server.told
    names = [name for name, each in played.first.items() if each.dim() == 2]
    assert len(names) == 2 * 6 + 1
    for name in names:
        rows, columns = played.first[name].shape
        found = played.server.update[name]
        own = min(rows, columns) if found.dim() == 2 else len(found) // (rows + columns + 1)
        assert told[f"rank_down.{name}"] == own
        sent = [fedkd.values_of(e.tensors[name], played.first[name]) for e in up(played)]
        assert told[f"rank_up.{name}"] == pytest.approx(np.mean(sent))
    shares = [each.payload_bytes / STUDENT for each in up(played)]
    assert told["share_up"] == pytest.approx(np.mean(shares))
    assert not any(name.startswith("rank") for name in Played().server.told)


def up(played: Played) -> list[Any]:
    return played.network.of("up", "update")


@pytest.mark.thorough
def test_bytes_with_a_rank_are_the_formulas() -> None:
    played = Played(rounds=2, rank=2)
    matrices = [each.shape for each in played.first.values() if each.dim() == 2]
    rest = sum(each.numel() for each in played.first.values() if each.dim() == 1)
    # 2 (3 + 16 + 1) = 40 of the classifier's 48 values too.
    expected = 4 * (rest + sum(2 * (rows + columns + 1) for rows, columns in matrices))
    assert played.network.payload() == {
        "up": {"update": 2 * 3 * expected},
        "down": {"start": 0, "update": 3 * expected},
    }
    options = config(rank=2)
    assert fedkd.traffic(options, model(options)) == (expected, 0)
    assert fedkd.traffic(config(), model(config())) == (4 * rest, 0)


@pytest.mark.thorough
def test_attention_loss_is_a_choice() -> None:
    one, other = Played(), Played(attention_loss=False)
    assert not equal(one.student(), other.student())


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 2, "attention_loss": False}])
def test_a_clients_operations_are_those_of_its_round(options: dict[str, Any]) -> None:
    played = Played(rounds=0, local_epochs=3, **options)
    client = played.clients["client-2"]
    image = client.shard.inputs[:1]
    whole = model(played.config)
    own = fedkd.client_flops(played.config, whole, image)
    first, further = fedkd.fixed_flops(played.config, whole, image)
    found = []
    for told in (("none", 0), ("update", 1)):
        update = fedkd.truncated(played.config, 1, played.first)
        with sdpa_kernel(SDPBackend.MATH), flops.Counter() as counter:
            client.round(Told(len(found) + 1, *told, update))
        found.append(counter.flops)
    matrices = [each for each in played.first.values() if each.dim() == 2]
    # What LAPACK does has no formula of torch's.
    cut = sum(fedkd.svd_flops(*each.shape) for each in matrices)
    assert first == cut and found[0] == len(client.shard.targets) * own
    assert found[1] - found[0] == further - first == sum(2 * each.numel() * 2 for each in matrices)


@pytest.mark.parametrize("shape", [(96, 96), (192, 96), (10, 96)])
def test_singular_values_without_values_are_counted_by_the_formula(shape: tuple[int, int]) -> None:
    matrix = torch.empty(*shape, device="meta")
    with flops.Counter() as counter:
        found = fedkd.svd(matrix)
    real = torch.linalg.svd(torch.rand(shape), full_matrices=False)
    assert [each.shape for each in found] == [each.shape for each in real]
    long, short = max(shape), min(shape)
    assert counter.flops == fedkd.svd_flops(*shape) == 14 * long * short**2 + 8 * short**3


class Told:
    """A peer whose server says this much."""

    def __init__(self, number: int, form: str, version: int, update: dict[str, Tensor]) -> None:
        self.round = number
        start = SimpleNamespace(details={"form": form, "version": version}, tensors={})
        self._says = {"start": start, "update": SimpleNamespace(details={}, tensors=update)}

    def receive(self, kind: str, **_: Any) -> SimpleNamespace:
        return self._says[kind]

    def send(self, kind: str, tensors: Any) -> None:
        assert kind == "update"


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"student_blocks": 0}, "student_blocks = 0: "),
        ({"student_blocks": "half"}, "student_blocks = 'half': "),
        ({"energy_start": 0.0}, "energy_start = 0.0: "),
        ({"energy_end": 1.5}, "energy_end = 1.5: "),
        ({"energy_rounds": 0}, "energy_rounds = 0: "),
        ({"rank": 0}, "rank = 0: "),
        ({"learning_rate": 0}, "learning_rate = 0: "),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(options, fedkd.Config, "options of method fedkd")
    assert text in str(caught.value)


def test_a_model_that_is_too_shallow_or_tells_no_attention_is_refused() -> None:
    whole = VisionTransformer(SPEC, CLASSES)
    with pytest.raises(ValueError, match="student_blocks = 5: must be at most 4"):
        fedkd.check(config(student_blocks=5), whole)
    whole.blocks[1] = nn.Identity()
    with pytest.raises(ValueError, match="attention_loss=false"):
        fedkd.check(config(), whole)
    fedkd.check(config(attention_loss=False), whole)


def test_modelled_compute_needs_a_rank() -> None:
    whole = VisionTransformer(SPEC, CLASSES).to("meta")
    with pytest.raises(ValueError, match="rank: must be given with compute = modelled"):
        fedkd.adapt(config(), whole)
    fedkd.adapt(config(rank=2), whole)
    asked = RunConfig(method="fedkd", compute="modelled", device_class="phone")
    with pytest.raises(ConfigError, match="rank: must be given with compute = modelled"):
        FineTuning(asked, 2)
