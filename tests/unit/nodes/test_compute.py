"""Modelled compute: the same messages and operations as with values, and a device's time."""

import asyncio
import time
from typing import Any

import few
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import methods
from methods import Shard, fedavg
from methods.shared.local_training import train
from nodes.compute import Modelled, noise
from nodes.workload.models import ModelSpec, VisionTransformer
from testbed.transport.wire import Header, Message

SPEC = ModelSpec(side=8, patch=4, width=8, depth=2, heads=2)
CLASSES = 3
SHAPE = (1, 8, 8)
COUNTS = {"client-1": 3, "client-2": 6}
FAST = 1e15


@pytest.fixture(scope="module")
def some_noise() -> Tensor:
    return noise(0)


def backbone(device: str) -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES).to(device)


def without_values(shard: Shard) -> Shard:
    return shard._replace(inputs=shard.inputs.to("meta"), public=shard.public.to("meta"))


def played(name: str, options: dict[str, Any], device: str, **compute: Any) -> Network:
    method = methods.load(name)
    config = few.config(name, options)
    data = shards(COUNTS, SHAPE, CLASSES)
    public = torch.rand(method.public_samples(config), *SHAPE)
    data = {name: shard._replace(public=public) for name, shard in data.items()}
    if device == "meta":
        data = {name: without_values(shard) for name, shard in data.items()}
    nothing = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), public, 0)
    model = method.adapt(config, backbone(device))
    server = method.Server(config, copied(model), nothing, 0)
    clients = {name: method.Client(config, copied(model), shard, 1) for name, shard in data.items()}
    return play(server, clients, COUNTS, rounds=2, **compute)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavg", {"batch_size": 4}),
        ("fedpeft", {"variant": "lora", "rank": 2}),
        ("fedpeft", {"variant": "ffalora", "rank": 2}),
        ("fedpeft", {"variant": "prompt", "optimizer": "sgd"}),
        ("fedavg", {"batch_size": 4, "local_steps": 3}),
        ("fedprox", {"rank": 2}),
        ("fedavgm", {"rank": 2, "nesterov": True}),
        ("fedadam", {"rank": 2}),
        ("fedadam", {"rank": 2, "rule": "yogi"}),
        ("diloco", {"rank": 2, "local_steps": 3}),
        ("dispfl", {"batch_size": 4}),
        ("dispfl", {"batch_size": 4, "topology": "full", "regrow": "gradient"}),
        ("feddf", {"rank": 2, "public_samples": 8}),
        ("feddm", {"iterations": 3, "server_epochs": 2}),
        ("feddm", {"iterations": 3, "server_epochs": 2, "pixels": "uint8", "real_init": True}),
        *(
            ("fedptr", {"rank": 2, "match_steps": 3, "projection": projection})
            for projection in ("synthetic", "projected", "client")
        ),
        ("feddf", {"rank": 2, "public_samples": 8, "drop_worst": True, "distill_patience": 1}),
        ("flora", {"ranks": "4,2"}),
        ("flora", {"ranks": "4,2", "downlink": "least"}),
        ("flexlora", {"ranks": "4,2"}),
        ("hetlora", {"ranks": "4,2"}),
        ("hetlora", {"ranks": "4,2", "self_prune": True}),
        ("kdfft", {"public_samples": 8, "public_batch": 4, "rank": 2}),
        ("fedmd", {"public_samples": 8, "public_batch": 4, "depths": "1,2"}),
        ("fedkd", {"rank": 2, "batch_size": 4}),
        ("fedkd", {"rank": 1, "student_blocks": 1, "attention_loss": False}),
        ("split", {"labels": "private", "batch_size": 4}),
        ("splitfed", {"variant": "v1", "batch_size": 4}),
        ("splitfed", {"variant": "v2", "batch_size": 4}),
        ("fedlite", {"batch_size": 4}),
        (
            "fedlite",
            {"batch_size": 4, "labels": "private", "centroids": 3, "quantise_down": True},
        ),
        ("sfprompt", {"batch_size": 2, "gamma": 0.5}),
        ("fedcompress", {"adaptive": False, "public_samples": 8}),
        ("fedpruning", {"structures": "both"}),
        ("fedpruning", {"layers": "uniform", "refine_rounds": 0}),
        ("fedkseed", {"candidates": 64, "steps": 5}),
        ("fedkseed", {"candidates": 64, "steps": 5, "sampling": "importance"}),
        ("salientgrads", {"batch_size": 4}),
    ],
)
def test_the_bytes_of_every_method_are_those_of_real_compute(
    name: str, options: dict[str, Any], some_noise: Tensor
) -> None:
    real = played(name, options, "cpu")
    modelled = played(name, options, "meta", compute=lambda: Modelled(FAST, some_noise))
    assert modelled.payload() == real.payload()
    sent = modelled.payload()
    assert sum(sent.get("among", sent["up"]).values()) > 0
    assert modelled.missed() == set()


