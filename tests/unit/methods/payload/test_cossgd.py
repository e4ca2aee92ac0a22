"""CosSGD: angles in few bits, against steps worked out one by one and linear quantisation."""

import math
from fractions import Fraction

import pytest
import torch
from made_stages import SEED, SHIPPED, byte_count, encoded, error_share, gaussian, through
from torch import Tensor

from methods.payload import bits, load
from methods.payload.chain import Chain


@pytest.mark.parametrize(("width", "times"), [(8, 4), (4, 8), (2, 16), (1, 32)])
def test_bytes_of_the_shipped_model_are_as_many_times_fewer(width: int, times: int) -> None:
    found = byte_count(load(f"cossgd:bits={width}"), *SHIPPED)
    most = 303_658 * 4 / times + 9 * len(SHIPPED)
    assert 303_658 * 4 / times + 8 * len(SHIPPED) <= found < most


def test_codes_are_those_of_the_angles() -> None:
    values = gaussian(300)
    parts = encoded(load("cossgd:bits=4,clip=0"), values)
    exact = [float(each) for each in values]
    norm = math.sqrt(math.fsum(each * each for each in exact))
    angles = [math.acos(each / norm) for each in exact]
    bound = min(min(angles), math.pi - max(angles))
    steps = [(each - bound) / (math.pi - 2 * bound) * 15 for each in angles]
    assert float(parts["largest"]) == max(map(abs, exact))
    assert float(parts["bound"]) == pytest.approx(bound, rel=1e-6)
    assert bits.unpack(parts["codes"], 4, 300).tolist() == [round(each) for each in steps]


@pytest.mark.parametrize("width", range(1, 9))
def test_an_angle_is_off_by_half_a_step_at_most(width: int) -> None:
    values = gaussian(40, 50)
    stage = load(f"cossgd:bits={width},clip=0")
    parts = encoded(stage, values)
    bound = float(parts["bound"])
    norm = float(parts["largest"]) / math.cos(bound)
    assert norm == pytest.approx(float(values.norm()), rel=1e-5)
    half = (math.pi - 2 * bound) / (2**width - 1) / 2
    found = through(stage, values)
    angles = [torch.arccos((each.double() / norm).clamp(-1, 1)) for each in (values, found)]
    assert float((angles[0] - angles[1]).abs().max()) <= half * (1 + 1e-4)
    assert float((values - found).abs().max()) <= norm * half * (1 + 1e-4)


def test_the_largest_are_cut_to_the_next_one() -> None:
    values = gaussian(1000)
    found = through(load("cossgd:bits=8,clip=0.01"), values)
    ordered = values.abs().sort().values
    assert float(found.abs().max()) == pytest.approx(float(ordered[989]), rel=1e-4)
    cut = values.abs() > ordered[989]
    assert int(cut.sum()) == 10
    assert torch.allclose(found[cut].abs(), ordered[989].expand(10), rtol=1e-4)
    assert torch.equal(found[cut].sign(), values[cut].sign())


@pytest.mark.parametrize("width", [2, 4, 8])
def test_without_clip_it_is_as_good_as_linear_quantisation(width: int) -> None:
    values, last = gaussian(200_000), 2**width - 1
    largest = values.abs().max()
    linear = ((values / largest + 1) / 2 * last).round() / last * 2 * largest - largest
    found = through(load(f"cossgd:bits={width},clip=0"), values)
    assert error_share(values, found) == pytest.approx(error_share(values, linear), rel=1e-3)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_with_clip_few_bits_lose_less(width: int) -> None:
    values = gaussian(200_000)
    with_clip, without = (
        error_share(values, through(load(f"cossgd:bits={width},clip={clip}"), values))
        for clip in (0.01, 0)
    )
    assert with_clip < 0.5 * without


def test_nothing_is_cut_at_8_bits_if_not_asked_for() -> None:
    clips = [load(f"cossgd:bits={width}").options.clip for width in (1, 7, 8)]
    assert clips == [0.01, 0.01, 0]
    assert load("cossgd:bits=8,clip=0.05").options.clip == 0.05
    assert load("cossgd:clip=0").options.clip == 0


def test_weights_have_more_bits_than_an_update_if_not_asked_for() -> None:
    texts = ("cossgd", "cossgd:weights=true", "cossgd:weights=true,bits=2")
    assert [load(text).options.bits for text in texts] == [2, 4, 2]


def in_float64(values: Tensor, width: int, clip: float) -> Tensor:
    """The paper's equations, one value at a time: angles, their steps, and cosines of these."""
    exact = [float(each) for each in values.flatten()]
    norm = math.sqrt(math.fsum(each * each for each in exact))
    largest = sorted(map(abs, exact))[len(exact) - 1 - int(clip * len(exact))]
    bound, last = math.acos(largest / norm), 2**width - 1
    found = []
    for each in exact:
        share = (math.acos(each / norm) - bound) / (math.pi - 2 * bound)
        code = round(min(1.0, max(0.0, share)) * last)
        found.append(norm * math.cos(code / last * (math.pi - 2 * bound) + bound))
    return torch.tensor(found, dtype=torch.float64).view(values.shape)


