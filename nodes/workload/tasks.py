"""Task of a run, its model and its data together: of images, or of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from methods import Shard
from nodes.workload import data, models
from nodes.workload.dataset import TEXTS, Dataset
from nodes.workload.image_task import ImageTask
from nodes.workload.text.task import TextTask
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig, choose


class Task(Protocol):
    """Model and data of a run, once the two are known to fit."""

    sample: str
    """What a sample is called."""
    endless: str
    """A data set of the same kind that draws as many samples as wanted."""
    train_size: int | None
    """Samples to train on; None: as many as wanted."""
    test_size: int
    """Samples that models can be evaluated on, of the split that is asked for."""
    least_evaluated: int
    """Of these, that are taken in any case."""
    groups: int
    """Of samples, such as classes, that a partition goes by."""
    outputs: int
    """Classes, or tokens of the vocabulary."""
    metrics: tuple[str, ...]
    """Of a model's evaluation, by ``methods.shared.objective``; none where nothing is learnt."""
    partition: str
    """What is asked for, or what the data set has where nothing is."""
    length: int | None
    """Tokens of a sequence."""
    folder: Path | None
    """Where the data are read."""
    told: str | None
    """What was read of a user's files, and of any what the model does not know; None: nothing."""

    def wanted(self, clients: int) -> int | None:
        """Samples to train on, of all clients, where nobody says how many; None: all there are."""

    def skeleton(self) -> nn.Module:
        """The model on the meta device."""

    def build(self) -> nn.Module:
        """The model with its values."""

    def load(self, samples: int | None) -> Dataset:
        """The data, ``samples`` to train on, or all; shapes alone where compute is modelled."""

    def inputs(self, rows: NDArray[Any]) -> Tensor:
        """Inputs of a data set as a model takes them."""

    def drawn(self, count: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Public inputs (count, *shape) that are nobody's. ValueError where none can be drawn."""

    def small(self, device: str) -> tuple[nn.Module, Shard]:
        """A model that trains within milliseconds, with what it trains on."""

    def fingerprint(self) -> str | None:
        """SHA-256 of the data's files; None where none are read."""


def of(config: RunConfig, clients: int) -> Task:
    """The task that a run of so many clients asks for.

    Raises:
        ConfigError: naming the field, the value and what would be right.
    """
    choose("dataset", config.dataset, data.names())
    modelled = config.compute == "modelled"
    models.check(config.model, weights=not modelled)
    language, text = models.is_language(config.model), config.dataset in TEXTS
    if language != text:
        said = f"dataset = {config.dataset!r}: "
        kinds = TEXTS if language else tuple(sorted(data.FACTS))
        what = "has images" if language else "has text"
        reads = "text" if language else "images"
        raise ConfigError(
            f"{said}{what}, and model {config.model} reads {reads}; take "
            f"one of {', '.join(kinds)}, or another model"
        )
    return TextTask(config, clients) if text else ImageTask(config)
