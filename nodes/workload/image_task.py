"""Task of images: a vision transformer under a new classifier, and a data set of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods import Shard
from nodes.workload import data, models, public_images
from nodes.workload.dataset import Dataset
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

LEAST_DRAWN, PER_CLIENT = 2_000, 64
"""Glyphs in all and for each client, whichever is more."""


class ImageTask:
    """Vision transformer and its data set, as ``nodes.workload.tasks.Task``."""

    sample = "image"
    endless = "glyphs"
    least_evaluated = 1_000
    """By chance a share of so many is off by 1.6 % at most, one standard deviation."""
    metrics: tuple[str, ...] = ("accuracy", "loss")
    length: int | None = None
    told: str | None = None

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        if config.sequence_length is not None:
            raise ConfigError(
                f"sequence_length = {config.sequence_length}: dataset {config.dataset} has images, "
                "which are no sequences; leave it out"
            )
        if config.template != "auto" or config.pack:
            raise ConfigError(
                f"{'pack = true' if config.pack else f'template = {config.template!r}'}: dataset "
                f"{config.dataset} has images; leave it out"
            )
        if config.partition == "natural":
            raise ConfigError(
                f"partition = 'natural': nobody is named as the owner of an image of "
                f"{config.dataset}; take dirichlet, pathological or iid"
            )
        validation = config.eval_on == "validation"
        facts = data.facts(config.dataset)
        self.train_size: int | None = data.train_size(config.dataset, validation=validation)
        self.test_size = facts.validation_size if validation else facts.test_size
        self.groups = self.outputs = facts.classes
        self.partition: str = config.partition or "dirichlet"
        try:
            models.check_images(config.model, facts.shape[0])
        except ValueError as error:
            raise ConfigError(
                f"dataset = {config.dataset!r} does not fit model {config.model}: {error}"
            ) from error
        modelled = config.compute == "modelled"
        self.folder: Path | None = None if modelled else data.find(config.dataset, config.data_path)

    def wanted(self, clients: int) -> int | None:
        return None if self.train_size is not None else max(LEAST_DRAWN, PER_CLIENT * clients)

    def skeleton(self) -> nn.Module:
        return models.skeleton(self._config.model, self.outputs)

    def build(self) -> nn.Module:
        return models.build(self._config.model, self.outputs, seed=self._config.seed)

    def load(self, samples: int | None) -> Dataset:
        config = self._config
        if config.compute == "modelled":
            return data.outline(config.dataset, seed=config.seed, train_samples=samples)
        return data.load(
            config.dataset,
            seed=config.seed,
            train_samples=samples,
            folder=self.folder,
            validation=config.eval_on == "validation",
        )

    def inputs(self, rows: NDArray[Any]) -> Tensor:
        return torch.from_numpy(data.scaled(rows))

    def drawn(self, count: int, shape: tuple[int, ...]) -> NDArray[Any]:
        return public_images.glyphs(count, seed=self._config.seed, shape=shape)

    def small(self, device: str) -> tuple[nn.Module, Shard]:
        spec = models.ModelSpec(depth=1)
        inputs = torch.zeros(2, spec.channels, spec.side, spec.side, device=device)
        targets = torch.zeros(2, dtype=torch.int64, device=device)
        model = models.VisionTransformer(spec, classes=2).to(device)
        return model, Shard(inputs, targets, inputs[:0], 1)

    def fingerprint(self) -> str | None:
        if self._config.compute == "modelled":
            return None
        return data.fingerprint(self._config.dataset, self.folder)
