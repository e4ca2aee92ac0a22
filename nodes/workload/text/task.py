"""Task of text: a causal language model, and sequences of what its tokenizer makes of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods import Shard
from nodes.workload import models
from nodes.workload.dataset import Dataset
from nodes.workload.text import corpora
from nodes.workload.text.corpora import Corpus
from nodes.workload.text.model import LanguageModel, LanguageSpec
from nodes.workload.text.stages import CausalSpec
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig
from testbed.seeds import derive

SHORTEST = 8
"""Tokens of a sequence."""


class TextTask:
    """Language model and its texts, as ``nodes.workload.tasks.Task``."""

    sample = "sequence"
    endless = "instructions"
    least_evaluated = 100
    folder: Path | None = None

    def __init__(self, config: RunConfig, clients: int) -> None:
        """Encode the texts, but where compute is modelled: nothing is read then."""
        self._config = config
        name = config.dataset
        if config.data_path is not None:
            raise ConfigError(f"data_path = {config.data_path!r}: dataset {name} needs none")
        spec = models.read_spec(config.model)
        assert isinstance(spec, LanguageSpec | CausalSpec)
        self.outputs = spec.vocabulary
        self.length: int | None = _length(config, spec)
        self.groups = corpora.GROUPS[name]
        self.partition: str = config.partition or "natural"
        dealt = clients * config.classes_per_client
        if config.partition is None and name == "instructions" and dealt >= self.groups:
            self.partition = "pathological"
        self._corpus: Corpus | None = None
        self.train_size: int | None = None
        if name == "docs" and config.compute == "real":
            self._corpus = corpora.docs(
                models.encoder(config.model), self.length, validation=self._validation
            )
            self.train_size = len(self._corpus.train.inputs)
        self.test_size = corpora.PER_GROUP[name] * self.groups

    @property
    def _validation(self) -> bool:
        return self._config.eval_on == "validation"

    def wanted(self, clients: int) -> int | None:
        return corpora.PER_CLIENT[self._config.dataset] * clients

    def skeleton(self) -> nn.Module:
        return models.skeleton(self._config.model, self.outputs)

    def build(self) -> nn.Module:
        return models.build(self._config.model, self.outputs, seed=self._config.seed)

    def load(self, samples: int | None) -> Dataset:
        assert self.length is not None
        name, seed = self._config.dataset, self._config.seed
        if self._config.compute == "modelled":
            assert samples is not None
            zeros = np.broadcast_to(np.int64(0), (samples, self.length))
            groups = np.random.default_rng(derive(seed, "groups")).permutation(
                np.arange(samples) % self.groups
            )
            return Dataset(name, self.outputs, zeros, zeros, zeros[:0], zeros[:0], groups)
        corpus = self._corpus
        if corpus is None:
            assert samples is not None
            corpus = corpora.asked(
                models.encoder(self._config.model),
                self.length,
                samples,
                seed=seed,
                validation=self._validation,
            )
        chosen = evenly(corpus.groups, samples, seed)
        return Dataset(
            name,
            self.outputs,
            corpus.train.inputs[chosen],
            corpus.train.targets[chosen],
            corpus.test.inputs,
            corpus.test.targets,
            corpus.groups[chosen],
            corpus.truncated,
        )

    def inputs(self, rows: NDArray[Any]) -> Tensor:
        return torch.from_numpy(rows)

    def drawn(self, count: int, shape: tuple[int, ...]) -> NDArray[Any]:
        raise ValueError("public inputs that are drawn are images; take public_source=held-out")

    def small(self, device: str) -> tuple[nn.Module, Shard]:
        inputs = torch.zeros(2, 8, dtype=torch.int64, device=device)
        model = LanguageModel(LanguageSpec(vocabulary=8, depth=1)).to(device)
        return model, Shard(inputs, inputs, inputs[:0], 1)

    def fingerprint(self) -> str | None:
        if self._config.compute == "modelled":
            return None
        return corpora.fingerprint(self._config.dataset)


def _length(config: RunConfig, spec: LanguageSpec | CausalSpec) -> int:
    """Tokens of a sequence."""
    length = config.sequence_length
    if length is None:
        return min(spec.context, corpora.LENGTHS[config.dataset])
    if not SHORTEST <= length <= spec.context:
        raise ConfigError(
            f"sequence_length = {length}: must be {SHORTEST} to {spec.context}, the most tokens "
            f"that {config.model} reads at once"
        )
    return length


def evenly(groups: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """Sorted indices of ``count`` samples, as many of each group as can be, drawn from ``seed``."""
    order = np.random.default_rng(derive(seed, "training texts")).permutation(len(groups))
    by_group = order[np.argsort(groups[order], kind="stable")]
    sizes = np.bincount(groups)
    place = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_group[np.argsort(place, kind="stable")][:count])
