"""Pretrains the shipped language model: `python -m nodes.workload.text.pretrain WHEELS`.

On the documentation of Python packages, read from their wheels and the standard library, none of
them in the `docs` data set, and on instructions of other families than the `instructions` data set
asks; one sequence in ten is of these. On the same machine the same seed gives the same weights.
"""

from __future__ import annotations

import itertools
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from nodes.workload.models import WEIGHTS
from nodes.workload.pretrain import save
from nodes.workload.text import instructions
from nodes.workload.text.freeze_docs import of_files, of_wheel
from nodes.workload.text.model import LanguageModel, LanguageSpec
from nodes.workload.text.tokens import BEGIN, END, SPECIAL, dialogue
from testbed.seeds import derive

BATCH, OF_INSTRUCTIONS = 32, 3
"""Sequences of a step, and how many of them are instructions."""
PEAK_RATE = 4e-3
"""Highest learning rate of AdamW: linear warm-up to it, held, then a linear way down to zero."""
WARM_UP, DECAY = 200, 0.3
"""Steps, and the share of all steps in which the rate goes down."""
REPORT_EVERY = 100
"""Steps."""
HELD = 200
"""Texts that the model is evaluated on and never sees."""
EXAMPLES = 4_000
"""Instructions of each of the families that are the model's to know."""


def documents(wheels: tuple[Path, ...]) -> list[str]:
    """Texts of packages and of the standard library, in a drawn order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    found = of_files({path.relative_to(library).as_posix(): path.read_bytes() for path in files})
    groups = [*found.values(), *(texts for wheel in wheels for texts in of_wheel(wheel).values())]
    texts = [text for group in groups for text in group]
    random.Random("documents").shuffle(texts)
    return texts


def tokenizer_of(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE, Sennrich et al., arXiv 1508.07909, that can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.uint16]:
    """Ids of texts one after another, END after each."""
    end = tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch(texts)
    return np.array([i for each in encoded for i in (*each.ids, end)], np.uint16)


def asked_of(seed: int) -> list[str]:
    """Instructions of these families with their answers, in a drawn order."""
    drawn = derive(seed, "instructions")
    examples = [
        example
        for family in instructions.PRETRAINED
        for example in instructions.draw(family, EXAMPLES, drawn)
    ]
    random.Random(drawn).shuffle(examples)
    return [f"{dialogue(prompt)}{answer}" for prompt, answer in examples]


def batches(
    text: NDArray[np.uint16], asked: NDArray[np.uint16], length: int, seed: int
) -> Iterator[Tensor]:
    """Ids (BATCH, length + 1) of step after step, without an end."""
    for step in itertools.count():
        draw = np.random.default_rng(derive(seed, "batch", step))
        rows = [
            source[place : place + length + 1]
            for source, count in ((text, BATCH - OF_INSTRUCTIONS), (asked, OF_INSTRUCTIONS))
            for place in draw.integers(0, len(source) - length - 1, count)
        ]
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def rate(step: int, steps: int) -> float:
    """Learning rate of a step, from 0."""
    decaying = max(1.0, DECAY * steps)
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / decaying)


def fresh(spec: LanguageSpec, seed: int) -> LanguageModel:
    """A model with its first weights: matrices normal with deviation 0.02."""
    torch.manual_seed(seed)
    model = LanguageModel(spec)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    return model


def train(
    model: LanguageModel,
    text: NDArray[np.uint16],
    asked: NDArray[np.uint16],
    *,
    steps: int,
    seed: int,
) -> None:
    """Train a model in place for ``steps`` batches; logs its progress."""
    optimiser = torch.optim.AdamW(
        model.parameters(), PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    started, mean = time.monotonic(), math.nan
    drawn = batches(text, asked, model.spec.context, seed)
    for step, ids in zip(range(steps), drawn, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        loss = loss_of(model, ids)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            click.echo(
                f"step {step + 1}/{steps}  loss {mean:.3f}  {time.monotonic() - started:.0f} s"
            )


@torch.inference_mode()
def perplexity_of(model: LanguageModel, ids: NDArray[np.uint16]) -> float:
    """Perplexity of ids in whole sequences of the model's context."""
    length = model.spec.context
    rows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length].astype(np.int64)
    losses = [loss_of(model, part) for part in torch.from_numpy(rows).split(BATCH)]
    return math.exp(torch.stack(losses).mean())


def loss_of(model: LanguageModel, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ids (batch, length + 1), each from those before it."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@click.command()
@click.argument("wheels", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS / "llama-docs.safetensors")
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(wheels: tuple[Path, ...], out: Path, steps: int, seed: int, threads: int) -> None:
    """Pretrain the language model on documentation in WHEELS; write it and its tokenizer."""
    torch.set_num_threads(threads)
    spec = LanguageSpec()
    texts = documents(wheels)
    tokenizer = tokenizer_of(texts, spec.vocabulary)
    tokenizer.save(str(out.with_suffix(".tokenizer.json")))
    held, text = texts[:HELD], texts[HELD:]
    numbers = [ids_of(tokenizer, [f"{BEGIN}{each}" for each in part]) for part in (text, held)]
    asked = ids_of(tokenizer, asked_of(seed))
    click.echo(f"{len(numbers[0]):,} ids of documentation, {len(asked):,} of instructions")
    model = fresh(spec, seed)
    train(model, numbers[0], asked, steps=steps, seed=seed)
    perplexity = perplexity_of(model.eval(), numbers[1])
    save(model, out, {"seed": str(seed), "steps": str(steps), "perplexity": f"{perplexity:.3f}"})
    click.echo(f"perplexity of {HELD} held-out texts {perplexity:.3f}; wrote {out}")


if __name__ == "__main__":
    main()
