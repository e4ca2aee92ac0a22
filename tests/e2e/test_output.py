"""What reaches terminals, pipes and full disks: of a run, and of the commands that print tables."""

import errno
import json
import os
import pty
import re
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm
from running import CLI, FAST, LIMIT_S, ROOT

import cli
from testbed.processes.child import NotForked

FLAGS = ("--links=loopback", "--profile=unlimited", "--clients=2", "--rounds=1", *FAST)
TENSORBOARD = ["--tensorboard"] if find_spec("tensorboard") else []
TABLES = [
    ("profiles",),
    ("profiles", "show", "4g"),
    ("doctor",),
    ("results",),
    ("compare", "RUN"),
    ("calibrate", "--profile=ethernet", "--links=loopback", "--seconds=5"),
    ("bench", "BENCH"),
]
NEUTRAL = {
    name: value
    for name, value in os.environ.items()
    if name not in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM", "COLUMNS")
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def ended(place):
    """How each way to run a launch ended: (exit status, stdout, stderr)."""
    ways = {"json": ["--json", *TENSORBOARD], "quiet": ["--quiet"], "left": [], "full": []}
    running = {}
    for name, flags in ways.items():
        read, write = os.pipe()
        stdout = {"full": os.open("/dev/full", os.O_WRONLY), "left": write}.get(
            name, subprocess.PIPE
        )
        # The end of an interpreter is a part of how what cannot be written ends.
        start = subprocess.Popen if name in ("left", "full") else warm.Popen
        running[name] = start(
            [*CLI, "launch", *FLAGS, f"--out={place / name}", *flags],
            cwd=ROOT,
            env=NEUTRAL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        # A reader that leaves before the first word.
        os.close(read)
        os.close(write)
        if name == "full":
            os.close(stdout)
    try:
        told = {name: process.communicate(timeout=LIMIT_S) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {name: (running[name].returncode, *told[name]) for name in ways}


def folder(place: Path, name: str) -> Path:
    (found,) = (each for each in (place / name).iterdir() if each.is_dir())
    return found


def test_launch_json_is_one_document(ended, place):
    status, stdout, stderr = ended["json"]
    assert status == 0, stderr
    found = json.loads(stdout)
    written = json.loads((folder(place, "json") / "summary.json").read_text())
    assert found == {"folder": str(folder(place, "json")), **written}
    # What a person would see of it stands beside.
    assert re.search(r"^round 1/1  accuracy", stderr, re.MULTILINE)


@pytest.mark.skipif(not TENSORBOARD, reason="needs the package tensorboard")
def test_launch_leaves_event_files_for_tensorboard(ended, place):
    assert f"tensorboard: {folder(place, 'json') / 'tensorboard'}" in ended["json"][2]
    assert list((folder(place, "json") / "tensorboard").glob("events.out.tfevents.*"))


def test_a_quiet_launch_says_the_folder(ended, place):
    status, stdout, stderr = ended["quiet"]
    assert (status, stdout, stderr) == (0, f"{folder(place, 'quiet')}\n", "")


def test_a_run_whose_reader_left_goes_on_to_its_end(ended, place):
    status, _, stderr = ended["left"]
    assert (status, stderr) == (0, "")
    run = folder(place, "left")
    assert json.loads((run / "summary.json").read_text())["status"] == "ok"
    assert (run / "report.html").exists()


def test_a_run_that_cannot_be_printed_goes_on_and_says_so(ended, place):
    status, _, stderr = ended["full"]
    assert status == 1
    assert stderr == "error: cannot write to standard output: No space left on device\n"
    run = folder(place, "full")
    assert json.loads((run / "summary.json").read_text())["status"] == "ok"
    assert (run / "report.html").exists()


def command(words, ended, place):
    """The words of a command over the runs that there are."""
    if words[0] == "results":
        return ("results", f"--out={place}")
    if words[0] == "compare":
        return ("compare", str(folder(place, "json")), str(folder(place, "quiet")))
    if words[0] == "bench":
        # It spends its budget at once: what is printed is why there is no result.
        flags = ("--methods=fedavg", "--links=loopback", "--profiles=wifi", "--budget=0")
        return ("bench", *flags, f"--out={place / 'bench'}")
    return words


def run(words, **options):
    return subprocess.run(
        [*CLI, *words], cwd=ROOT, timeout=LIMIT_S, stdin=subprocess.DEVNULL, **options
    )


@pytest.mark.parametrize("words", TABLES, ids=lambda words: "-".join(words[:2]))
def test_no_table_has_a_box_or_an_escape_in_a_pipe(words, ended, place):
    words = [*CLI, *command(words, ended, place)]
    done = warm.run(words, cwd=ROOT, env={**NEUTRAL, "TERM": "xterm"}, timeout=LIMIT_S)
    assert done.stdout and "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout
    assert not re.search("[\u2500-\u257f]", done.stdout)


@pytest.mark.parametrize("words", TABLES, ids=lambda words: "-".join(words[:2]))
def test_every_table_has_one_json_document(words, ended, place):
    words = [*CLI, *command(words, ended, place), "--json"]
    done = warm.run(words, cwd=ROOT, env=NEUTRAL, timeout=LIMIT_S)
    assert json.loads(done.stdout) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [*TABLES[:5], ("--help",), ("launch", "--help")], ids=lambda words: "-".join(words[:2])
)
def test_full_disks_and_closed_pipes_end_without_a_traceback(words, ended, place):
    words = command(words, ended, place)
    with Path("/dev/full").open("wb") as full:
        done = run(words, env=NEUTRAL, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1].startswith("error: cannot write to standard")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = run(words, env=NEUTRAL, stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def on_a_terminal(words, **environment):
    """What a command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*CLI, *words],
            cwd=ROOT,
            env={**NEUTRAL, "COLUMNS": "100", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        text = b""
        try:
            while part := screen.read(65536):
                text += part
        except OSError:  # As a terminal ends whose last process has gone.
            pass
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_S)
    return text.decode()


def test_a_terminal_has_boxes_and_colours_unless_asked_not_to():
    shown = on_a_terminal(["doctor"], TERM="xterm")
    assert "\x1b[32m" in shown and "┃" in shown
    bare = on_a_terminal(["doctor"], TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in bare and "┃" in bare
    for words, kind in ((["doctor", "--plain"], "xterm"), (["doctor"], "dumb")):
        plain = on_a_terminal(words, TERM=kind)
        assert "\x1b" not in plain and not re.search("[\u2500-\u257f]", plain)
        assert "links: loopback" in plain


def test_a_library_that_finds_no_memory_is_said_in_a_line(tmp_path):
    shell = ["sh", "-c", 'ulimit -v 400000 && exec "$@"', "sh", *CLI, "launch"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: cannot load lib") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        (MemoryError(), "out of memory: "),
        (NotForked(errno.EAGAIN, "x", "probe"), "start the probe: there are as many processes as "),
        (NotForked(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory; free some "),
    ],
)
def test_what_a_machine_lacks_is_said_in_a_line(lack, words, monkeypatch, capsys):
    def lacking(**ways):
        raise lack

    monkeypatch.setattr(cli.main, "main", lacking)
    assert cli._status() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words}") and said.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken(**ways):
        raise ImportError("cannot import name 'x'", path="/there/own.py")

    monkeypatch.setattr(cli.main, "main", broken)
    with pytest.raises(ImportError):
        cli._status()


@pytest.mark.parametrize("command", ["networks", "exec"])
def test_a_folder_that_is_gone_is_said_in_a_line(tmp_path, command):
    folder = tmp_path / "gone"
    folder.mkdir()
    words = ["sh", "-c", 'rmdir "$0" && exec "$@"', folder, *CLI, command]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this folder cannot be worked in: No such file")
