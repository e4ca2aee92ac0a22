"""FlexLoRA's server against numpy's sum and singular values, and what clients get of it."""

import numpy as np
import pytest
from made_low_rank import OPTIONS, RANKS, Played, dense, products, weights

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


def test_at_first_all_have_the_first_rows_of_one_a(played: Played) -> None:
    first = Played("flexlora", rounds=1, **OPTIONS)
    for name, rank in RANKS.items():
        (sent,) = first.sent("down", name)
        for path, each in lora.adapters(first.before).items():
            assert sent.tensors[f"{path}.lora_A"].equal(each.lora_A[:rank])
            assert not sent.tensors[f"{path}.lora_B"].any()
