"""Objective: how much of text is held at once as a model is judged, and that it changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from methods.shared import objective
from methods.shared.objective import IGNORED, scores

ROWS, TOKENS, VOCABULARY = 11, 6, 40


class Seen(nn.Module):
    """A language model that remembers how many sequences came at once."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY, dtype=dtype)
        self.batches: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.batches.append(len(ids))
        found: Tensor = self.table(ids)
        return found


def texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(0, VOCABULARY, (2, ROWS, TOKENS), generator=generator)
    targets[::2, :2] = IGNORED
    return inputs, targets


@pytest.mark.parametrize(
    ("dtype", "sequences", "batches"),
    [
        (torch.float32, 4, [1, 4, 4, 2]),
        (torch.bfloat16, 4, [1, 8, 2]),
        (torch.float32, 0.5, [1] * ROWS),
        (torch.float32, 100, [1, 10]),
    ],
)
def test_texts_are_judged_in_batches_by_the_bytes_of_their_logits(
    dtype: torch.dtype, sequences: float, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores(Seen(dtype), *texts())
    most = int(sequences * TOKENS * VOCABULARY * 4)
    monkeypatch.setattr(objective, "LOGITS_BYTES", most)
    model = Seen(dtype)
    found = scores(model, *texts())
    assert model.batches == batches
    assert found == pytest.approx(whole, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_whole_texts_have_no_exact_match_however_they_are_padded() -> None:
    inputs, targets = texts()
    assert "exact_match" in scores(Seen(), inputs, targets)
    whole = inputs.roll(-1, dims=1)
    assert "exact_match" not in scores(Seen(), inputs, whole)
    whole[::2, -2:] = IGNORED
    assert "exact_match" not in scores(Seen(), inputs, whole)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_has_the_precision_of_float32_whatever_the_logits_have(reduction: str) -> None:
    inputs, targets = texts()
    logits = Seen(torch.bfloat16)(inputs)
    found = objective.loss(logits, targets, reduction)
    assert torch.equal(found, objective.loss(logits.float(), targets, reduction))
    assert found.dtype == torch.float32
    double = logits.double()
    assert objective.loss(double, targets).dtype == torch.float64
