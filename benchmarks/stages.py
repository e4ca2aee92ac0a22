"""Payload stages: CPU of encoding and decoding a MB, against the plainest form of the same step.

    python benchmarks/stages.py [--megabytes=4] [--repeat=20] [STAGE ...]

A MB is 10^6 bytes of what goes in: float32 values such as an update has, all of one matrix, or
where a stage packs bytes, 8-bit codes of these. The plain form is what numpy, torch or zlib have
for the step in a few lines, for finite values and with no check of what arrives. A stage without
one stands beside a copy of the values, or if it packs bytes beside zlib. Both have one thread and
take turns; CPU is the least of all turns, and the ratio ours / plain.
"""

import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import numpy as np
import table
import torch
from torch import Tensor

from methods import payload
from methods.payload import PACK, Part

SEED = 1


ROWS = 500


class Plain(NamedTuple):
    what: str
    encode: Callable[[Tensor], Any]
    """float32 (ROWS, n / ROWS), or of packers uint8 (n,)."""
    decode: Callable[[Any, int], Any]
    """The second is how many values there are."""


def cossgd(values: Tensor) -> tuple[np.ndarray, np.float64, np.float64]:
    x = values.numpy().reshape(-1).astype(np.float64)
    norm = np.linalg.norm(x)
    angles = np.arccos(x / norm)
    low = angles.min()
    codes = np.rint((angles - low) / (np.pi - 2 * low) * 15).astype(np.uint8).reshape(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], norm, low


def uncossgd(made: tuple[np.ndarray, np.float64, np.float64], count: int) -> np.ndarray:
    pairs, norm, low = made
    codes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)
    return np.cos(low + codes.astype(np.float32) / 15 * (np.pi - 2 * low)) * norm


def int8(values: Tensor) -> tuple[np.ndarray, np.float32]:
    x = values.numpy()
    scale = np.abs(x).max() / np.float32(127)
    return np.rint(x / scale).astype(np.int8), scale


