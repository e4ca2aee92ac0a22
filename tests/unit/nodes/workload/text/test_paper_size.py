"""Language models of papers' size: their parameters, as their publishers count them."""

import pytest
import torch

from methods.fedpeft import Config, adapt
from nodes.workload.text.model import PAPER_SIZE, LanguageModel


@pytest.mark.parametrize(
    ("name", "total", "low_rank"),
    [
        ("llama-2-7b", 6_738_415_616, 16_777_216),
        # 8,388,608 on the queries and 5,242,880 on the values, whose heads are fewer.
        ("mistral-7b", 7_248_023_552, 13_631_488),
    ],
)
def test_has_the_parameters_of_the_published_model(name: str, total: int, low_rank: int) -> None:
    with torch.device("meta"):
        model = LanguageModel(PAPER_SIZE[name])
    assert sum(each.numel() for each in model.parameters()) == total

    adapted = adapt(Config(variant="lora", rank=32, lora_alpha=64.0), model)
    added = [each for name, each in adapted.named_parameters() if "lora_" in name]
    assert sum(each.numel() for each in added) == low_rank
