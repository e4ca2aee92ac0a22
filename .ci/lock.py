"""The lock: constraints.txt with a hash of each file of each package, as requirements*.txt.

    python .ci/lock.py TORCH_CPU_WHEEL ...

Needs uv, which takes hashes from the index and downloads no package. Torch is apart: the index has
it with CUDA, which is gigabytes, and its builds for the CPU alone are in an index of their own.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILE = (
    *("uv", "pip", "compile", "pyproject.toml", "--extra=dev", "--constraints=constraints.txt"),
    *("--generate-hashes", "--universal", "--python-version=3.11", "--no-header", "--no-annotate"),
    "--quiet",
)
ALL, TORCH, CPU = "requirements.txt", "requirements-torch.txt", "requirements-torch-cpu.txt"
WITH_TORCH = re.compile("(torch|triton)=|(nvidia|cuda)-")
HEAD = f"""\
# By .ci/lock.py: constraints.txt with the hashes of each package's files. One of
#   pip install --require-hashes -r {ALL} -r {TORCH}
#   pip install --require-hashes -r {ALL} -r {CPU}
# takes torch as most have it, on Linux with CUDA, or its build for the CPU alone.
"""


def entries(text: str) -> Iterator[str]:
    """Each requirement with its hashes."""
    yield from re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, re.M)


def of_wheels(wheels: list[Path]) -> str:
    """Builds of one version for one or more platforms, as a requirement."""
    (name,) = {"==".join(wheel.name.split("-")[:2]) for wheel in wheels}
    digests = sorted(hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
    return " \\\n    ".join([name, *(f"--hash=sha256:{each}" for each in digests)]) + "\n"


def main() -> None:
    found = subprocess.run(COMPILE, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    texts = {ALL: HEAD, TORCH: HEAD, CPU: HEAD + of_wheels(list(map(Path, sys.argv[1:])))}
    for entry in entries(found):
        texts[TORCH if WITH_TORCH.match(entry) else ALL] += entry
    for name, text in texts.items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
