"""Rendered font glyphs, distorted at random: what the backbone is pretrained on, and a data set.

Each character of each face is drawn once and kept as a signed distance to its outline. One batched
warp of those distances then gives position, slant and wobble; adding to them thickens the stroke,
and the slope of the step from paper to ink is the blur. No image is drawn by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]

DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghnqrt"
"""Letters that tight cropping leaves distinct: no c beside C, and no I, l, O beside 1 and 0."""

FONTS = Path(__file__).parent / "fonts"
"""DejaVu 2.37, whose outlines and hints of DIGITS and LETTERS these files hold, and no others."""
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
)

GRID = 64
"""Side of a distance map, samples."""
SPAN = 1.3
"""A distance map covers -SPAN..SPAN both ways; the glyph's height covers -1..1."""
KNOTS = 4
"""Side of the coarse grid of random shifts that bends a glyph."""
CHUNK = 512
"""Images made at once: small enough to stay in cache."""


@dataclass(frozen=True)
class Distortion:
    """How far glyphs stray from the font. Lengths are in half heights of the image."""

    rotation: float = 0.12
    """Standard deviation, radians."""
    slant: float = 0.2
    """Standard deviation of the horizontal shear."""
    stretch: float = 0.2
    """Standard deviation of the logarithm of width over height."""
    size: tuple[float, float] = (0.85, 1.05)
    """Range of the glyph's height over the image's."""
    shift: float = 0.06
    """Standard deviation of the displacement, each way."""
    bend: float = 0.12
    """Standard deviation of the smooth random displacement of points of the glyph."""
    stroke: tuple[float, float] = (0.12, 0.36)
    """Range of half the stroke's thickness."""
    blur: tuple[float, float] = (0.015, 0.06)
    """Range of the distance over which ink fades into paper."""
    ink: tuple[float, float] = (0.8, 1.0)
    """Range of the brightness of full ink."""
    noise: float = 0.04
    """Standard deviation of the noise added to each pixel."""
    coarse: float = 0.8
    """Share of images that are reduced to half the resolution and 17 grey levels."""


STRONG = Distortion(
    rotation=0.25, slant=0.3, shift=0.1, bend=0.18, stroke=(0.1, 0.3), noise=0.1, coarse=0.0
)
"""What the data set uses, and pretraining does not."""


def glyphs(
    count: int,
    seed: int | Sequence[int],
    *,
    characters: str,
    distortion: Distortion = Distortion(),
    side: int = 16,
) -> tuple[Floats, NDArray[np.int64]]:
    """Images (count, 1, side, side) in 0..1, ink high, and the index in `characters` of each.

    `characters` are of DIGITS and LETTERS, `side` is even. The same arguments give the same images.
    ValueError for no or other characters, an odd side or a negative count.
    """
    if not characters or count < 0 or side < 2 or side % 2:
        raise ValueError(
            "glyphs need a character, a count of at least 0 and an even side, "
            f"not {characters!r}, {count} and {side}"
        )
    if others := set(characters) - set(DIGITS + LETTERS):
        raise ValueError(f"the fonts here lack {''.join(sorted(others))!r}; take {DIGITS}{LETTERS}")
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(characters), size=count)
    images = np.empty((count, 1, side, side), dtype=np.float32)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        images[chunk] = _distort(characters, labels[chunk], side, distortion, rng)
    return images, labels


def _distort(
    characters: str,
    labels: NDArray[np.int64],
    side: int,
    distortion: Distortion,
    rng: np.random.Generator,
) -> Floats:
    """One chunk of images, (n, 1, side, side)."""
    import torch
    from torch.nn import functional as F

    count = len(labels)
    maps, halves = atlas(characters)
    faces = rng.integers(len(FACES), size=count)
    thicken = _between(rng, distortion.stroke, count) - halves[labels, faces]
    # A thicker stroke also sticks out further, and the glyph must still fit its image.
    zoom = (1 + thicken) / _between(rng, distortion.size, count)
    where = _coordinates(side * 2, zoom, distortion, rng)
    distances = F.grid_sample(
        torch.from_numpy(maps[labels, faces][:, None]),
        where / SPAN,
        padding_mode="border",
        align_corners=False,
    )
    blur = _between(rng, distortion.blur, count)
    steepness = torch.from_numpy((1 / blur).astype(np.float32))[:, None, None, None]
    offset = torch.from_numpy(thicken)[:, None, None, None]
    ink = torch.from_numpy(_between(rng, distortion.ink, count))[:, None, None, None]
    images = F.avg_pool2d(distances.add_(offset).mul_(steepness).sigmoid_().mul_(ink), 2).numpy()
    images += distortion.noise * rng.standard_normal(images.shape, dtype=np.float32)
    coarse = rng.random(count) < distortion.coarse
    images[coarse] = _coarsen(images[coarse])
    return images.clip(0, 1)


