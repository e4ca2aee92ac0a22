"""A config.json with one wrong value: refused in a sentence before anything starts, or it runs."""

import copy
import json
import math
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_causal
import pytest
import torch

from nodes.workload import models
from testbed.config_error import ConfigError

WRONG = (
    *(math.nan, -math.inf, 0, -1, 1, 3, 0.5, 1e300, 1e30),
    *("", "no such", None, [], [1, 2], {}, True),
)
HUGE = (10**9, 2**63, 10**40)
CASES = 80
"""Of a layout, drawn from all: each takes some hundredths of a second."""
LIMIT_S = 400
"""On a machine with much else to do."""
MOST_LONGER_MB = 300
"""Of memory that a layout's cases may take: the largest of their sizes would take thousands."""
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32, "beta_fast": 32.0},
    "llama3": {
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    },
}
ABSENT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "head_dim": 8,
    "layer_types": ["full_attention"] * made_causal.DEPTH,
    "n_inner": None,
    "num_key_value_heads": 2,
    "num_labels": 2,
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "rope_theta": 1e4,
    "sliding_window": 5,
    "use_bidirectional_attention": None,
    "use_sliding_window": True,
}
"""Fields that a file may have beside those that are saved."""


def wrong(
    config: dict[str, Any], within: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configurations with one value that is another, and the field's name."""
    fields = (
        config[within]
        if within
        else config | {each: value for each, value in ABSENT.items() if each not in config}
    )
    for field in fields:
        for value in (*WRONG, *HUGE):
            found = copy.deepcopy(config)
            (found[within] if within else found)[field] = value
            yield f"{field} = {value!r}", found


def outcome(folder: Path, config: dict[str, Any]) -> str | None:
    """The refusal; None where it runs. AssertionError for anything else."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        models.check(str(folder), weights=True)
    except ConfigError as refused:
        assert str(refused).startswith((f"model = '{folder}': ", f"model = {folder}: "))
        assert "\n" not in str(refused)
        return str(refused)
    model = models.build(str(folder), 1, 0)
    with torch.inference_mode():
        for tokens in (1, model.spec.context):
            assert model(made_causal.ids(min(tokens, 100))).isfinite().all()
    return None


def cases(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Of each field of a file, of such as it may have beside them, and of angles of each type."""
    found = list(wrong(config))
    if "rope_parameters" in config:
        found += wrong(config, "rope_parameters")
        for kind, fields in SCALED.items():
            own = {"rope_theta": 1e4, "rope_type": kind, **fields}
            found += [
                (f"{kind}: {said}", each)
                for said, each in wrong(config | {"rope_parameters": own}, "rope_parameters")
            ]
    return found


@pytest.mark.thorough
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gpt2", "gemma", "phi"])
def test_one_wrong_value_is_refused_or_runs(model_type: str, tmp_path: Path) -> None:
    made_causal.folder_of(model_type, tmp_path)
    every = cases(json.loads((tmp_path / "config.json").read_text()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failed, refused = [], 0
    for said, case in random.Random(model_type).sample(every, CASES):
        try:
            refused += outcome(tmp_path, case) is not None
        except Exception as error:
            failed.append(f"{said}: {error!r}")
    assert failed == []
    assert 0.2 * CASES < refused < CASES
    longer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert longer < 1024 * MOST_LONGER_MB