@pytest.mark.parametrize("clip", [0, 0.01, 0.2])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_what_arrives_against_the_papers_equations_in_float64(width: int, clip: float) -> None:
    values = gaussian(30, 40)
    found = through(load(f"cossgd:bits={width},clip={clip}"), values)
    expected = in_float64(values, width, clip)
    largest = float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) < 1e-5 * largest


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_rounding_at_random_is_to_a_step_next_to_the_angle_whose_mean_it_is(width: int) -> None:
    values, draws = gaussian(400), 400
    stage = load(f"cossgd:bits={width},clip=0,rounding=random")
    found = [encoded(stage, values, seed=seed) for seed in range(draws)]
    bound, last = float(found[0]["bound"]), 2**width - 1
    norm = math.sqrt(math.fsum(float(each) ** 2 for each in values))
    angles = torch.tensor([math.acos(float(each) / norm) for each in values], dtype=torch.float64)
    steps = (angles - bound) / (math.pi - 2 * bound) * last
    codes = torch.stack([bits.unpack(each["codes"], width, 400) for each in found]).double()
    assert float((codes - steps).abs().max()) < 1 + 1e-3
    # A draw's deviation is at most half a step; six of the mean's.
    assert float((codes.mean(dim=0) - steps).abs().max()) < 6 * 0.5 / math.sqrt(draws)
    assert torch.equal(codes[0], bits.unpack(encoded(stage, values, seed=0)["codes"], width, 400))
    assert not torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_first_and_the_last_step_stay_near_whatever_is_drawn(
    width: int, draw: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.full((count,), draw))
    stage = load(f"cossgd:bits={width},clip=0,rounding=random")
    for largest in torch.linspace(0.1, 3, 200).tolist():
        sent = encoded(stage, torch.tensor([largest, -largest, 0.01, 0.02, -0.03]))
        found = bits.unpack(sent["codes"], width, 5).tolist()
        assert found[0] <= 1 and 2**width - 2 <= found[1] < 2**width


@pytest.mark.parametrize("width", [8, 4, 2, 1])
@pytest.mark.parametrize("share", ["0.05", "0.1"])
def test_bytes_of_what_is_left_of_an_update_at_drawn_places(share: str, width: int) -> None:
    shapes = dict(enumerate(SHIPPED))
    update = {str(name): gaussian(*shape, seed=name) for name, shape in shapes.items()}
    texts = [f"randomk:k={share}", f"cossgd:bits={width}"]
    coded, _ = Chain(texts).encode(update, {}, SEED)
    left = [math.ceil(Fraction(share) * math.prod(shape)) for shape in SHIPPED]
    expected = sum(math.ceil(count * width / 8) + 8 for count in left)
    assert sum(each.nbytes for each in coded.values()) == expected
    packed = Chain([*texts, "deflate"])
    arrived = packed.decode(packed.encode(update, {}, SEED)[0], update, {}, SEED)
    for name, each in Chain(texts).decode(coded, update, {}, SEED).items():
        assert torch.equal(arrived[name], each)


@pytest.mark.parametrize("value", [-2.5, 0.0, 1e-45, 3e38])
def test_one_magnitude_arrives_as_it_was(value: float) -> None:
    for width in range(1, 9):
        for values in (torch.tensor(value), torch.full((40, 50), value)):
            assert torch.equal(through(load(f"cossgd:bits={width}"), values), values)


def test_what_is_rarer_than_the_clip_is_not_cut_away() -> None:
    values = torch.zeros(2000)
    values[34] = 2.0
    assert float(through(load("cossgd:bits=4"), values)[34]) == 2.0


def test_values_far_below_the_norm_keep_their_steps() -> None:
    """Their angles are, as float32, right ones."""
    values = 1e-9 * gaussian(1000)
    values[5] = 1.0
    found = through(load("cossgd:bits=8,clip=0.001"), values)
    values[5] = found[5]
    assert error_share(values, found) < 1e-3


@pytest.mark.parametrize(
    ("largest", "bound"), [(-1, 0.5), (1, -0.1), (1, 1.58), (1, math.nan), (1, math.inf)]
)
def test_no_values_have_such_a_largest_or_bound(largest: float, bound: float) -> None:
    stage = load("cossgd")
    parts = encoded(stage, gaussian(5))
    spoilt = {**parts, "largest": torch.tensor([largest]), "bound": torch.tensor([bound])}
    with pytest.raises(ValueError, match="are those of no values"):
        stage.decode(spoilt, (5,), 0)
