"""The command has one thread whatever the environment asks of numerical libraries."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
THREADS = {
    name: "4"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GOTO_NUM_THREADS")
} | {"MKL_DOMAIN_NUM_THREADS": "MKL_DOMAIN_ALL=4"}


def threads(code: str) -> int:
    text = f"{code}\nimport numpy, psutil\nnumpy.ones((300, 300)) @ numpy.ones((300, 300))\n"
    text += "print(psutil.Process().num_threads())"
    environment = {**os.environ, **THREADS}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    return int(done.stdout)


def test_no_variable_gives_a_library_threads() -> None:
    assert threads("import cli") == 1
    if (os.cpu_count() or 1) > 1:
        assert threads("") > 1
