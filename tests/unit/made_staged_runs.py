"""Runs of small methods in process, with payload stages for what is sent."""

from functools import cache
from typing import Any

import few
import torch
from copied import copied
from in_process import Network, play, shards
from made_text import TEXT_ALONE, language_model, nobody, text_shards
from torch import nn

import methods
from methods import Shard
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from methods.shared.local_training import trainable_state
from nodes.workload.models import ModelSpec, VisionTransformer

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=8, depth=2, heads=2)
SAMPLES = {"client-1": 8, "client-2": 9, "client-3": 10}
OPTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedpeft": {"rank": 2},
    "fedbuff": {"rank": 2, "buffer_size": 2},
    "fedprox": {"rank": 2},
    "fedavgm": {"rank": 2},
    "fedadam": {"rank": 2},
    "diloco": {"rank": 2, "local_steps": 3},
    "feddf": {"rank": 2, "public_samples": 12, "distill_epochs": 1},
    "flora": {"ranks": "3,1,2"},
    "hetlora": {"ranks": "3,1,2"},
    "flexlora": {"ranks": "3,1,2"},
    "fedsp": {"align_steps": 2, "local_steps": 2, "batch_size": 4, "prefix_length": 8},
    "feddm": {"iterations": 2, "server_epochs": 2},
    "fedptr": {"rank": 2, "match_steps": 2, "unrolled_steps": 2},
    "fedmd": {
        **{"depths": "1,2", "public_batch": 8, "public_samples": 12},
        **{"first_epochs": 2, "local_epochs": 1},
    },
    "kdfft": {"public_batch": 8, "public_samples": 12, "local_epochs": 1, "student_epochs": 1},
    "split": {},
    "splitfed": {},
    "salientgrads": {"local_epochs": 1},
    "fedlite": {},
    "sfprompt": {"prompt_length": 2, "local_epochs": 1},
}


def plain() -> nn.Module:
    return copied(_made())


@cache
def _made() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(SPEC, CLASSES)


class Run:
    """A server and its clients, of three the first, with chains for what they send."""

    def __init__(
        self, name: str, up: list[str], down: list[str], clients: int = 3, **more: Any
    ) -> None:
        method = methods.load(name)
        given = {**OPTIONS[name], **more}
        self.options = few.config(name, given)
        samples = dict(list(SAMPLES.items())[:clients])
        if name in TEXT_ALONE:
            self.data, at_server = text_shards(samples), nobody()
        else:
            self.data = {
                client: shard._replace(public=torch.rand(12, 1, 4, 4, generator=_draw()))
                for client, shard in shards(samples, (1, 4, 4), CLASSES).items()
            }
            none = torch.empty(0, 1, 4, 4)
            public = self.data["client-1"].public
            at_server = Shard(none, torch.empty(0, dtype=torch.int64), public, 0)
        whole = language_model() if name in TEXT_ALONE else plain()
        torch.manual_seed(1)
        model = method.adapt(self.options, whole)
        self.server = method.Server(self.options, copied(model), at_server, 0)
        self.coders = {node: Coder(Chain(up), Chain(down), 7) for node in ("server", *self.data)}
        self.server.stages = self.coders["server"].lasting
        self.clients = {}
        for client, shard in self.data.items():
            own = method.Client(self.options, copied(model), shard, shard.client)
            own.stages = self.coders[client].lasting
            self.clients[client] = own
        self.nodes = {"server": (self.server, at_server)}
        self.nodes |= {name: (self.clients[name], self.data[name]) for name in self.clients}

    def play(self, rounds: int, first: int = 1, per_round: int | None = None) -> Network:
        for name, (node, _) in self.nodes.items():
            self.coders[name].lasting = node.stages
        more = {"first": first, "per_round": per_round, "coders": self.coders}
        return play(self.server, self.clients, SAMPLES, rounds, **more)

    def state(self) -> dict[str, torch.Tensor]:
        model = self.server.model if self.server.model is not None else nn.Module()
        return {name: each.clone() for name, each in trainable_state(model).items()}


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def staged(network: Network, way: str) -> list[list[Any]]:
    at_server = [e for e in network.events if e["event"] == "staged"]
    ours = [e for e in at_server if (e["peer"] == "server") == (way == "down")]
    return [e["sizes"] for e in ours]
