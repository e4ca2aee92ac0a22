"""Modules that a run imports: none without use, and all of them before nodes are forked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_text import TEXT_ALONE

import methods

ROOT = Path(__file__).parents[2]
PREPARED = """
import cli, json, sys
from experiments import launch, trial_run
from experiments.resume import Resumption
from nodes.program import FineTuning
from testbed.run.config import RunConfig
program = FineTuning(RunConfig(method=METHOD, **TASK), clients=20)
program.prepare()
"""
TWO_ROUNDS = """
import copy, in_process
before = set(sys.modules)
of, names = program._method, ["client-1", "client-2"]
server = of.Server(program._options, copy.deepcopy(program._model), program._shard(0), 1)
clients = {
    name: of.Client(
        program._options, copy.deepcopy(program._model), program._shard(number), number
    )
    for number, name in enumerate(names, start=1)
}
samples = {name: len(client.shard.targets) for name, client in clients.items()}
# What is asked is not how long it takes.
in_process.LIMIT_S = 110.0
in_process.play(server, clients, samples, rounds=2)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
TESTS = "import sys\nsys.path.insert(0, 'tests/unit')"
SLOW = {
    *("accelerate", "datasets", "huggingface_hub", "opacus", "pandas", "peft", "PIL", "pyarrow"),
    *("scipy", "sklearn", "sympy", "tensorboard", "torchvision", "transformers"),
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx"),
}
"""Each takes from 30 ms to seconds, and the default run does without them."""


def modules(code: str, method: str) -> set[str]:
    """What ``code`` prints, run in a process of its own."""
    task = {"model": "llama-docs", "dataset": "docs"} if method in TEXT_ALONE else {}
    code = f"METHOD, TASK = {method!r}, {task}\n{TESTS}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_default_run_imports_nothing_slow_that_it_has_no_use_for() -> None:
    found = modules(f"{PREPARED}\nprint(json.dumps(sorted(sys.modules)))", "fedpeft")
    assert "torch.optim" in found and "methods.peft.lora" in found
    assert found & SLOW == set()


@pytest.mark.parametrize("method", methods.names())
def test_nodes_import_nothing_that_the_zygote_could_have_for_them(method: str) -> None:
    new = modules(PREPARED + TWO_ROUNDS, method)
    assert {name for name in new if not name.startswith("zmq.")} == set()
