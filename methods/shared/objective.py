"""Objective of training, cross-entropy of each target, and what a model is judged by.

Logits are (batch, classes) where a sample has one target, and (batch, tokens, vocabulary) where
each token has one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100
"""A target that neither a loss nor a metric counts, such as padding and what a user says."""
EVALUATION_BATCH = 256
LOGITS_BYTES = 1 << 25
"""Most of a batch's logits that are held at once where there is one of each token."""


def precise(tensor: Tensor) -> Tensor:
    """The tensor with at least float32's precision, which sums and logarithms need."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The mean over targets that count, or their "sum", 0-dim."""
    flat = precise(logits.flatten(0, -2))
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction=reduction)


def answers_alone(targets: Tensor) -> bool:
    """Whether something is only read before what counts; padding comes after it, of any text."""
    return targets.dim() > 1 and bool((targets[:, 0] == IGNORED).any())


def scores(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Share of right answers, and mean cross-entropy, over held-out samples.

    Of text also ``perplexity``; and where answers alone count, ``exact_match``: the share of
    samples whose targets are all right. Those are the answers that greedy decoding would give.
    """
    model.eval()
    right, asked, exact, total = 0, 0, 0, 0.0
    batch = EVALUATION_BATCH if targets.dim() == 1 else 1
    with torch.inference_mode():
        first = 0
        while first < len(inputs):
            truth = targets[first : first + batch]
            logits = model(inputs[first : first + batch])
            counts = truth != IGNORED
            hits = logits.argmax(dim=-1) == truth
            right, asked = right + int(hits.sum()), asked + int(counts.sum())
            total += float(loss(logits, truth, "sum"))
            if truth.dim() > 1:
                exact += int((hits | ~counts).all(dim=1).sum())
            first += len(truth)
            if targets.dim() > 1:
                batch = max(1, LOGITS_BYTES // (logits[0].numel() * logits.element_size()))
    # Where compute is modelled there are no values to count.
    asked = max(1, asked)
    found = {"accuracy": right / asked, "loss": total / asked}
    if targets.dim() > 1:
        found["perplexity"] = math.exp(min(found["loss"], 700.0))
        if answers_alone(targets):
            found["exact_match"] = exact / len(targets)
    return found
