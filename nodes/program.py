"""What the processes of a run execute: prepared once in the zygote, then one node each."""

from types import ModuleType

import msgspec
import numpy as np
import torch

import methods
from methods import Shard
from methods.local import warm_up
from nodes import data, models
from nodes.client import participate
from nodes.server import serve
from testbed import meter
from testbed.channel import Channel
from testbed.config import RunConfig, choose, convert
from testbed.config_error import ConfigError
from testbed.topology import Node

MIN_SAMPLES = 8
"""Every client gets at least as many."""
GLYPHS_PER_CLIENT = 64


class FineTuning:
    """Federated fine-tuning of one model on one data set by one method."""

    def __init__(self, config: RunConfig, clients: int) -> None:
        """Check the run's model, data and method options.

        Raises:
            ConfigError: naming the field, the value and what would be right.
        """
        choose("method", config.method, methods.names())
        choose("model", config.model, models.names())
        choose("dataset", config.dataset, data.names())
        self._run = config
        self._clients = clients
        self._method: ModuleType = methods.load(config.method)
        self._options = convert(
            config.options, self._method.Config, f"options of method {config.method}"
        )
        self._samples = training_samples(config, clients)
        self._shards: list[np.ndarray] = []
        self._data: data.Dataset
        self._model: torch.nn.Module

    @property
    def options(self) -> dict[str, object]:
        """Every option of the method, defaults included."""
        found = msgspec.to_builtins(self._options)
        assert isinstance(found, dict)
        return found

    def prepare(self) -> None:
        torch.set_num_threads(1)
        run = self._run
        self._data = data.load(run.dataset, seed=run.seed, train_samples=self._samples)
        self._shards = data.partition(
            self._data.train_labels,
            self._clients,
            kind=run.partition,
            alpha=run.alpha,
            seed=run.seed,
            minimum=MIN_SAMPLES,
        )
        # Adapters draw their first values from the global generator.
        torch.manual_seed(run.seed)
        model = models.build(run.model, self._data.classes, seed=run.seed)
        adapt = getattr(self._method, "adapt", None)
        self._model = adapt(self._options, model) if adapt else model
        small = models.VisionTransformer(models.ModelSpec(depth=1), classes=2)
        warm_up(small, torch.from_numpy(self._data.test_images[:2]))
        meter.usage()

    def run_node(self, node: Node, channel: Channel) -> None:
        run = self._run
        if node.index == 0:
            server = self._method.Server(self._options, self._model, run.seed)
            test = (
                torch.from_numpy(self._data.test_images),
                torch.from_numpy(self._data.test_labels),
            )
            names = [f"client-{number}" for number in range(1, self._clients + 1)]
            serve(run, server, test, names, channel)
            return
        chosen = self._shards[node.index - 1]
        shard = Shard(
            torch.from_numpy(self._data.train_images[chosen]),
            torch.from_numpy(self._data.train_labels[chosen]),
        )
        # Distinct for every client of every run seed, and far from the run seed itself.
        seed = int(np.random.SeedSequence([run.seed, node.index]).generate_state(1)[0])
        client = self._method.Client(self._options, self._model, shard, seed)
        participate(run, client, node.name, len(shard.labels), channel)


def training_samples(config: RunConfig, clients: int) -> int | None:
    """How many training images to draw; None is all there are.

    Raises:
        ConfigError: the data set cannot feed so many clients.
    """
    there = data.train_size(config.dataset)
    if there is None:
        return max(2_000, GLYPHS_PER_CLIENT * clients)
    if clients * MIN_SAMPLES > there:
        raise ConfigError(
            f"clients = {clients}: {config.dataset} has {there} training images, enough for "
            f"{there // MIN_SAMPLES} clients of {MIN_SAMPLES}; take fewer clients, or "
            "--dataset=glyphs, which draws as many images as wanted"
        )
    return None
