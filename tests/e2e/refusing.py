"""Many commands that are refused, each in a process of its own that need not import torch again.

That takes seconds where a refusal is there in milliseconds. Started as a program, this reads a case
a line (arguments, and files for the two outputs), and answers each with the session that it had and
its exit status.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).parents[2]
LIMIT_S = 90


class Refused(NamedTuple):
    out: Path
    session: int
    status: int
    stdout: str
    stderr: str


def refusals(cases: Iterable[list[str]], folder: Path) -> list[Refused]:
    """``launch`` with each of these flags, which say nothing of where the results are."""
    lines, outs = [], []
    for number, flags in enumerate(cases):
        out = folder / f"out-{number}"
        told = [str(out.with_suffix(f".{name}")) for name in ("stdout", "stderr")]
        lines.append(json.dumps([["launch", f"--out={out}", *flags], *told]))
        outs.append(out)
    ended = subprocess.run(
        [sys.executable, __file__],
        input="\n".join(lines),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    found = []
    for out, line in zip(outs, ended.stdout.splitlines(), strict=True):
        session, status = json.loads(line)
        texts = [out.with_suffix(f".{name}").read_text() for name in ("stdout", "stderr")]
        found.append(Refused(out, session, status, *texts))
    return found


def serve(asked: TextIO) -> None:
    import cli

    for each in ("experiments.commands.launch", "experiments.launch", "nodes.program"):
        importlib.import_module(each)
    for line in asked:
        words, *told = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()
            for descriptor, path in enumerate((os.devnull, *told)):
                flags = os.O_RDWR | (os.O_CREAT if descriptor else 0)
                os.dup2(os.open(path, flags, 0o600), descriptor)
            sys.argv = ["cli.py", *words]
            try:
                cli.run()
            except SystemExit as end:
                sys.stdout.flush()
                sys.stderr.flush()
                # Without what Python does at its end, which takes longest of all.
                os._exit(end.code if isinstance(end.code, int) else 1)
        _, status = os.waitpid(child, 0)
        print(json.dumps([child, os.waitstatus_to_exitcode(status)]), flush=True)


if __name__ == "__main__":
    serve(sys.stdin)