@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_that_torch_counts_with_values(
    frozen: bool, some_noise: Tensor
) -> None:
    """Batches of two sizes, over several epochs, of which few are really worked on."""
    shard = shards({"one": 10}, SHAPE, CLASSES)["one"]
    config = fedavg.Config()

    def work(model: nn.Module, data: Shard) -> None:
        model.embed.requires_grad_(not frozen)
        train(
            model,
            data,
            fedavg.new_optimizer(config, model, 1),
            epochs=3,
            batch_size=4,
            generator=torch.Generator().manual_seed(0),
        )

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work(backbone("cpu"), shard)
    device = Modelled(FAST, some_noise)
    with device.active():
        work(backbone("meta"), without_values(shard))
    device.settle()
    assert device.facts()["flops"] == counter.get_total_flops() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_predictions_are_counted_in_whatever_mode(mode: Any, some_noise: Tensor) -> None:
    images = torch.zeros(4, *SHAPE)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone("cpu")(images)
    device, model = Modelled(FAST, some_noise), backbone("meta")
    with device.active(), mode():
        for _ in range(2):
            model(images.to("meta"))
    device.settle()
    assert device.facts()["flops"] == 2 * counter.get_total_flops() > 0


def test_what_is_remembered_of_a_call_has_the_shapes_of_a_real_one(some_noise: Tensor) -> None:
    images = torch.empty(4, *SHAPE)
    labels = torch.zeros(4, dtype=torch.int64)

    def gradients(device: str) -> list[torch.Size]:
        model = backbone(device)
        tokens = model.embed(images.to(device)).detach().requires_grad_()
        for block in model.blocks:
            tokens = block(tokens)
        F.cross_entropy(model.head(tokens), labels).backward()
        return [p.grad.shape for p in model.parameters() if p.grad is not None] + [tokens.shape]

    expected = gradients("cpu")
    with Modelled(FAST, some_noise).active():
        first, second = gradients("meta"), gradients("meta")
    assert first == second == expected


def test_a_device_takes_its_time_before_it_sends(some_noise: Tensor) -> None:
    one, other = torch.empty(100, 100, device="meta"), torch.empty(100, 100, device="meta")
    flops = 2 * 100**3
    device = Modelled(flops / 0.05, some_noise)
    began = time.monotonic()
    with device.active():
        one @ other
        device.settle()
        assert time.monotonic() - began >= 0.05
        one @ other
        asyncio.run(device.settled())
    assert time.monotonic() - began >= 0.1
    assert device.facts() == {"flops": 2 * flops, "modelled_s": 0.1, "late_s": 0.0}
    assert device.facts()["flops"] == 0


def test_work_of_two_conversations_is_done_one_after_the_other(some_noise: Tensor) -> None:
    matrix = torch.empty(100, 100, device="meta")
    device = Modelled(2 * 100**3 / 0.05, some_noise)

    async def talk() -> float:
        matrix @ matrix
        await device.settled()
        return time.monotonic()

    async def both() -> list[float]:
        return await asyncio.gather(talk(), talk())

    with device.active():
        began = time.monotonic()
        ends = asyncio.run(both())
    assert ends[1] - began >= 0.1
    assert ends[1] - ends[0] >= 0.04


def test_a_machine_that_is_slower_than_the_device_is_told(some_noise: Tensor) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    device = Modelled(1e30, some_noise, clock)
    with device.active():
        torch.empty(9, 9, device="meta") @ torch.empty(9, 9, device="meta")
    device.settle()
    assert device.facts()["late_s"] == pytest.approx(now - 1.0)


def test_what_is_sent_has_values_of_the_true_shape(some_noise: Tensor) -> None:
    device = Modelled(FAST, some_noise)
    large = len(some_noise) + 1
    sent = device.outgoing(
        {
            "weights": torch.empty(3, 4, device="meta"),
            "half": torch.empty(5, dtype=torch.bfloat16, device="meta"),
            "large": torch.empty(large, device="meta"),
            "labels": torch.empty(2, dtype=torch.int64, device="meta"),
            "seed": torch.tensor([7]),
        }
    )
    assert {name: (tuple(t.shape), t.dtype) for name, t in sent.items()} == {
        "weights": ((3, 4), torch.float32),
        "half": ((5,), torch.bfloat16),
        "large": ((large,), torch.float32),
        "labels": ((2,), torch.int64),
        "seed": ((1,), torch.int64),
    }
    assert int(sent["seed"]) == 7
    assert sent["labels"].tolist() == [0, 0]
    assert all(bool(torch.isfinite(t).all()) for t in sent.values())
    assert len(sent["weights"].unique()) == 12
    # All of a run's nodes share it.
    assert sent["weights"].data_ptr() == some_noise.data_ptr()


def test_what_arrives_loses_its_values_but_for_integers(some_noise: Tensor) -> None:
    tensors = {"weights": torch.ones(2, 3), "labels": torch.tensor([1, 2])}
    message = Message("client-1", Header("model", 1, 0), tensors, 0, 99)
    seen = Modelled(FAST, some_noise).incoming(message)
    assert seen.tensors["weights"].is_meta
    assert seen.tensors["weights"].shape == (2, 3)
    assert seen.tensors["labels"].tolist() == [1, 2]
    assert seen.message_bytes == 99
