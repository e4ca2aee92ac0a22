"""Accelerators: which node computes where, what is refused, and what waiting for a device is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from methods import Shard
from nodes import accelerated_compute, accelerators
from nodes.accelerated_compute import Accelerated
from nodes.accelerators import Found
from nodes.checkpoint import Snapshot
from nodes.device_tensors import DeviceTensors
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

TWO = Found(["one GPU", "another GPU"])


def places(found: Found = TWO, clients: int = 4, **fields: Any) -> list[str | None]:
    return accelerators.places(RunConfig(**fields), clients, lambda: found)


def test_nodes_are_dealt_to_the_devices_in_turn() -> None:
    assert places() == [None] * 5
    assert places(accelerator="cuda") == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert places(accelerator="cuda:3,cpu:1") == [None, "cuda:0", "cuda:1", "cuda:0", None]
    mixed = places(accelerator="cpu:3,cuda:1", server_accelerator="cuda")
    assert mixed == ["cuda:0", None, None, None, "cuda:1"]
    assert places(accelerator="cuda", server_accelerator="cpu")[:2] == [None, "cuda:0"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"accelerator": "cudo"}, ["accelerator 'cudo'", "did you mean cuda", "cuda:12,cpu:8"]),
        ({"accelerator": "cuda:0"}, ["accelerator 'cuda:0'", "as cuda:12"]),
        ({"accelerator": "cuda:2,cpu:1"}, ["is for 3 clients, the run has 4"]),
        ({"accelerator": "cuda", "compute": "modelled"}, ["compute = 'modelled'"]),
        ({"accelerator": "cuda:1,cpu:3", "device_class": "phone"}, ["device_class = 'phone'"]),
        (
            {"server_accelerator": "cuda", "server_device_class": "server"},
            ["server_accelerator = 'cuda'", "server_device_class = 'server'"],
        ),
        ({"accelerator": "cuda", "client_memory_mb": 100.0}, ["client_memory_mb = 100.0"]),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        places(**fields)
    assert all(word in str(refused.value) for word in words)


def test_without_a_device_a_run_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="accelerator = 'cuda': no GPU at all; take"):
        places(Found(reason="no GPU at all"), accelerator="cuda")


def test_where_torch_has_no_cuda_nobody_looks_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    accelerators.looked.cache_clear()
    try:
        assert "is built without CUDA" in str(accelerators.looked().reason)
    finally:
        accelerators.looked.cache_clear()


@pytest.mark.parametrize("kind", ["found", "none", "broken", "killed"])
def test_a_process_of_its_own_looks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a torch.cuda that is not: what that does must show here as an answer alone."""

    def init() -> None:
        if kind == "broken":
            raise RuntimeError("CUDA driver is too old\nmore")
        if kind == "killed":
            raise SystemExit(3)
        here.append("initialised")

    here: list[str] = []
    fake = SimpleNamespace(
        init=init,
        device_count=lambda: 2 if kind == "found" else 0,
        get_device_name=lambda number: f"GPU {number}",
        is_initialized=lambda: False,
    )
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: None)
    accelerators.looked.cache_clear()
    try:
        found = accelerators.looked()
    finally:
        accelerators.looked.cache_clear()
    assert here == []
    if kind == "found":
        assert found == Found(["GPU 0", "GPU 1"])
    else:
        says = {"none": "has no CUDA device", "broken": "is too old)", "killed": "exited with 3"}
        assert says[kind] in str(found.reason) and found.devices == []


def test_a_run_without_accelerators_never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "looked", lambda: pytest.fail("it looked"))
    accelerators.places(RunConfig(), 3)


def test_waiting_for_the_device_is_computing_and_nothing_else_is() -> None:
    """The device takes 2 s, of which the thread is on a core for half a second."""
    at = SimpleNamespace(wall=0.0, cpu=0.0, pending=0.0)

    def synchronize() -> None:
        at.wall, at.cpu = at.wall + at.pending, at.cpu + at.pending / 4
        at.pending = 0.0

    compute = Accelerated(
        torch.device("cpu"),
        synchronize,
        now=lambda: at.wall,
        cpu=lambda: at.cpu,
        waited=lambda: 0.0,
        wall=lambda: at.wall,
    )
    at.wall += 10.0  # It waits for a message.
    compute.rest()
    at.wall, at.cpu, at.pending = at.wall + 1.0, at.cpu + 1.0, 2.0
    compute.settle()
    assert compute.facts() == {"cpu_s": 3.0, "device_s": 3.0, "late_s": 0.0}
    compute.settle()
    assert compute.facts()["cpu_s"] == 0.0


def test_memory_of_a_device_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerated_compute.memory() == {}
    most = [5_000_000]
    fake = SimpleNamespace(
        is_initialized=lambda: True,
        max_memory_allocated=lambda: most[0],
        reset_peak_memory_stats=most.clear,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    assert accelerated_compute.memory() == {"peak_accelerator_mb": 5.0}
    assert most == []


def test_what_a_file_of_a_node_makes_stays_on_the_host() -> None:
    """As a message's tensors and an optimizer's steps: the mode is for methods' code alone."""
    with DeviceTensors(torch.device("meta")):
        made = torch.zeros(2), torch.rand(2), torch.tensor([1.0])
        weights = nn.Parameter(made[0])
        optimizer = torch.optim.AdamW([weights])
        weights.sum().backward()
        optimizer.step()
    assert {each.device.type for each in made} == {"cpu"}
    assert optimizer.state[weights]["step"].device.type == "cpu"


class Holder:
    def __init__(self, config: object, shard: Shard) -> None:
        self.held = torch.zeros(2)


def test_a_state_without_a_word_of_a_device_is_the_hosts() -> None:
    """So states of older versions, and of runs without accelerators, are as they were."""
    shard = Shard(torch.empty(1, 2), torch.empty(1), torch.empty(0, 2), 1)
    snapshot = Snapshot(Holder(None, shard), None, shard)
    _, told = snapshot.take()
    assert told["root"]["object"][1]["held"] == {"tensor": [".held", False]}


def test_files_of_the_driver_are_those_of_dev() -> None:
    assert all(path.parent == Path("/dev") for path in accelerators.device_files())
    assert msgspec.json.decode(msgspec.json.encode(TWO), type=Found) == TWO
