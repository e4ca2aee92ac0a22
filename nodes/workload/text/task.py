"""Task of text: a causal language model, and sequences of what its tokenizer makes of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods import Shard
from methods.shared.objective import answers_alone
from nodes.workload import models
from nodes.workload.dataset import Dataset
from nodes.workload.text import corpora
from nodes.workload.text.corpora import Corpus
from nodes.workload.text.model import LanguageModel, LanguageSpec
from nodes.workload.text.stages import CausalSpec
from nodes.workload.text.tokens import Encoder
from testbed.config_error import ConfigError, refusing
from testbed.run.config import RunConfig
from testbed.seeds import derive

MOST_TESTED = 2_000
"""Sequences of a user's texts that are kept for evaluation where nobody says how many."""
SHORTEST, LENGTH = 8, 512
"""Tokens of a sequence at least, and of a user's texts where nobody says."""


class TextTask:
    """Language model and its texts, as ``nodes.workload.tasks.Task``."""

    sample = "sequence"
    endless = "instructions"
    least_evaluated = 100
    folder: Path | None = None

    def __init__(self, config: RunConfig, clients: int) -> None:
        """Read and encode the texts, but where compute is modelled: nothing is read then."""
        self._config = config
        name = config.dataset
        spec = models.read_spec(config.model)
        assert isinstance(spec, LanguageSpec | CausalSpec)
        self.outputs = spec.vocabulary
        length = _length(config, spec)
        self.length: int | None = length
        _check_fields(config)
        self._corpus: Corpus | None = None
        self.train_size: int | None = None
        self.told: str | None = None
        self._digest = corpora.fingerprint(name)
        encoder = None if config.compute == "modelled" else models.encoder(config.model)
        if encoder is not None and name != "instructions":
            if name == "docs":
                with refusing(f"model = {config.model!r}"):
                    corpus = corpora.docs(encoder, length, validation=self._validation)
            else:
                corpus, self._digest = _of_user(config, encoder, length)
            self._corpus, self.told = corpus, corpus.told
            self.train_size = len(corpus.train.inputs)
            self.groups = int(corpus.groups.max()) + 1
            self.test_size = len(corpus.test.inputs)
        else:
            self.groups = corpora.GROUPS.get(name, clients)
            self.test_size = corpora.PER_GROUP.get(name, 1) * self.groups
            # They are drawn later; what the model does not read of them is known before.
            self.told = None if encoder is None else corpora.asked_told(encoder)
        exact = self._corpus is None or answers_alone(torch.from_numpy(self._corpus.test.targets))
        words = ("exact_match",) if exact else ()
        self.metrics: tuple[str, ...] = ("accuracy", "loss", "perplexity", *words)
        dealt = clients * config.classes_per_client
        own = "natural" if self.groups > 1 else "iid"
        if name == "instructions" and dealt >= self.groups:
            own = "pathological"
        self.partition: str = config.partition or own

    @property
    def _validation(self) -> bool:
        return self._config.eval_on == "validation"

    def wanted(self, clients: int) -> int | None:
        each = corpora.PER_CLIENT.get(self._config.dataset)
        return None if each is None else each * clients

    def skeleton(self) -> nn.Module:
        return models.skeleton(self._config.model, self.outputs)

    def build(self) -> nn.Module:
        return models.build(self._config.model, self.outputs, seed=self._config.seed)

    def load(self, samples: int | None) -> Dataset:
        name, seed = self._config.dataset, self._config.seed
        assert self.length is not None
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
            encoder = models.encoder(self._config.model)
            with refusing(f"sequence_length = {self.length}"):
                corpus = corpora.asked(
                    encoder, self.length, samples, seed=seed, validation=self._validation
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
        return self._digest


def _check_fields(config: RunConfig) -> None:
    """Raises ConfigError where a field is for texts of a user's own, or lacks for them."""
    of_users = config.dataset == "text"
    if of_users and config.data_path is None and config.compute == "real":
        raise ConfigError(
            "dataset = 'text': are texts of your own; say where by --data-path: a file, a folder "
            "or a repository of the Hugging Face hub"
        )
    given = {
        "data_path": config.data_path,
        "template": None if config.template == "auto" else config.template,
        "pack": config.pack or None,
    }
    for field, value in given.items():
        if value is not None and not of_users:
            raise ConfigError(
                f"{field} = {value!r}: dataset {config.dataset} has texts of its own, as they are; "
                "leave it out, or take --dataset=text"
            )


def _of_user(config: RunConfig, encoder: Encoder, length: int) -> tuple[Corpus, str]:
    """Texts of a user, and the fingerprint of their files."""
    # Their readers are not needed by others.
    from nodes.workload.text import texts

    assert config.data_path is not None
    with refusing("dataset = 'text'"):
        found = texts.load(
            config.data_path,
            encoder,
            length,
            seed=config.seed,
            train_samples=config.train_samples,
            test_samples=config.eval_samples or MOST_TESTED,
            validation=config.eval_on == "validation",
            template=config.template,
            pack=config.pack,
        )
    said = f"{found.records:,} records, by {found.columns}"
    if found.examples:
        said += (
            f"; {found.truncated:,} of {found.examples:,} dialogues are longer than {length} "
            f"tokens and were cut ({found.truncated_share:.1%})"
        )
    said += "".join(f"; {count:,} left out: {why}" for why, count in found.left_out.items())
    said += found.lost.told()
    if found.shared:
        said += f"; {found.shared:,} of the test's records are trained on too"
    if found.left_alone:
        said += f"; not read: {', '.join(found.left_alone)}"
    return Corpus(found.train, found.groups, found.test, said), found.fingerprint


def _length(config: RunConfig, spec: LanguageSpec | CausalSpec) -> int:
    """Tokens of a sequence."""
    length = config.sequence_length
    if length is None:
        usual = corpora.LENGTHS.get(config.dataset, LENGTH)
        # Another tokenizer and template may take several times as many as the shipped ones.
        return min(spec.context, usual if isinstance(spec, LanguageSpec) else max(usual, 128))
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
