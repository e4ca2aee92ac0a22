"""Methods in rounds on a device that is not there, beside the same on the CPU: a program.

It reads cases and writes what came of each, JSON both: by itself, since torch wants to know of a
device before a process' first step of training.
"""

import json
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import few
import standin
import torch
from copied import copied
from in_process import Network, play, shards
from torch import nn

import methods
from methods import Shard
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from nodes.accelerated_compute import Accelerated
from nodes.compute import Compute, Real
from nodes.device_tensors import DeviceTensors
from nodes.host_coder import HostCoder
from nodes.optimizers import without_compiler
from nodes.workload.models import ModelSpec, VisionTransformer

SPEC = ModelSpec(side=8, patch=4, width=8, depth=2, heads=2)
CLASSES = 3
SHAPE = (1, 8, 8)
COUNTS = {"client-1": 3, "client-2": 6}


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


def accelerated() -> Accelerated:
    return Accelerated(standin.device(), lambda: None)


def played(
    name: str, options: dict[str, Any], on_device: bool, up: str = "", down: str = ""
) -> Network:
    """Two rounds of a method, every node of which is made as a node of a run makes its own."""
    method = methods.load(name)
    config = few.config(name, options)
    data = shards(COUNTS, SHAPE, CLASSES)
    generator = torch.Generator().manual_seed(2)
    public = torch.rand(method.public_samples(config), *SHAPE, generator=generator)
    data = {name: shard._replace(public=public) for name, shard in data.items()}
    data["server"] = Shard(torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), public, 0)
    made, coders = {}, {}
    adapted = method.adapt(config, backbone())
    for number, (node, shard) in enumerate(data.items()):
        model = copied(adapted)
        coder = Coder(Chain([up] if up else []), Chain([down] if down else []), 0)
        here: AbstractContextManager[object] = nullcontext()
        if on_device:
            here = place = DeviceTensors(standin.device())
            model, shard = model.to(place.device), place.moved(shard)
            coder = HostCoder(coder, place)
        torch.manual_seed(number)
        kind = method.Server if node == "server" else method.Client
        with here:
            made[node] = kind(config, model, shard, number)
        coders[node] = coder
    server = made.pop("server")
    compute: type[Compute] | Any = accelerated if on_device else Real
    return play(server, made, COUNTS, rounds=2, compute=compute, coders=coders)


def difference(here: Network, there: Network) -> float:
    """The greatest of all values that were sent in the first message of each kind and node."""
    most = 0.0
    for way in ("up", "down", "among"):
        firsts = [
            {(s.client, s.message.kind): s.message for s in reversed(n.log) if s.way == way}
            for n in (here, there)
        ]
        for key, message in firsts[0].items():
            for name, tensor in message.tensors.items():
                if tensor.is_floating_point() and tensor.numel():
                    other = firsts[1][key].tensors[name]
                    most = max(most, float((tensor.double() - other.double()).abs().max()))
    return most


def tried(case: list[Any]) -> dict[str, Any]:
    try:
        here, there = played(*case[:2], False, *case[2:]), played(*case[:2], True, *case[2:])
    except Exception:
        return {"error": traceback.format_exc()}
    return {
        "here": here.payload(),
        "there": there.payload(),
        "missed": sorted(there.missed()),
        "difference": difference(here, there),
    }


if __name__ == "__main__":
    standin.device()
    # Views of tensors of subclasses cannot be made within it.
    torch.inference_mode = torch.no_grad  # type: ignore[misc]
    torch.set_num_threads(1)
    without_compiler()
    print(json.dumps([tried(case) for case in json.load(sys.stdin)]))
