"""Pretrains the shipped backbone on rendered glyphs: `python -m nodes.workload.pretrain`.

It never sees a handwritten digit. On the same machine the same seed gives the same weights.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from nodes.workload.glyphs import DIGITS, LETTERS, glyphs
from nodes.workload.models import WEIGHTS, ModelSpec, VisionTransformer
from nodes.workload.text.model import LanguageModel

CHARACTERS = DIGITS + LETTERS
BATCH = 256
PEAK_RATE = 2e-3
"""Highest learning rate of AdamW: linear warm-up to it, then a cosine down to zero."""
WARM_UP = 200
"""Steps."""
REPORT_EVERY = 200
"""Steps."""


def batch(spec: ModelSpec, count: int, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Images (count, 1, side, side) and labels (count,) of all characters, drawn from `seed`."""
    images, labels = glyphs(count, seed, characters=CHARACTERS, side=spec.side)
    return torch.from_numpy(images), torch.from_numpy(labels)


def train(spec: ModelSpec, steps: int, seed: int) -> VisionTransformer:
    """A model trained for `steps` batches of fresh glyphs; logs its progress."""
    torch.manual_seed(seed)
    model = VisionTransformer(spec, len(CHARACTERS))
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, steps, pct_start=min(0.3, WARM_UP / steps), cycle_momentum=False
    )
    started = time.monotonic()
    for step in range(steps):
        images, labels = batch(spec, BATCH, [seed, 1, step])
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % REPORT_EVERY == 0:
            right = (logits.argmax(1) == labels).float().mean().item()
            click.echo(
                f"step {step + 1}/{steps}  loss {loss.item():.3f}  accuracy {right:.3f}  "
                f"{time.monotonic() - started:.0f} s"
            )
    return model


@torch.inference_mode()
def accuracy(model: VisionTransformer, seed: int) -> float:
    """Share of 4,096 fresh glyphs that the model names rightly."""
    images, labels = batch(model.spec, 4096, [seed, 0])
    return float((model(images).argmax(1) == labels).float().mean())


def save(model: VisionTransformer | LanguageModel, out: Path, facts: dict[str, str]) -> None:
    """Write the backbone, without its classifier, and its architecture to a safetensors file.

    A classifier that is tied to the embedding is written as the embedding.
    """
    state = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("head.classifier.")
    }
    facts = {"spec": msgspec.json.encode(model.spec).decode(), **facts}
    out.parent.mkdir(parents=True, exist_ok=True)
    # Processes may have the old file mapped: it is replaced, never overwritten.
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    save_file(state, partial, metadata=facts)
    # safetensors makes its files readable by their owner alone.
    partial.chmod(0o644)
    partial.replace(out)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS / "vit-glyphs.safetensors")
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(out: Path, steps: int, seed: int, threads: int) -> None:
    """Pretrain the backbone on rendered glyphs and write its weights."""
    torch.set_num_threads(threads)
    model = train(ModelSpec(), steps, seed)
    right = accuracy(model.eval(), seed)
    save(model, out, {"seed": str(seed), "steps": str(steps), "accuracy": f"{right:.4f}"})
    click.echo(f"accuracy on fresh glyphs {right:.4f}; wrote {out} ({out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