def _coordinates(
    side: int, zoom: Floats, distortion: Distortion, rng: np.random.Generator
) -> Tensor:
    """Places in the glyph that pixels look at, (n, side, side, 2), x and y: affine, then bent."""
    import torch

    count = len(zoom)
    angle, slant, stretch = rng.standard_normal((3, count), dtype=np.float32)
    angle *= distortion.rotation
    wide = zoom * np.exp(distortion.stretch * stretch)
    slant *= distortion.slant
    cos, sin = np.cos(angle), np.sin(angle)
    shift = distortion.shift * rng.standard_normal((count, 2), dtype=np.float32)
    across = np.stack([wide * (cos + slant * sin), wide * (slant * cos - sin), shift[:, 0]])
    down = np.stack([zoom * sin, zoom * cos, shift[:, 1]])
    affine = np.stack([across, down], axis=-1)
    knots = rng.standard_normal((KNOTS * KNOTS, count, 2), dtype=np.float32)
    weights = np.concatenate([affine, distortion.bend * knots]).astype(np.float32)
    # Every coordinate is linear in these numbers, so one matrix product serves all images.
    product = torch.from_numpy(_basis(side)) @ torch.from_numpy(weights).flatten(1)
    return product.view(side, side, count, 2).permute(2, 0, 1, 3)


@lru_cache(maxsize=4)
def _basis(side: int) -> Floats:
    """Rows of (x, y, 1, influence of each knot) for each pixel, (side * side, 3 + KNOTS**2)."""
    axis = (np.arange(side) + 0.5) * (2 / side) - 1
    knots = np.linspace(-1, 1, KNOTS)
    near = np.exp(-((axis[:, None] - knots) ** 2) / (2 * (1 / KNOTS) ** 2))
    near /= near.sum(axis=1, keepdims=True)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    influence = near[:, None, :, None] * near[None, :, None, :]
    flat = influence.reshape(side * side, -1)
    affine = np.stack([x.ravel(), y.ravel(), np.ones(side * side)], axis=1)
    return np.concatenate([affine, flat], axis=1).astype(np.float32)


def _coarsen(images: Floats) -> Floats:
    """Half the resolution in 17 levels, enlarged again: how scikit-learn's digits look."""
    count, _, side, _ = images.shape
    squares = images.reshape(count, 1, side // 2, 2, side // 2, 2)
    small: Floats = np.round(squares.mean(axis=(3, 5)) * 16) / 16
    return small.repeat(2, axis=-2).repeat(2, axis=-1)


def _between(rng: np.random.Generator, ends: tuple[float, float], count: int) -> Floats:
    low, high = ends
    spread = (high - low) * rng.random(count, dtype=np.float32)
    return spread + np.float32(low)


@lru_cache(maxsize=4)
def atlas(characters: str) -> tuple[Floats, Floats]:
    """Distance maps (characters, faces, GRID, GRID), positive in ink, and half stroke widths."""
    shapes = np.stack([[_draw(character, face) for face in FACES] for character in characters])
    distances = _distance_to(~shapes) - _distance_to(shapes)
    maps = distances * np.float32(2 * SPAN / GRID)
    # The thickest place is a junction of strokes, about a quarter wider than the strokes.
    return maps, 0.8 * maps.max(axis=(-2, -1))


def _draw(character: str, face: str) -> NDArray[np.bool_]:
    """A glyph's ink, (GRID, GRID): cropped, centred, scaled to a height of GRID / SPAN."""
    from PIL import Image, ImageFont

    height = round(GRID / SPAN)
    font = ImageFont.truetype(FONTS / f"{face}.ttf", 2 * height)
    mask = font.getmask(character, mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask))
    image = image.crop(image.getbbox())
    # A wide letter is narrowed to fit, as handwriting in a box is.
    width = min(round(image.width * height / image.height), height)
    sheet = Image.new("L", (GRID, GRID))
    sheet.paste(
        image.resize((width, height), Image.Resampling.BOX),
        ((GRID - width) // 2, (GRID - height) // 2),
    )
    return np.asarray(sheet) > 127


def _distance_to(shapes: NDArray[np.bool_]) -> Floats:
    """Distance of each sample of (..., GRID, GRID) to the nearest true one, in samples.

    Separable, after Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions".
    """
    steps = np.arange(GRID, dtype=np.float32)
    squares = (steps[:, None] - steps) ** 2
    far = np.where(shapes, 0, np.float32(4 * GRID * GRID))
    for axis in (-1, -2):
        lines = np.moveaxis(far, axis, -1)
        nearest = np.stack([(lines + row).min(axis=-1) for row in squares], axis=-1)
        far = np.moveaxis(nearest, -1, axis)
    return np.sqrt(far)
