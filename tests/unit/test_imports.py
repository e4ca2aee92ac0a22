"""Modules that a run imports: none without use, and all of them before nodes are forked.

And those that what does not train must do without: torch and what else training alone needs.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import few
import pytest
from forked import Forks
from made_text import TEXT_ALONE
from sources import ROOT, TENSORS, inside

import methods
from testbed import extras

BEGINNING = """
import cli, json, sys
sys.path.insert(0, 'tests/unit')
from experiments import launch, trial_run
from experiments.resume import Resumption
from nodes.program import FineTuning
from testbed.run.config import RunConfig
"""
PREPARED = """
program = FineTuning(RunConfig(method=METHOD, **TASK), clients=CLIENTS)
program.prepare()
"""
TWO_ROUNDS = """
import in_process
from copied import copied
before = set(sys.modules)
of, names = program._method, ["client-1", "client-2"]
server = of.Server(program._options, copied(program._model), program._shard(0), 1)
clients = {
    name: of.Client(
        program._options, copied(program._model), program._shard(number), number
    )
    for number, name in enumerate(names, start=1)
}
samples = {name: len(client.shard.targets) for name, client in clients.items()}
# What is asked is not how long it takes.
in_process.LIMIT_S = 110.0
in_process.play(server, clients, samples, rounds=2)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
SLOW = {
    *("accelerate", "datasets", "huggingface_hub", "opacus", "pandas", "peft", "PIL", "pyarrow"),
    *("scipy", "sklearn", "sympy", "tensorboard", "torchvision", "transformers"),
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx"),
}
"""Each takes from 30 ms to seconds, and the default run does without them."""

FOR_NODES = TENSORS | {
    f"testbed/transport/{name}.py" for name in ("door", "sockets", "zmq_receive")
}
WITHOUT = """
import importlib, json, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
for name in NAMES:
    importlib.import_module(name)
"""


FEW_SAMPLES = {"public_samples": 16, "public_batch": 8, "server_samples": 16}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(BEGINNING) as forks:
        yield forks


def modules(forks: Forks, code: str, method: str, clients: int = 20, **given: Any) -> set[str]:
    """What ``code`` prints, run in a process of its own."""
    if method in TEXT_ALONE:
        given |= {"model": "llama-docs", "dataset": "docs", "sequence_length": 16}
    names = f"METHOD, TASK, CLIENTS = {method!r}, {given}, {clients}"
    return set(json.loads(forks.printed(f"{names}\n{code}")))


@pytest.mark.thorough
def test_the_default_run_imports_nothing_slow_that_it_has_no_use_for(forks: Forks) -> None:
    found = modules(forks, f"{PREPARED}\nprint(json.dumps(sorted(sys.modules)))", "fedpeft")
    assert "torch.optim" in found and "methods.peft.lora" in found
    assert found & SLOW == set()


@pytest.mark.thorough
@pytest.mark.parametrize("method", methods.names())
def test_nodes_import_nothing_that_the_zygote_could_have_for_them(
    method: str, forks: Forks
) -> None:
    usual = methods.load(method).Config()
    fewer = {name: most for name, most in FEW_SAMPLES.items() if getattr(usual, name, 0) > most}
    more = {"train_samples": 100, "options": few.options(method, fewer)}
    new = modules(forks, PREPARED + TWO_ROUNDS, method, clients=3, **more)
    assert {name for name in new if not name.startswith("zmq.")} == set()


def test_what_does_not_train_is_imported_without_what_training_needs() -> None:
    names = sorted(set(inside("testbed", "experiments/commands")) - FOR_NODES)
    names += ["cli.py", "experiments/exec.py", "experiments/bench.py"]
    dotted = [each[:-3].replace("/", ".").removesuffix(".__init__") for each in names]
    packages = [name for names in extras.PACKAGES.values() for name in names]
    code = f"PACKAGES, NAMES = {packages!r}, {dotted!r}\n{WITHOUT}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
