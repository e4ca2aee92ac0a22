"""Sparse ternary compression: signs of one magnitude, and gaps in as few bits as they take."""

import math

import numpy as np
import pytest
import torch
from made_stages import SHIPPED, byte_count, encoded, gaussian, through

from methods.payload import load
from methods.payload.stc import golomb_width, pack_gaps, unpack_gaps


def written_out(places: list[int], width: int) -> str:
    """The paper's algorithm 3, a bit after the other."""
    text, last = "", -1
    for place in places:
        gap, last = place - last, place
        high, low = divmod(gap - 1, 2**width)
        text += "1" * high + "0" + (format(low, f"0{width}b") if width else "")
    return text


def some_places(count: int, kept: int, seed: int) -> list[int]:
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:kept]
    return drawn.sort().values.tolist()


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (9, 9), (100, 40), (5000, 50), (70_000, 3)])
def test_gaps_are_the_papers_codes(count: int, kept: int) -> None:
    places, width = some_places(count, kept, 1), golomb_width(count, kept)
    packed = pack_gaps(np.array(places), width)
    text = written_out(places, width)
    assert "".join(format(byte, "08b") for byte in packed) == text.ljust(8 * len(packed), "0")
    assert len(packed) == math.ceil(len(text) / 8)
    assert unpack_gaps(packed, width, kept).tolist() == places


@pytest.mark.parametrize(("share", "width"), [(1, 0), (0.4, 0), (0.1, 3), (0.01, 6), (0.0025, 8)])
def test_the_width_of_a_code_is_the_papers(share: float, width: int) -> None:
    count = 10_000
    assert golomb_width(count, round(share * count)) == width

    def mean_bits(bits: int) -> float:
        return bits + 1 / (1 - (1 - share) ** 2**bits)

    assert mean_bits(width) == min(map(mean_bits, range(20)))


@pytest.mark.parametrize("share", [0.0025, 0.01, 0.1])
def test_random_places_take_the_bits_of_the_formula(share: float) -> None:
    count = 200_000
    stage = load(f"stc:k={share}")
    kept, width = stage.kept(count), golomb_width(count, stage.kept(count))
    mean = kept * (width + 1 / (1 - (1 - share) ** 2**width)) / 8
    assert len(encoded(stage, gaussian(count))["gaps"]) == pytest.approx(mean, rel=0.02)


def test_the_last_places_take_the_most() -> None:
    values = torch.zeros(6400)
    values[-64:] = 1
    stage = load("stc:k=0.01")
    assert len(encoded(stage, values)["gaps"]) == stage.parts((6400,))["gaps"].length


def test_bytes_of_the_shipped_model() -> None:
    """In the mean: of its 297,408 values in matrices 1 %, in some 9 bits each and a sign."""
    stage = load("stc:k=0.01")
    parts = [encoded(stage, gaussian(*shape, seed=n)) for n, shape in enumerate(SHIPPED)]
    found = sum(len(each) * each.itemsize for one in parts for each in one.values())
    assert found <= byte_count(stage, *SHIPPED)
    kept = sum(stage.kept(math.prod(shape)) for shape in SHIPPED)
    assert 4 * len(SHIPPED) + kept * 9 / 8 < found < 4 * len(SHIPPED) + kept * 10 / 8


def test_what_arrives_is_the_mean_of_the_largest_with_their_signs() -> None:
    values = gaussian(40, 50)
    found = through(load("stc:k=0.02"), values)
    largest = values.abs() >= values.abs().flatten().sort().values[-40]
    mean = values[largest].abs().double().mean()
    expected = torch.where(largest, values.sign() * mean.float(), torch.zeros(()))
    assert torch.equal(found, expected)
    # Of the squares is lost what k times the mean's square does not have.
    lost = (values.double() - found.double()).square().sum()
    assert float(lost) == pytest.approx(float(values.double().square().sum() - 40 * mean**2))


@pytest.mark.parametrize("value", [-2.5, 0.0, 1e-45, 3e38])
def test_one_magnitude_arrives_as_it_was(value: float) -> None:
    for values in (torch.tensor(value), torch.full((40, 50), value)):
        assert torch.equal(through(load("stc:k=1"), values), values)


def test_feedback_is_the_default() -> None:
    assert load("stc").options.feedback and not load("stc:feedback=false").options.feedback


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        ([], "gaps end after 0 of 2"),
        ([0b1111_1111], "gaps end after 0 of 2"),
        ([0b0101_1111], "gaps end after 1 of 2"),
        ([0b0101_1101], "gaps do not end with the last of 2"),  # The last code's end is missing.
        ([0b0010_0101], "gaps do not end with the last of 2"),  # What follows is not 0.
        ([0b1100_0000, 0], "gaps do not end with the last of 2"),  # Codes that fill a byte.
        ([0b0010_0100, 0], "gaps do not end with the last of 2"),  # A byte too many.
    ],
)
def test_what_are_no_codes_is_refused(packed: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        unpack_gaps(np.array(packed, dtype=np.uint8), 2, 2)


def test_a_place_beyond_the_tensor_is_refused() -> None:
    stage = load("stc:k=0.01")
    parts = encoded(stage, gaussian(500))
    places = np.array([1, 2, 3, 4, 500])
    parts["gaps"] = torch.from_numpy(pack_gaps(places, golomb_width(500, 5)))
    with pytest.raises(ValueError, match="place 500 in a tensor of 500 values"):
        stage.decode(parts, (500,), 0)


def test_a_magnitude_below_0_is_refused() -> None:
    stage = load("stc")
    parts = {**encoded(stage, gaussian(50)), "magnitude": torch.tensor([-1.0])}
    with pytest.raises(ValueError, match="a magnitude below 0"):
        stage.decode(parts, (50,), 0)
