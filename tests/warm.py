"""Programs of ours as `subprocess` starts them, each forked from a process that has torch already.

An interpreter and its imports take a core for seconds, and a run that is tested few more; a fork is
there in milliseconds. What is started so has its id, session, folder, environment, streams and exit
status as any other, and is a child of who started it. What is not its own are its imports and the
seed of its hashes: tests of those, of Python's start or of its end start a real one (`subprocess`).
"""

import atexit
import faulthandler
import functools
import gc
import importlib
import inspect
import json
import os
import platform
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from testbed.links.linux.namespaces import enter
from testbed.processes.child import fork_alone

ROOT = Path(__file__).parents[1]
IMPORTED = (
    *("experiments.commands.launch", "experiments.launch", "experiments.resume"),
    *("experiments.footprint", "experiments.trial_run", "nodes.program", "nodes.checkpoint.store"),
    *("methods.fedavg", "methods.fedpeft", "testbed.report.page.run_page", "torch.optim"),
)
"""What a default run imports."""
MODELLED = "--compute=modelled"
IMPORTED_TO_MODEL = ("torch.fx.experimental.symbolic_shapes", "torch._dynamo")
"""What torch itself does at the first operation on tensors without values."""
READ_AT_THE_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "TORCH_", "OMP_", "MKL_")
"""Begins names of variables that an interpreter, or what it imports, reads but once."""
FAULTS = "PYTHONFAULTHANDLER"
"""One that a fork can heed as well."""
MOST_BYTES = 1 << 17
MOST_HANDLES = 16
LIMIT_S = 90.0
_PROGRAM = f"""
import sys
sys.path[:1] = {[str(ROOT), str(ROOT / "tests")]}
import warm
del sys.path[1]
warm.serve()
"""
_CLONE_PARENT = 0x8000
_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, forked where the words are this interpreter's and a file's of ours.

    ``namespaces``: descriptors of those that the process enters. ``other``: forked from another
    process, which has another seed of its hashes and so another order of its sets.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        namespaces: Sequence[int] = (),
        other: bool = False,
        **options: Any,
    ) -> None:
        self._namespaces, self._other = tuple(namespaces), other
        if namespaces:
            options["preexec_fn"] = self._before_a_start
        super().__init__(words, **options)

    def _before_a_start(self) -> None:
        enter(self._namespaces)

    def _execute_child(self, *arguments: Any) -> None:
        told = _SIGNATURE.bind(self, *arguments).arguments
        words = [os.fspath(word) for word in told["args"]]
        environment = dict(os.environ if told["env"] is None else told["env"])
        if not self._can_be_forked(told, words, environment):
            super()._execute_child(*arguments)
            return
        ends = ("p2cread", "c2pwrite", "errwrite")
        streams = [n if told[end] == -1 else told[end] for n, end in enumerate(ends)]
        request = {
            "words": words[1:],
            "folder": os.fspath(told["cwd"] or os.getcwd()),
            "environment": environment,
            "session": told["start_new_session"],
        }
        self.pid = self._template(words).fork(request, [*streams, *self._namespaces])
        self._child_created = True
        self._close_pipe_fds(
            *(told[end] for end in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread")),
            told["errwrite"],
        )

    def _template(self, words: list[str]) -> "_Template":
        return _template(self._other, MODELLED in words)

    def _can_be_forked(
        self, told: Mapping[str, Any], words: list[str], environment: Mapping[str, str]
    ) -> bool:
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            return False
        if told["preexec_fn"] not in (None, self._before_a_start):
            return False
        if told["pass_fds"] or told["shell"]:
            return False
        if words[0] != sys.executable or not words[1].endswith(".py"):
            return False
        first = self._template(words).environment
        changed = {
            name
            for name in first.keys() | environment.keys()
            if first.get(name) != environment.get(name) and name != FAULTS
        }
        return not any(name.startswith(READ_AT_THE_START) for name in changed)


def run(words: Sequence[str | Path], timeout: float = LIMIT_S, **options: Any) -> Any:
    """As `subprocess.run` with both outputs captured as text."""
    for name in ("stdout", "stderr"):
        options.setdefault(name, subprocess.PIPE)
    with Popen(words, stdin=subprocess.DEVNULL, text=True, **options) as process:
        try:
            told = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, *told)


class _Template(NamedTuple):
    """The process that others are forked from, as its parent has it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    environment: dict[str, str]
    lock: threading.Lock

    def heard(self) -> int:
        """Its next word: a process, or 0 once it is ready for the first."""
        try:
            return int(self.channel.recv(MOST_BYTES))
        except (OSError, ValueError):
            # What it says later would be taken for the answer to what is asked then.
            self.close()
            _template.cache_clear()
            raise

    def fork(self, request: Mapping[str, Any], handles: list[int]) -> int:
        with self.lock:
            socket.send_fds(self.channel, [json.dumps(request).encode()], handles)
            return self.heard()

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


@functools.cache
def _template(other: bool, modelled: bool) -> _Template:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(LIMIT_S)
    environment = dict(os.environ)
    more = IMPORTED_TO_MODEL if modelled else ()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), *IMPORTED, *more],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        # What ends a group of processes ends none that tests are still to be forked from.
        start_new_session=True,
    )
    theirs.close()
    template = _Template(process, ours, environment, threading.Lock())
    atexit.register(template.close)
    template.heard()
    return template


def serve() -> None:
    """Be the process that others are forked from."""
    channel, *names = sys.argv[1:]
    asked = socket.socket(fileno=int(channel))
    # First, before numpy and torch come in: it sees to it that there will be one thread.
    import cli  # noqa: F401

    for name in names:
        importlib.import_module(name)
    # What torch has registered it would take back at each program's end, an operator at a time.
    for each in weakref.finalize._registry:  # type: ignore[attr-defined]
        each.atexit = False
    gc.collect()
    gc.freeze()
    asked.send(b"0")
    while True:
        request, handles, _, _ = socket.recv_fds(asked, MOST_BYTES, MOST_HANDLES)
        if not request:
            os._exit(0)
        pid = fork_alone(_CLONE_PARENT)
        if not pid:
            asked.close()
            _be(handles, **json.loads(request))
        for handle in handles:
            os.close(handle)
        asked.send(str(pid).encode())


def _be(
    handles: list[int],
    words: list[str],
    folder: str,
    environment: dict[str, str],
    session: bool,
) -> None:
    """Be the program, to its end. Never returns."""
    code = 1
    try:
        if session:
            os.setsid()
        for descriptor, handle in enumerate(handles[:3]):
            os.dup2(handle, descriptor)
        if namespaces := handles[3:]:
            enter(tuple(namespaces))
        for handle in handles:
            os.close(handle)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None
        faulthandler.enable(2) if environment.get(FAULTS) else faulthandler.disable()
        _open_streams()
        del sys.modules["cli"]  # It takes the time at which it is imported.
        sys.argv = words
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # What Python does at its end, but for taking every module apart, which takes longest.
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 120
        os._exit(code)


def _open_streams() -> None:
    """As Python does at its start: what a stream can do, such as seek, it has found out by then."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        told = {"encoding": before.encoding, "errors": before.errors, "closefd": False}
        stream = os.fdopen(number, "w" if number else "r", **told)
        stream.reconfigure(line_buffering=before.line_buffering or os.isatty(number))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
