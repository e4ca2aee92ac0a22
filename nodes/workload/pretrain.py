"""Pretrains the shipped backbone, or one of another size, on rendered glyphs, for `--model`.

`python -m nodes.workload.pretrain` makes the shipped one anew, and with `--out=FOLDER --width=192
--depth=7` and the like another. Neither ever sees a handwritten digit. On the same machine the same
seed gives the same weights.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from nodes.workload import saved, vit_checkpoints
from nodes.workload.glyphs import DIGITS, LETTERS, glyphs
from nodes.workload.models import CLASSIFIER, WEIGHTS, ModelSpec, VisionTransformer
from nodes.workload.text.model import LanguageModel

SHIPPED = WEIGHTS / "vit-glyphs.safetensors"
CHARACTERS = DIGITS + LETTERS
BATCH = 256
"""Glyphs of a step."""
PEAK_RATE = 2e-3
"""Highest learning rate of AdamW at the shipped width, less at a greater one in proportion: linear
warm-up to it, then a cosine down to zero."""
WARM_UP = 200
"""Steps."""
REPORT_EVERY = 200
"""Steps."""


def batch(spec: ModelSpec, count: int, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Images (count, 1, side, side) and labels (count,) of all characters, drawn from `seed`."""
    images, labels = glyphs(count, seed, characters=CHARACTERS, side=spec.side)
    return torch.from_numpy(images), torch.from_numpy(labels)


def train(spec: ModelSpec, steps: int, seed: int, size: int = BATCH) -> VisionTransformer:
    """A model trained for `steps` batches of `size` fresh glyphs; logs its progress."""
    torch.manual_seed(seed)
    model = VisionTransformer(spec, len(CHARACTERS))
    rate = PEAK_RATE * ModelSpec().width / spec.width
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, steps, pct_start=min(0.3, WARM_UP / steps), cycle_momentum=False
    )
    started = time.monotonic()
    for step in range(steps):
        images, labels = batch(spec, size, [seed, 1, step])
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
    facts = {"spec": msgspec.json.encode(model.spec).decode(), **facts}
    _write(out, lambda path: save_file(_backbone(model), path, metadata=facts))


def save_folder(model: VisionTransformer, folder: Path, facts: dict[str, str]) -> None:
    """Write the backbone as a folder that `transformers` reads, and `--model` therefore too."""
    # Without the format `transformers` takes none; several facts would have a new order each time,
    # and equal weights another digest.
    one = {"format": "pt"}
    weights = vit_checkpoints.renamed(_backbone(model))
    _write(folder / saved.WEIGHTS, lambda path: save_file(weights, path, metadata=one))
    described = vit_checkpoints.described(msgspec.structs.asdict(model.spec))
    described[saved.CONFIG]["pretrained"] = facts
    for name, found in described.items():
        text = json.dumps(found, indent=2) + "\n"
        _write(folder / name, functools.partial(Path.write_text, data=text))


def _backbone(model: VisionTransformer | LanguageModel) -> dict[str, Tensor]:
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(CLASSIFIER)
    }


def _write(out: Path, write: Callable[[Path], object]) -> None:
    """Have a file written whole: processes may have the old one mapped, which is never changed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    write(partial)
    # safetensors makes its files readable by their owner alone.
    partial.chmod(0o644)
    partial.replace(out)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for a model that `--model` takes; the shipped weights where there is none.",
)
@click.option("--width", type=click.IntRange(1, 4096), default=ModelSpec().width, show_default=True)
@click.option("--depth", type=click.IntRange(1, 64), default=ModelSpec().depth, show_default=True)
@click.option("--heads", type=click.IntRange(1, 64), default=ModelSpec().heads, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True)
@click.option("--batch", "size", type=click.IntRange(min=1), default=BATCH, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(
    out: Path | None,
    width: int,
    depth: int,
    heads: int,
    steps: int,
    size: int,
    seed: int,
    threads: int,
) -> None:
    """Pretrain a backbone on rendered glyphs and write its weights."""
    spec = ModelSpec(width=width, depth=depth, heads=heads)
    if width % heads:
        raise click.UsageError(f"--width {width} is no multiple of --heads {heads}")
    if out is None and spec != ModelSpec():
        raise click.UsageError("the shipped backbone has a size of its own; give another an --out")
    if out is not None and out.is_dir() and not _is_ours(out):
        raise click.UsageError(f"--out {out}: holds other things; name a new folder")
    torch.set_num_threads(threads)
    model = train(spec, steps, seed, size)
    right = accuracy(model.eval(), seed)
    told = {"seed": seed, "steps": steps, "batch": size, "accuracy": f"{right:.4f}"}
    facts = {name: str(value) for name, value in told.items()}
    if out is None:
        save(model, SHIPPED, facts)
    else:
        save_folder(model, out, facts)
    parameters = sum(tensor.numel() for tensor in _backbone(model).values())
    click.echo(
        f"accuracy on fresh glyphs {right:.4f}; wrote {out or SHIPPED}, {parameters:,} parameters"
    )


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds what `save_folder` writes at most, so that nothing is lost."""
    own = {saved.WEIGHTS, *vit_checkpoints.described(msgspec.structs.asdict(ModelSpec()))}
    return {path.name for path in folder.iterdir()} <= own


if __name__ == "__main__":
    main()
