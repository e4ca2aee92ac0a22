"""Data sets of images. Importing this costs no more than numpy."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nodes.workload import hub_data, splits
from nodes.workload.dataset import TEXTS, Dataset
from nodes.workload.splits import HELD_SHARE, TEST_SEED
from testbed.config_error import ConfigError
from testbed.seeds import derive

SIDE = 16
"""Height and width of the digits and glyphs, pixels: the input of the shipped models."""

DIGITS_FILE = Path(__file__).parent / "digits" / "digits.csv.gz"

CLASSES = 10
"""Of the digits and the glyphs."""
GLYPHS_TRAIN = 20_000
"""Drawn where nobody says how many."""


@dataclass(frozen=True)
class Facts:
    """Facts of a data set that are known without loading it."""

    classes: int
    train_size: int | None
    """Training images; None: as many as wanted."""
    test_size: int
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""

    @property
    def validation_size(self) -> int:
        """Images of the validation split, which training then lacks where they are not drawn."""
        return self.test_size if self.train_size is None else -(-self.train_size // HELD_SHARE)


FACTS = {
    "digits": Facts(CLASSES, 1_437, 360, (1, SIDE, SIDE)),
    "glyphs": Facts(CLASSES, None, 1_000, (1, SIDE, SIDE)),
    "cifar10": Facts(10, 50_000, 10_000, (3, 32, 32)),
    "cifar100": Facts(100, 50_000, 10_000, (3, 32, 32)),
    "svhn": Facts(10, 73_257, 26_032, (3, 32, 32)),
}


def names() -> list[str]:
    """Every data set: those of images, which are `load`ed here, and those of text."""
    return sorted([*FACTS, *TEXTS])


def facts(name: str) -> Facts:
    """Facts of a data set that are known without loading it. ValueError for an unknown name."""
    if name not in FACTS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(sorted(FACTS))}")
    return FACTS[name]


def classes(name: str) -> int:
    """Classes of a data set. ValueError for an unknown name."""
    return facts(name).classes


def train_size(name: str, *, validation: bool = False) -> int | None:
    """Training images of a data set; None: as many as wanted. ValueError for an unknown name.

    `validation`: those that its validation split leaves.
    """
    own = facts(name)
    if own.train_size is None:
        return None
    return own.train_size - own.validation_size * validation


def find(name: str, folder: str | None) -> Path | None:
    """The folder that `load` reads photographs from: `folder`, or the hub's, downloaded first.

    None for a data set that needs none. ConfigError for a folder that is wrong or not wanted, and
    where the hub cannot be reached.
    """
    if name in hub_data.SOURCES:
        return hub_data.find(name, folder)
    if folder is not None:
        raise ConfigError(
            f"data_path = {folder!r}: dataset {name} needs none; those read from a folder are "
            f"{', '.join(sorted(hub_data.SOURCES))}"
        )
    return None


def load(
    name: str,
    *,
    seed: int,
    train_samples: int | None = None,
    folder: Path | None = None,
    validation: bool = False,
) -> Dataset:
    """A data set, the same for the same arguments; its test images are the same for every seed.

    `train_samples`: how many training images; None: all, or 20,000 glyphs. `folder`: as from
    `find`. `validation`: in the test images' place a fifth of each class of the training images,
    the same for every seed, which these then lack; as many glyphs as of the test, drawn.
    ValueError for an unknown name, or for more images than there are; ConfigError where the
    folder's contents are not the data set's.
    """
    _wanted(name, train_samples, validation=validation)
    if name in hub_data.SOURCES:
        folder = folder or hub_data.find(name, None)
        return _photographs(name, seed, train_samples, folder, validation)
    return _LOADERS[name](seed, train_samples, validation)


def fingerprint(name: str, folder: Path | None) -> str | None:
    """SHA-256 of the files that `load` would read; None where images are drawn."""
    if name in hub_data.SOURCES:
        return hub_data.fingerprint(folder or hub_data.find(name, None))
    if name == "digits":
        return hashlib.sha256(DIGITS_FILE.read_bytes()).hexdigest()
    return None


def scaled(images: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images as float32 in 0..1; those that are float32 stay themselves."""
    if images.dtype == np.uint8:
        return np.divide(images, 255, dtype=np.float32)
    return images.astype(np.float32, copy=False)


