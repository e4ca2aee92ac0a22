"""Random streams: none is another's, each comes again with the seed, and every node has its own."""

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from nodes import program
from nodes.program import FineTuning
from nodes.workload import models, splits
from nodes.workload.models import VisionTransformer
from nodes.workload.partition import partition
from testbed.network.topology import Node
from testbed.run.config import RunConfig
from testbed.seeds import derive

CLIENTS = 3


def test_a_stream_is_its_seed_its_purpose_and_its_node() -> None:
    parts = [(seed, what, who) for seed in (0, 1, 2**32 - 1) for what in "ab" for who in (0, 1)]
    found = [derive(*each) for each in parts] + [derive(0), derive(0, "a"), derive(0, "a0")]
    assert len(set(found)) == len(found) and all(0 <= each < 2**63 for each in found)
    assert found[: len(parts)] == [derive(*each) for each in parts]
    # Neither word nor number runs into the next one.
    assert derive(1, "2", 3) != derive(1, 2, 3) != derive(12, 3)


def drawn_by_nodes(monkeypatch: pytest.MonkeyPatch, seed: int) -> list[tuple[float, ...]]:
    """What the server and each client draw, from every generator a method may ask."""
    found: list[tuple[float, ...]] = []

    def probe(config: RunConfig, method: Any, *others: Any, **more: Any) -> None:
        own = method.privacy.generator if hasattr(method, "take") else method.generator
        numbers = [torch.rand((), generator=own), torch.rand(()), np.random.random()]
        found.append(tuple(float(each) for each in (*numbers, random.random())))

    async def serve(*others: Any, **more: Any) -> None:
        probe(*others, **more)

    monkeypatch.setattr(program, "serve", serve)
    monkeypatch.setattr(program, "participate", probe)
    task = FineTuning(RunConfig(seed=seed, train_samples=CLIENTS * 8), CLIENTS)
    task.prepare()
    for number in range(CLIENTS + 1):
        # Wherever they are: a process inherits what another one left.
        torch.manual_seed(random.randrange(2**32))
        name = f"client-{number}" if number else "server"
        task.run_node(Node(number, name, f"10.0.0.{number}", None, None), None)  # type: ignore[arg-type]
    return found


def test_every_node_draws_its_own_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = (drawn_by_nodes(monkeypatch, seed) for seed in (0, 0, 1))
    assert first == again
    each = [number for node in (*first, *other) for number in node]
    assert len(set(each)) == len(each) == 2 * 4 * (CLIENTS + 1)


def test_what_adapts_the_model_draws_the_same_whoever_drew_before() -> None:
    def adapters() -> dict[str, torch.Tensor]:
        random.seed(), np.random.seed(), torch.seed()
        task = FineTuning(RunConfig(method="fedpeft", train_samples=16), 2)
        task.prepare()
        return {name: each.clone() for name, each in task._model.named_parameters()}

    one, other = adapters(), adapters()
    assert all(torch.equal(each, other[name]) for name, each in one.items())


def assert_unlike(tensors: dict[str, torch.Tensor]) -> None:
    """No two begin as the other does, up to a factor."""
    values = {name: each.detach().flatten()[:90].double() for name, each in tensors.items()}
    drawn = {name: each for name, each in values.items() if len(each) == 90 and each.std() > 0}
    assert len(drawn) > 1
    for one, other in itertools.combinations(drawn, 2):
        likeness = torch.corrcoef(torch.stack([drawn[one], drawn[other]]))[0, 1]
        assert abs(float(likeness)) < 0.5, (one, other)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sfprompt", {}),
        ("kdfft", {"public_samples": 4, "public_batch": 4}),
        *(("fedpeft", {"variant": variant}) for variant in ("lora", "adapter", "prompt")),
    ],
)
def test_what_a_method_adds_is_not_the_classifier(method: str, options: dict[str, Any]) -> None:
    task = FineTuning(RunConfig(method=method, options=options, train_samples=20), 2)
    task.prepare()
    assert_unlike({name: p for name, p in task._model.named_parameters() if p.requires_grad})


def test_a_random_models_weights_are_not_its_classifiers() -> None:
    model = VisionTransformer(models.ModelSpec(), classes=10)
    drawn = models.random_weights(model, 3) | models.new_classifier(model.spec.width, 10, 3)
    assert_unlike(drawn)


def test_as_many_public_images_as_clients_are_not_drawn_as_the_clients_are() -> None:
    held, _ = splits.hold_out(1000, 20, seed=0)
    owners = np.empty(1000, dtype=int)
    for owner, members in enumerate(partition(np.zeros(1000, int), 20, kind="iid", seed=0)):
        owners[members] = owner
    # Both are permutations: of one stream, sample i's owner would be the i-th held out's remainder.
    assert Counter(owners[:20].tolist()) != Counter((held % 20).tolist())
