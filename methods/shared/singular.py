"""Singular values of matrices, and the factors that may be sent in a matrix' place.

Of a matrix of P rows and Q columns U, S and V of K values are K (P + Q + 1) numbers.
"""

import math

import torch
from torch import Tensor


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not matrix.is_meta:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    long, short = max(matrix.shape), min(matrix.shape)
    # Without values, its operations are to be counted all the same.
    torch.mm(matrix.new_empty(long, short), matrix.new_empty(short, 7 * short))
    torch.mm(matrix.new_empty(short, short), matrix.new_empty(short, 4 * short))
    rows, columns = matrix.shape
    return matrix.new_empty(rows, short), matrix.new_empty(short), matrix.new_empty(short, columns)


def svd_flops(rows: int, columns: int) -> int:
    """14 m n^2 + 8 n^3, n the shorter side (Golub and Van Loan, by Golub and Reinsch)."""
    long, short = max(rows, columns), min(rows, columns)
    return 14 * long * short**2 + 8 * short**3


def fewest(values: Tensor, tau: float) -> int:
    """How many of these singular values, largest first, have more than tau of all squares."""
    sums = values.square().cumsum(dim=0)
    if not float(sums[-1]):
        return 0
    return min(int((sums <= tau * sums[-1]).sum()) + 1, len(values))


def is_cut(tensor: Tensor, rank: int | None) -> bool:
    """Whether it is a matrix that may go as factors, with K = ``rank`` where that is given."""
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return False
    return rank is None or min(rank, *sides(tensor)) <= most_values(tensor)


def sides(tensor: Tensor) -> tuple[int, int]:
    """P and Q: of a tensor of more dimensions, the first and all others."""
    return tensor.shape[0], math.prod(tensor.shape[1:])


def most_values(tensor: Tensor) -> int:
    """The highest K at which U, S and V are less than the matrix."""
    rows, columns = sides(tensor)
    return (rows * columns - 1) // (rows + columns + 1)