def outline(name: str, *, seed: int, train_samples: int | None = None) -> Dataset:
    """A data set's shapes without its contents, for runs whose compute is only modelled.

    Images are all zero, read-only and take no memory; labels are as even over the classes as can
    be, in an order drawn from `seed`, the test labels' the same for every seed. Arguments and
    errors are those of `load`; nothing is read.
    """
    known = facts(name)
    train, test = _wanted(name, train_samples), known.test_size

    def labels(count: int, stream: int) -> NDArray[np.int64]:
        return np.random.default_rng(stream).permutation(np.arange(count) % known.classes)

    def images(count: int) -> NDArray[np.float32]:
        return np.broadcast_to(np.float32(0), (count, *known.shape))

    return Dataset(
        name,
        known.classes,
        images(train),
        labels(train, derive(seed, "training labels")),
        images(test),
        labels(test, derive(TEST_SEED, "test labels")),
    )


def _wanted(name: str, train_samples: int | None, *, validation: bool = False) -> int:
    """How many training images `train_samples` stands for. ValueError where there are fewer."""
    there = train_size(name, validation=validation)
    if train_samples is None:
        return GLYPHS_TRAIN if there is None else there
    if train_samples < 1:
        raise ValueError(f"train_samples must be at least 1, not {train_samples}")
    if there is not None and train_samples > there:
        raise ValueError(f"{name} has {there} training images, and {train_samples} were asked for")
    return train_samples


def _digits(seed: int, train_samples: int | None, validation: bool) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, a fixed stratified split of 1,437 and 360."""
    small, labels = read_digits()
    images = enlarge((small / 16).astype(np.float32)[:, None])
    test, train = splits.stratified(labels, TEST_SEED)
    if validation:
        held, left = splits.validation(labels[train])
        test, train = train[held], train[left]
    train = _shuffled(train, seed)[:train_samples]
    return Dataset("digits", CLASSES, images[train], labels[train], images[test], labels[test])


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (1797, 8, 8) with values 0..16 and labels (1797,), as `sklearn.datasets` has them."""
    with gzip.open(DIGITS_FILE, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def enlarge(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (n, 1, SIDE/k, SIDE/k) to (n, 1, SIDE, SIDE): each pixel a square of k by k."""
    factor = SIDE // images.shape[-1]
    return images.repeat(factor, axis=-2).repeat(factor, axis=-1)


def _glyphs(seed: int, train_samples: int | None, validation: bool) -> Dataset:
    """The ten digits of the DejaVu fonts, more distorted than pretraining ever saw them."""
    train = draw(train_samples or GLYPHS_TRAIN, derive(seed, "training glyphs"))
    stream = derive(TEST_SEED, "validation images") if validation else [TEST_SEED, 0]
    test = draw(FACTS["glyphs"].test_size, stream)
    return Dataset("glyphs", CLASSES, *train, *test)


def _photographs(
    name: str, seed: int, train_samples: int | None, folder: Path, validation: bool
) -> Dataset:
    """A data set of the hub in the order of its files, or `train_samples` random ones of it."""
    classes = facts(name).classes
    train, train_labels, test, test_labels = hub_data.read(name, classes, folder)
    if validation:
        held, left = map(np.sort, splits.validation(train_labels))
        test, test_labels = train[held], train_labels[held]
        train, train_labels = train[left], train_labels[left]
    if train_samples is not None:
        if train_samples > len(train):
            raise ConfigError(
                f"data_path = {str(folder)!r}: has {len(train)} training images, and "
                f"{train_samples} were asked for"
            )
        chosen = _shuffled(np.arange(len(train)), seed)[:train_samples]
        train, train_labels = train[chosen], train_labels[chosen]
    return Dataset(name, classes, train, train_labels, scaled(test), test_labels)


def _shuffled(training: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive(seed, "training images")).permutation(training)


def draw(
    count: int, stream: int | list[int], side: int = SIDE
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # Drawing needs torch and the fonts, which most users of this file do not.
    from nodes.workload import glyphs

    return glyphs.glyphs(
        count, stream, characters=glyphs.DIGITS, distortion=glyphs.STRONG, side=side
    )


_LOADERS: dict[str, Callable[[int, int | None, bool], Dataset]] = {
    "digits": _digits,
    "glyphs": _glyphs,
}