def qsgd(values: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = values.numpy().reshape(-1)[: values.numel() // 512 * 512].reshape(-1, 512)
    scales = np.abs(rows).max(axis=1, keepdims=True)
    drawn = np.random.default_rng(SEED).random(rows.shape, np.float32)
    levels = np.floor(np.abs(rows) / scales * 7 + drawn).astype(np.uint8).reshape(-1, 2)
    return levels[:, 0] << 4 | levels[:, 1], np.packbits(rows < 0), scales


def unqsgd(made: tuple[np.ndarray, np.ndarray, np.ndarray], count: int) -> np.ndarray:
    pairs, negative, scales = made
    levels = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1, 512)
    signs = np.where(np.unpackbits(negative).reshape(-1, 512), np.float32(-1), np.float32(1))
    return levels * signs * (scales / 7)


def powersgd(values: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.linalg.qr(values @ torch.randn(values.shape[1], 4)).Q
    return p, values.T @ p


def drawn(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[: count // 10]


def scattered(places: Tensor, values: Tensor, count: int) -> Tensor:
    return torch.zeros(count).index_put_((places,), values)


def topk(values: Tensor) -> tuple[Tensor, Tensor]:
    flat = values.view(-1)
    places = flat.abs().topk(len(flat) // 100).indices
    return places, flat[places]


def stc(values: Tensor) -> tuple[np.ndarray, np.ndarray, np.float32]:
    x = values.numpy().reshape(-1)
    taken = np.zeros(len(x), np.bool_)
    taken[np.argpartition(np.abs(x), -(len(x) // 100))[-(len(x) // 100) :]] = True
    return np.packbits(taken), np.packbits(x[taken] < 0), np.abs(x[taken]).mean()


def unstc(made: tuple[np.ndarray, np.ndarray, np.float32], count: int) -> np.ndarray:
    places = np.unpackbits(made[0], count=count).nonzero()[0]
    found = np.zeros(count, np.float32)
    found[places] = np.where(np.unpackbits(made[1], count=len(places)), -made[2], made[2])
    return found


def sign(values: Tensor) -> tuple[np.ndarray, np.float32]:
    x = values.numpy()
    return np.packbits(x < 0), np.abs(x).mean()


def unsign(made: tuple[np.ndarray, np.float32], count: int) -> np.ndarray:
    return np.where(np.unpackbits(made[0], count=count), -made[1], made[1])


ZLIB = Plain(
    "zlib, unshuffled",
    lambda x: zlib.compress(x.numpy(), 6),
    lambda made, n: zlib.decompress(made),
)
COPY = Plain("a copy", lambda x: x.clone(), lambda made, n: made.clone())
PLAIN = {
    "bf16": Plain("torch's cast", lambda x: x.to(torch.bfloat16), lambda made, n: made.float()),
    "fp16": Plain("torch's cast", lambda x: x.to(torch.float16), lambda made, n: made.float()),
    "int8": Plain("numpy", int8, lambda made, n: made[0] * made[1]),
    "qsgd": Plain("numpy", qsgd, unqsgd),
    "sign": Plain("numpy", sign, unsign),
    "cossgd": Plain("numpy", cossgd, uncossgd),
    "powersgd": Plain("torch", powersgd, lambda made, n: made[0] @ made[1].T),
    "randomk": Plain(
        "torch",
        lambda x: x.view(-1)[drawn(x.numel())],
        lambda made, n: scattered(drawn(n), made, n),
    ),
    "stc": Plain("numpy, a bitmap", stc, unstc),
    "topk": Plain("torch", topk, lambda made, n: scattered(*made, n)),
}


def quickest(steps: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """CPU seconds of each, which take turns."""
    found = dict.fromkeys(steps, float("inf"))
    for _ in range(repeat):
        for name, step in steps.items():
            began = time.process_time()
            step()
            found[name] = min(found[name], time.process_time() - began)
    return found


def measured(text: str, values: Tensor, repeat: int) -> tuple[Plain, int, int, dict[str, float]]:
    """Plain form, bytes in and out, and CPU seconds by step."""
    stage: Any = payload.load(text)
    plain = PLAIN.get(text.partition(":")[0], ZLIB if stage.order == PACK else COPY)
    if stage.order == PACK:
        codes = (values.view(-1) / values.abs().max() * 127).round().to(torch.int8)
        values = codes.view(torch.uint8)
        packed, layout = stage.pack([values]), [Part(values.dtype, len(values))]
        out = len(packed)
        ours = (lambda: stage.pack([values]), lambda: stage.unpack(packed, layout))
    else:
        parts = stage.encode(values, SEED, {})
        out = sum(each.nbytes for each in parts.values())
        shape = values.shape
        ours = (
            lambda: stage.encode(values, SEED, {}),
            lambda: stage.decode(parts, shape, SEED),
        )
    made, count = plain.encode(values), values.numel()
    steps = {
        "encode": ours[0],
        "decode": ours[1],
        "plain encode": lambda: plain.encode(values),
        "plain decode": lambda: plain.decode(made, count),
    }
    return plain, values.nbytes, out, quickest(steps, repeat)


@click.command()
@click.argument("stages", nargs=-1)
@click.option("--megabytes", default=4.0, show_default=True, type=click.FloatRange(0.01, 1000))
@click.option("--repeat", default=20, show_default=True, type=click.IntRange(1, 1000))
def main(stages: tuple[str, ...], megabytes: float, repeat: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    values = 1e-3 * torch.randn(ROWS, round(megabytes * 1e6 / 4 / ROWS), generator=generator)
    click.echo(f"{'CPU, ms a MB':20} {'out / in':>8} {'':6} {'ours':>8} {'plain':>8} {'ratio':>6}")
    for text in stages or payload.names():
        plain, size, out, seconds = measured(text, values, repeat)
        for way in ("encode", "decode"):
            ours, theirs = (1e9 * seconds[name] / size for name in (way, f"plain {way}"))
            click.echo(
                f"{text:20} {out / size:8.3f} {way:6} {ours:8.3f} {theirs:8.3f} "
                f"{ours / theirs:6.2f}  {plain.what}"
            )
            what = f"stage {text}, {way}: CPU a MB"
            table.add(what, "ms", ours, plain.what, theirs)


if __name__ == "__main__":
    main()
