"""Methods on a device that is none of theirs: the same bytes, draws and values as on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import methods

ON_TEXT_ALONE = {"fedsp"}
"""The model here reads images."""
UNIT = Path(__file__).parents[1]
LIMIT_S = 240
"""Of all cases, which one process plays."""
pytestmark = pytest.mark.timeout(LIMIT_S + 60)
CASES: list[tuple[Any, ...]] = [
    ("fedavg", {"batch_size": 4}),
    ("fedavg", {"batch_size": 4, "dp": "client", "dp_noise": 0.1}),
    ("fedavg", {"batch_size": 4, "dp": "sample", "dp_noise": 0.1}),
    ("fedpeft", {"variant": "lora", "rank": 2}),
    ("fedpeft", {"variant": "prompt", "optimizer": "sgd"}),
    ("fedprox", {"rank": 2}),
    ("fedavgm", {"rank": 2, "nesterov": True}),
    ("fedadam", {"rank": 2, "rule": "yogi"}),
    ("diloco", {"rank": 2, "local_steps": 3}),
    ("dispfl", {"batch_size": 4}),
    ("dispfl", {"batch_size": 4, "topology": "full", "regrow": "gradient"}),
    ("feddf", {"rank": 2, "public_samples": 8, "drop_worst": True, "distill_patience": 1}),
    ("feddm", {"iterations": 3, "server_epochs": 2, "pixels": "uint8", "real_init": True}),
    ("fedptr", {"rank": 2, "match_steps": 3}),
    ("fedbuff", {}),
    ("flora", {"ranks": "4,2"}),
    ("flexlora", {"ranks": "4,2"}),
    ("hetlora", {"ranks": "4,2", "self_prune": True}),
    ("kdfft", {"public_samples": 8, "public_batch": 4, "rank": 2}),
    ("fedmd", {"public_samples": 8, "public_batch": 4, "depths": "1,2"}),
    ("fedkd", {"rank": 2, "batch_size": 4}),
    ("split", {"labels": "private", "batch_size": 4}),
    ("splitfed", {"variant": "v1", "batch_size": 4}),
    ("splitfed", {"variant": "v2", "batch_size": 4}),
    ("fedlite", {"batch_size": 4, "labels": "private", "centroids": 3}),
    ("sfprompt", {"batch_size": 2, "gamma": 0.5}),
    ("fedcompress", {"adaptive": False, "public_samples": 8}),
    ("fedpruning", {"structures": "both"}),
    ("fedkseed", {"candidates": 64, "steps": 5}),
    ("salientgrads", {"batch_size": 4}),
    *(
        ("fedavg", {"batch_size": 4}, stage, "int8")
        for stage in ("int8", "topk:k=0.1,feedback=true", "qsgd", "powersgd")
    ),
]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What came of each case."""
    done = subprocess.run(
        [sys.executable, str(UNIT / "on_standin.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(UNIT.parents[1]), str(UNIT)])},
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_the_same_is_sent_from_either_device(number: int, found: list[dict[str, Any]]) -> None:
    result = found[number]
    assert "error" not in result, result["error"]
    assert result["there"] == result["here"]
    assert result["missed"] == []
    # A step of AdamW is as long whatever the gradient is, and a tiny one may have either sign.
    assert result["difference"] < 5e-3


def test_no_method_is_left_out() -> None:
    assert {name for name, *_ in CASES} == set(methods.names()) - ON_TEXT_ALONE
