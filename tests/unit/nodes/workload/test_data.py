"""Data sets, their partition over clients, and the glyph generator."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nodes.workload import data, public_images, splits
from nodes.workload.dataset import Dataset
from nodes.workload.glyphs import DIGITS, STRONG, Distortion, glyphs
from testbed.config_error import ConfigError

SKLEARN_DIGITS = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_no_more_is_held_out_than_there_is() -> None:
    held, rest = splits.hold_out(10, 4, seed=0)
    assert np.array_equal(np.sort(np.concatenate([held, rest])), np.arange(10)) and len(held) == 4
    with pytest.raises(ValueError, match="11 public images cannot be held out of 10"):
        splits.hold_out(10, 11, seed=0)


def test_digits_are_scikit_learns() -> None:
    """Of all values of `sklearn.datasets.load_digits` in its version 1.9.1, as 8-bit integers."""
    images, labels = data.read_digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    digest = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == SKLEARN_DIGITS


def test_digits_split_is_stratified_complete_and_the_same_for_every_seed() -> None:
    first, second = data.load("digits", seed=0), data.load("digits", seed=5)
    assert first.train_inputs.shape == (1437, 1, 16, 16)
    assert first.test_inputs.shape == (360, 1, 16, 16)
    assert np.ptp(np.bincount(first.test_targets)) <= 2
    assert np.array_equal(first.test_inputs, second.test_inputs)

    def rows(*parts: np.ndarray) -> np.ndarray:
        small = np.concatenate(parts)[:, 0, ::2, ::2].reshape(-1, 64) * 16
        return small[np.lexsort(small.T)]

    images, _ = data.read_digits()
    whole = rows(images[:, None].repeat(2, axis=2).repeat(2, axis=3) / 16)
    assert np.array_equal(rows(first.train_inputs, first.test_inputs), whole)
    assert np.array_equal(rows(second.train_inputs, second.test_inputs), whole)


def as_rows(images: np.ndarray) -> set[bytes]:
    return {each.tobytes() for each in images}


def test_the_validation_split_is_training_images_and_the_same_for_every_seed() -> None:
    whole = data.load("digits", seed=0)
    first, second = (data.load("digits", seed=seed, validation=True) for seed in (0, 5))
    assert first.test_inputs.shape == (288, 1, 16, 16) and len(first.train_targets) == 1149
    assert np.array_equal(first.test_inputs, second.test_inputs)
    assert np.array_equal(first.test_targets, second.test_targets)
    assert not np.array_equal(first.train_targets, second.train_targets)
    assert np.ptp(np.bincount(first.test_targets)) <= 2
    held, left = as_rows(first.test_inputs), as_rows(first.train_inputs)
    assert held | left == as_rows(whole.train_inputs) == held | as_rows(second.train_inputs)
    # None of the test images, and none that a client trains on.
    assert not held & left and not held & as_rows(whole.test_inputs)
    few = data.load("digits", seed=0, train_samples=100, validation=True)
    assert np.array_equal(few.train_inputs, first.train_inputs[:100])
    with pytest.raises(ValueError, match="1149 training images, and 1150"):
        data.load("digits", seed=0, train_samples=1150, validation=True)


def test_the_validation_split_of_what_is_drawn_is_drawn() -> None:
    own, one, other = (
        data.load("glyphs", seed=seed, train_samples=30, validation=validation)
        for seed, validation in ((0, False), (0, True), (1, True))
    )
    assert np.array_equal(own.train_inputs, one.train_inputs)
    assert np.array_equal(one.test_inputs, other.test_inputs)
    assert own.test_inputs.shape == one.test_inputs.shape
    assert not as_rows(one.test_inputs) & as_rows(own.test_inputs)


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_a_data_set_keeps_its_promises(name: str) -> None:
    first, again, other = (data.load(name, seed=seed, train_samples=300) for seed in (0, 0, 1))
    assert first.name == name
    assert len(first.train_inputs) == len(first.train_targets) == 300
    assert len(first.test_inputs) == len(first.test_targets)
    for images in (first.train_inputs, first.test_inputs):
        assert images.dtype == np.float32
        assert images.shape[1:] == (1, data.SIDE, data.SIDE)
        assert images.min() == 0 and 0.8 < images.max() <= 1
    for labels in (first.train_targets, first.test_targets):
        assert labels.dtype == np.int64
        assert set(labels) == set(range(first.outputs))
    assert np.array_equal(first.train_inputs, again.train_inputs)
    assert not np.array_equal(first.train_inputs, other.train_inputs)
    assert np.array_equal(first.test_inputs, other.test_inputs)


def test_what_is_said_of_a_set_agrees_with_load() -> None:
    assert data.names() == [
        *("cifar10", "cifar100", "digits", "docs", "glyphs", "instructions", "svhn", "text")
    ]
    for name in ("digits", "glyphs"):
        facts, loaded = data.facts(name), data.load(name, seed=0, train_samples=20)
        assert facts.classes == data.classes(name) == loaded.outputs
        assert facts.test_size == len(loaded.test_targets) == len(loaded.test_inputs)
        assert facts.shape == loaded.train_inputs.shape[1:] == loaded.test_inputs.shape[1:]
    assert data.train_size("digits") == len(data.load("digits", seed=0).train_targets)
    assert data.train_size("glyphs") is data.train_size("glyphs", validation=True) is None
    assert data.train_size("cifar10", validation=True) == 40_000
    sizes = [data.facts(name).validation_size for name in sorted(data.FACTS)]
    assert sizes == [10_000, 10_000, 288, 1_000, 14_652]


@pytest.mark.parametrize("name", sorted(data.FACTS))
def test_an_outline_has_the_shapes_and_no_contents(name: str) -> None:
    facts = data.facts(name)
    first, again, other = (data.outline(name, seed=seed) for seed in (0, 0, 1))
    assert first.name == name and first.outputs == facts.classes
    train_size = facts.train_size or data.GLYPHS_TRAIN
    for images, labels, size in (
        (first.train_inputs, first.train_targets, train_size),
        (first.test_inputs, first.test_targets, facts.test_size),
    ):
        assert images.shape == (size, *facts.shape) and images.dtype == np.float32
        assert images.strides == (0, 0, 0, 0) and images[0, 0, 0, 0] == 0
        assert labels.dtype == np.int64
        counts = np.bincount(labels, minlength=facts.classes)
        assert len(counts) == facts.classes and np.ptp(counts) <= 1
    assert np.array_equal(first.train_targets, again.train_targets)
    assert not np.array_equal(first.train_targets, other.train_targets)
    assert np.array_equal(first.test_targets, other.test_targets)
    some = data.outline(name, seed=0, train_samples=100)
    assert len(some.train_targets) == len(some.train_inputs) == 100


@pytest.mark.parametrize("load", [data.load, data.outline])
def test_data_refuses_what_it_lacks(load: Callable[..., Dataset]) -> None:
    known = "unknown data set 'mnist'; known: cifar10, cifar100, digits, glyphs, svhn"
    for ask in (data.facts, data.train_size, data.classes):
        with pytest.raises(ValueError, match=known):
            ask("mnist")
    with pytest.raises(ValueError, match=known):
        load("mnist", seed=0)
    with pytest.raises(ValueError, match="1437 training images, and 1438"):
        load("digits", seed=0, train_samples=1438)
    with pytest.raises(ValueError, match="50000 training images, and 50001"):
        load("cifar10", seed=0, train_samples=50_001)
    with pytest.raises(ValueError, match="at least 1"):
        load("glyphs", seed=0, train_samples=0)


def test_pixels_become_fractions() -> None:
    pixels = np.array([0, 51, 255], dtype=np.uint8)
    assert data.scaled(pixels).dtype == np.float32
    assert data.scaled(pixels).tolist() == np.array([0, 0.2, 1], dtype=np.float32).tolist()
    fractions = np.array([0, 1], dtype=np.float32)
    assert data.scaled(fractions) is fractions


def test_a_folder_is_for_photographs_alone() -> None:
    assert data.find("digits", None) is None
    with pytest.raises(ConfigError, match=r"data_path = 'x': dataset digits needs none; .*svhn"):
        data.find("digits", "x")


def test_importing_data_and_reading_digits_imports_nothing_heavy() -> None:
    script = (
        "import sys; from nodes.workload import data, glyphs; data.load('digits', seed=0); "
        "data.outline('cifar100', seed=0); "
        "heavy = {'torch', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'datasets'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    root = Path(data.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


SOME = "AbC"


def test_glyphs_of_characters_that_no_font_here_has_are_refused() -> None:
    with pytest.raises(ValueError, match="lack 'Öß'"):
        glyphs(1, 0, characters="AßÖ")


def test_glyphs_are_drawn_from_their_seed() -> None:
    images, labels = glyphs(600, 3, characters=SOME)
    assert images.shape == (600, 1, 16, 16) and images.dtype == np.float32
    assert labels.dtype == np.int64 and set(labels) <= set(range(len(SOME)))
    assert images.min() >= 0 and images.max() <= 1
    again, same = glyphs(600, 3, characters=SOME)
    assert np.array_equal(images, again) and np.array_equal(labels, same)
    assert not np.array_equal(images, glyphs(600, 4, characters=SOME)[0])
    assert glyphs(0, 0, characters="A")[0].shape == (0, 1, 16, 16)
    assert glyphs(2, 0, characters="A", side=28)[0].shape == (2, 1, 28, 28)


STILL = Distortion(
    rotation=0, slant=0, stretch=0, size=(0.9, 0.9), shift=0, bend=0, noise=0, coarse=0
)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 7, 12), (2, 33, 33)])
def test_public_glyphs_have_the_shape_of_the_sets_images(shape: tuple[int, int, int]) -> None:
    images = public_images.glyphs(5, seed=3, shape=shape)
    assert images.shape == (5, *shape) and images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1
    assert np.array_equal(images, public_images.glyphs(5, seed=3, shape=shape))
    assert len({image.tobytes() for image in images}) == 5
    if shape == (1, 16, 16):
        return
    # In colour: channels differ by image, and each is the one shape between two levels.
    first, second = images[:, 0], images[:, 1] if shape[0] > 1 else images[:, 0]
    assert not np.allclose(first, second)
    for one, other in zip(first, second, strict=True):
        corners = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(corners) == pytest.approx(1, abs=1e-3)


def test_glyphs_look_like_their_characters() -> None:
    """Undistorted: upright, whole, centred, and a digit unlike every other."""
    images, labels = glyphs(800, 0, characters=DIGITS, distortion=STILL, side=32)
    means = np.stack([images[labels == digit].mean(axis=0)[0] for digit in range(10)])
    assert means[8, 16, 16] > means[0, 16, 16] + 0.3
    assert means[:, 0].max() < 0.2 and means[:, 2:6].max(axis=(1, 2)).min() > 0.5
    top_heavy = means[7, :16].sum() / means[7].sum()
    assert top_heavy > 0.5 > means[6, :16].sum() / means[6].sum()
    flat = means.reshape(10, -1)
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    assert apart[~np.eye(10, dtype=bool)].min() > 2


def test_distortions_do_what_they_say() -> None:
    coarse, _ = glyphs(50, 0, characters=DIGITS, distortion=Distortion(coarse=1))
    assert np.array_equal(coarse, coarse[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3))
    assert np.array_equal(coarse * 16, np.round(coarse * 16))
    thin, thick = (
        glyphs(50, 0, characters=DIGITS, distortion=Distortion(stroke=(half, half)))[0].mean()
        for half in (0.1, 0.3)
    )
    assert thick > 1.5 * thin

    def spread(distortion: Distortion) -> float:
        return float(glyphs(200, 0, characters="5", distortion=distortion)[0].std(axis=0).mean())

    assert spread(STILL) < spread(Distortion(coarse=0)) < spread(STRONG)


def test_glyphs_refuse_what_cannot_be_drawn() -> None:
    for arguments in ({"characters": ""}, {"characters": "1", "side": 15}):
        with pytest.raises(ValueError, match="glyphs need a character"):
            glyphs(1, 0, **arguments)  # type: ignore[arg-type]
