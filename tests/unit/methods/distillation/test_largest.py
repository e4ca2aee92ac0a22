"""The largest logits alone: probabilities kept, bytes by formula, places that cannot be refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.distillation import largest


def logits(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 300)])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_probabilities_of_the_largest_stay_and_others_share_the_rest(
    shape: tuple[int, ...], count: int
) -> None:
    given = logits(*shape)
    sent = largest.cut(given, count)
    found = largest.rebuilt(sent, shape[-1]).softmax(dim=-1).numpy()
    scores = np.exp(given.double().numpy())
    expected = scores / scores.sum(axis=-1, keepdims=True)
    order = np.argsort(-expected, axis=-1)
    for row in np.ndindex(*shape[:-1]):
        kept, left = order[row][:count], order[row][count:]
        np.testing.assert_allclose(found[row][kept], expected[row][kept], rtol=1e-5)
        each = expected[row][left].sum() / len(left)
        np.testing.assert_allclose(found[row][left], each, rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "place"), [(256, 1), (257, 2), (32_768, 2), (32_769, 4), (128_256, 4)]
)
def test_bytes_by_formula(width: int, place: int) -> None:
    sent = largest.cut(logits(2, 3, width), 5)
    assert sum(each.nbytes for each in sent.values()) == 2 * 3 * (4 * 5 + 4 + place * 5)
    like = largest.like((2, 3, width), 5)
    assert {name: (each.shape, each.dtype) for name, each in sent.items()} == {
        name: (each.shape, each.dtype) for name, each in like.items()
    }
    assert torch.equal(largest.rebuilt(sent, width).topk(5).values, logits(2, 3, width).topk(5)[0])


@pytest.mark.parametrize("place", [-1, 40])
def test_a_place_that_no_logit_has_is_refused(place: int) -> None:
    sent = largest.cut(logits(2, 3, 40), 2)
    largest.check(sent, 40)
    sent["places"] = sent["places"].to(torch.int16)
    sent["places"][1, 2, 0] = place
    with pytest.raises(ValueError, match="a place outside 0 to 39"):
        largest.check(sent, 40)


def test_a_loss_is_of_the_largest_labels_and_of_the_others_sum() -> None:
    labels, scores = logits(4, 3, 30), logits(4, 3, 30).flip(0).requires_grad_()
    seen = []

    def loss(one: Tensor, other: Tensor) -> Tensor:
        seen.append((one.softmax(dim=-1), other.softmax(dim=-1)))
        return (one - other).square().sum()

    largest.loss_of_largest(loss, 5)(scores, labels).backward()
    order = labels.argsort(dim=-1, descending=True)
    for found, given in zip(seen[0], (scores, labels), strict=True):
        sorted_ones = given.softmax(dim=-1).gather(-1, order)
        assert found.shape == (4, 3, 6)
        assert torch.allclose(found[..., :5], sorted_ones[..., :5], atol=1e-6)
        assert torch.allclose(found[..., 5], sorted_ones[..., 5:].sum(dim=-1), atol=1e-6)
    # Of the others each is moved by its share of their sum, so that shares stay as they are.
    assert scores.grad is not None
    moved, own = scores.grad.gather(-1, order)[..., 5:], scores.detach().gather(-1, order)[..., 5:]
    shares = own.softmax(dim=-1)
    assert torch.allclose(moved, shares * moved.sum(dim=-1, keepdim=True), atol=1e-5)
    assert largest.loss_of_largest(loss, 0) is loss
