"""What is forked from a process that is there already is, to who started it, as any other."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import warm

PROGRAM = """
import json, os, signal, sys, threading
print(json.dumps({
    "words": sys.argv[1:],
    "name": __name__,
    "found": sys.path[0],
    "process": os.getpid(),
    "parent": os.getppid(),
    "session": os.getsid(0),
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "handles": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "threads": threading.active_count(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "torch": "torch" in sys.modules,
    "order": list({"these", "are", "a", "set", "of", "words", "in", "some", "order"}),
}))
print("words", file=sys.stderr)
sys.stdout.flush()
sys.stdin.read()
sys.exit(7)
"""


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return [sys.executable, str(file), "one", "two words"]


def told(program, **options):
    with warm.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (7, "words\n")
    found = json.loads(out)
    assert found["process"] == process.pid
    return found


def test_it_is_as_one_that_is_started(program, tmp_path):
    options = {"cwd": tmp_path, "env": {**os.environ, "OWN": "1"}, "start_new_session": True}
    found = told(program, **options)
    assert found["torch"]
    assert found["parent"] == os.getpid() and found["session"] == found["process"]
    assert (found["name"], found["words"]) == ("__main__", ["one", "two words"])
    assert found["folder"] == found["found"] == str(tmp_path)
    assert found["environment"] == options["env"]
    # The last is of the folder that it reads.
    assert found["handles"] == [0, 1, 2, 3] and found["threads"] == 1 and found["interrupt"]


def test_another_has_another_order_of_its_sets(program):
    one, same, other = (told(program, other=other) for other in (False, False, True))
    assert one["order"] == same["order"] != other["order"]


def test_what_is_read_at_a_start_has_one(program):
    found = told(program, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert not found["torch"] and found["parent"] == os.getpid()


@pytest.mark.parametrize(("asked", "says"), [("1", "Fatal Python error: Aborted"), ("", "")])
def test_one_that_is_to_say_where_it_was_aborted_does(tmp_path, asked, says):
    file = tmp_path / "program.py"
    file.write_text("import os, sys\nprint('torch' in sys.modules, flush=True)\nos.abort()")
    done = warm.run([sys.executable, file], env={**os.environ, "PYTHONFAULTHANDLER": asked})
    assert done.returncode == -signal.SIGABRT and done.stdout == "True\n"
    assert done.stderr.partition("\n")[0] == says


def test_it_ends_by_its_signals(program):
    with warm.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert b"words" in process.stdout.readline()
        assert process.poll() is None
        assert psutil.Process(process.pid).ppid() == os.getpid()
        process.terminate()
    assert process.returncode == -signal.SIGTERM


def test_what_raises_says_so(tmp_path):
    file = tmp_path / "program.py"
    file.write_text("raise KeyError('x')")
    done = warm.run([sys.executable, file])
    assert done.returncode == 1 and done.stderr.endswith("KeyError: 'x'\n")
