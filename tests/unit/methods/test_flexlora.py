"""FlexLoRA's server against numpy's sum and singular values, and what clients get of it."""

from typing import Any

import numpy as np
import pytest
import torch
from made_low_rank import OPTIONS, RANKS, Played, dense, products, weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods import flexlora
from methods.peft import lora

SCALES = {name: 16 / rank for name, rank in RANKS.items()}


@pytest.fixture(scope="module")
def played() -> Played:
    return Played("flexlora", **OPTIONS)


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, sizes, right = np.linalg.svd(matrix)
    return (left[:, :rank] * sizes[:rank]) @ right[:rank]


def test_the_servers_adapters_are_the_sum_truncated_to_the_highest_rank(played: Played) -> None:
    start, found = weights(played.before), weights(played.server.model)
    for path, matrix in dense(played.network.of("up"), SCALES).items():
        change = found[path] - start[path]
        np.testing.assert_allclose(change, truncated(matrix, 5), atol=1e-5 * np.abs(matrix).max())
        # Three clients of ranks 5, 3 and 1 have more than rank 5 together.
        assert np.linalg.matrix_rank(matrix, tol=1e-6 * np.abs(matrix).max()) > 5


def test_each_client_gets_the_best_that_its_rank_has() -> None:
    played = Played("flexlora", **OPTIONS)
    sums = dense(played.network.of("up"), SCALES)
    played.play(1)
    for name, rank in RANKS.items():
        (sent,) = played.sent("down", name)
        for path, found in products(sent, SCALES[name]).items():
            expected = truncated(sums[path], rank)
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(sums[path]).max())


def factors(outputs: int, inputs: int, rank: int, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(outputs + rank)
    b = torch.randn(outputs, rank, generator=draw, dtype=torch.float64)
    a = torch.randn(rank, inputs, generator=draw, dtype=torch.float64)
    # Of singular values that lie as far apart as those of a sum of many clients.
    return b * 10 ** torch.linspace(0, -spread, rank, dtype=torch.float64), a


@pytest.mark.parametrize("spread", [0.0, 10.0])
@pytest.mark.parametrize(
    ("outputs", "inputs", "rank", "least"),
    [
        (30, 20, 7, 5),
        (20, 30, 7, 5),
        (20, 30, 20, 5),
        (20, 30, 45, 5),
        (30, 20, 1, 6),
        (8, 8, 7, 8),
    ],
)
def test_the_split_of_a_product_is_that_of_the_dense_matrix(
    outputs: int, inputs: int, rank: int, least: int, spread: float
) -> None:
    b, a = factors(outputs, inputs, rank, spread)
    left, sizes, right = flexlora.split(b, a, least)
    kept = len(sizes)
    assert least <= kept <= min(outputs, inputs)
    expected = np.linalg.svd((b @ a).numpy(), compute_uv=False)
    np.testing.assert_allclose(sizes, expected[:kept], atol=1e-13 * expected[0])
    assert np.all(expected[kept:] <= 1e-13 * expected[0])
    for basis in (left.T, right):
        np.testing.assert_allclose(basis @ basis.T, np.eye(kept), atol=1e-12)
    for most in (1, least):
        found = (left * sizes)[:, :most] @ right[:most]
        np.testing.assert_allclose(
            found, truncated((b @ a).numpy(), most), atol=1e-12 * expected[0]
        )


def test_where_no_client_has_an_update_every_row_of_a_can_still_be_trained() -> None:
    """B is zero then, and where A were zero too, neither would get a gradient again."""
    b, a = torch.zeros(16, 2, dtype=torch.float64), factors(16, 12, 2)[1]
    _, sizes, right = flexlora.split(b, a, 5)
    assert not sizes.any() and len(right) == 5
    np.testing.assert_allclose(right @ right.T, np.eye(5), atol=1e-12)


class Shapes(TorchDispatchMode):
    """Sizes of all that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            self.most = max(self.most, each.numel() if isinstance(each, Tensor) else 0)
        return found


def test_of_few_ranks_the_dense_matrix_is_never_made() -> None:
    """As of 10 clients and a ViT-B's layers."""
    b, a = factors(768, 3072, 92)
    with Shapes() as made:
        flexlora.split(b, a, 16)
    assert made.most == 3072 * 92


def test_one_client_of_a_low_rank_leaves_adapters_of_the_highest() -> None:
    played = Played("flexlora", rounds=1, **OPTIONS)
    played.play(1, "client-3")
    a = next(iter(lora.adapters(played.server.model).values())).lora_A.detach()
    assert a.shape[0] == 5
    np.testing.assert_allclose(a @ a.T, np.eye(5), atol=1e-6)
    played.play(1)
    assert played.network.missed() == set()


def test_at_first_all_have_the_first_rows_of_one_a(played: Played) -> None:
    first = Played("flexlora", rounds=1, **OPTIONS)
    for name, rank in RANKS.items():
        (sent,) = first.sent("down", name)
        for path, each in lora.adapters(first.before).items():
            assert sent.tensors[f"{path}.lora_A"].equal(each.lora_A[:rank])
            assert not sent.tensors[f"{path}.lora_B"].any()
