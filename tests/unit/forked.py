"""Code in processes of its own, forked from one that has imported what all of it begins with.

Importing torch takes seconds, and what is asked of such a process milliseconds. Started as a
program, this reads the beginning's code and then a case a line, and answers each with its status.
"""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
LIMIT_S = 110
"""Of the beginning and of each case, which need seconds."""


class Forks:
    """Processes in each of which ``beginning`` was run already."""

    def __init__(self, beginning: str) -> None:
        self._beginning = beginning

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask([self._beginning])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def printed(self, code: str, *arguments: object) -> str:
        """What ``code``, with these as ``sys.argv[1:]``, prints in a process of its own."""
        files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        status = self._ask([code, list(map(str, arguments)), *map(str, files)])
        told, error = (file.read_text() for file in files)
        assert status == 0, f"ended with {status}: {error}"
        return told

    def _ask(self, case: list[Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(case), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT_S + 5)
        assert ready, f"no answer within {LIMIT_S} s"
        line = self._process.stdout.readline()
        assert line, "it ended, and said why on this process' standard error"
        return int(line)


def serve() -> None:
    # As of `python -c`.
    sys.path[0] = str(ROOT)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    names: dict[str, Any] = {"__name__": "__main__"}
    (beginning,) = json.loads(sys.stdin.readline())
    exec(beginning, names)  # noqa: S102
    print(0, file=answers, flush=True)
    for line in sys.stdin:
        code, arguments, *files = json.loads(line)
        child = os.fork()
        if not child:
            signal.alarm(LIMIT_S)
            for descriptor, path in enumerate(files, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
            sys.argv = ["-c", *arguments]
            status = 1
            try:
                exec(code, names)  # noqa: S102
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # Without what Python does at its end, which takes long.
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), file=answers, flush=True)


if __name__ == "__main__":
    serve()
