"""Networks that stay: up, listed, entered by any process of their user, gone without a trace."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path

import psutil
import pytest

from testbed.library import places, visit
from testbed.library.lines import Begun, Enter, VisitAnswer
from testbed.library.lines import Signal as VisitSignal
from testbed.links.interface import LinkError
from testbed.processes.channel import Channel

pytestmark = pytest.mark.usefixtures("userspace_links")

ROOT = Path(__file__).parents[2]
LINK = "down 20mbit up 5mbit delay 5ms"
LIMIT_S = 60.0
HEED = """
import signal, sys
heeded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
print("ready", flush=True)
number = signal.sigwait(heeded)
print(number.name, flush=True)
sys.exit(number)
"""
AT_A_TERMINAL = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print(os.isatty(0), *os.get_terminal_size(), os.tcgetpgrp(0) == os.getpgrp(), flush=True)
print(input(), flush=True)
signal.pause()
"""


class Caller:
    """A user with networks of its own, which end with it."""

    def __init__(self, folder, prefix=()):
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        for name in (places.VARIABLE, "OMP_NUM_THREADS"):
            self.environment.pop(name, None)
        self.home = folder / "wiretune"
        self._words = [*prefix, sys.executable, str(ROOT / "cli.py")]

    def start(self, *words, **options):
        return subprocess.Popen([*self._words, *words], env=self.environment, text=True, **options)

    def call(self, *words, code=0, **options):
        """What a command prints; it must end with ``code``."""
        options = {"capture_output": True, "text": True, "timeout": LIMIT_S, **options}
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        done = subprocess.run([*self._words, *words], env=self.environment, **options)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if not code or done.stdout else done.stderr

    def up(self, name, *words, clients=1):
        flags = (f"--profile={LINK}", f"--clients={clients}", "--links=userspace")
        return self.call("up", *flags, "--no-calibrate", f"--name={name}", *words)

    def listed(self):
        return json.loads(self.call("networks", "--json"))

    def programs(self):
        return sum(node["programs"] for each in self.listed() for node in each["nodes"])

    def tree(self, name):
        """The keeper of a network and all its processes."""
        keeper = psutil.Process(keeper_of(self.home / name))
        return keeper, {keeper, *keeper.children(recursive=True)}


def keeper_of(folder):
    with places.connect(folder) as connection:
        size = struct.calcsize("3i")
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", told)[0]


def alive(processes):
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def calling(prefix=()):
    with tempfile.TemporaryDirectory(prefix="of-a-test-") as folder:
        one = Caller(Path(folder), prefix)
        try:
            yield one
        finally:
            one.call("down", "--all")


@pytest.fixture
def caller():
    with calling() as one:
        yield one


@pytest.fixture(scope="module")
def lab():
    with calling() as one:
        one.up("lab", clients=2)
        yield one


def test_a_network_stays_and_is_listed(lab):
    (found,) = lab.listed()
    assert (found["name"], found["verdict"]) == ("lab", None)
    assert found["links"] == "links: userspace, as asked"
    names = [node["name"] for node in found["nodes"]]
    assert names == ["server", "client-1", "client-2"]
    assert "lab" in lab.call("networks", "--plain") and "userspace" in lab.call("networks")


def test_a_command_is_words_after_dashes_and_else_a_line_as_rsh_has_it(lab):
    words = ("echo", "$HOME", "a   b", "$WIRETUNE_NODE")
    assert lab.call("on", "client-1", "--", *words) == "$HOME a   b client-1\n"
    assert lab.call("on", "client-2", "echo", "a   b", ";", "hostname") == "a b\nclient-2\n"
    assert lab.call("on", "client-1", "--", "printenv", "OMP_NUM_THREADS", code=1) == ""
    assert lab.call("on", "client-1", "ls", "-d", "/tmp") == "/tmp\n"
    assert "after -- there is no command" in lab.call("on", "client-1", "--", code=2)
    said = lab.call("on", "client-3", "ls", code=2)
    assert "node 'client-3': is none of network lab: did you mean client-" in said


def test_a_command_ends_as_itself(lab):
    lab.call("on", "server", "exit 7", code=7)
    lab.call("on", "server", "kill -TERM $$", code=143)
    said = lab.call("on", "client-1", "--", "no-such-program", code=127)
    assert said.startswith("client-1: no-such-program: ")
    assert lab.call("on", "client-1", "--", "", code=127).startswith("client-1: '': ")


def test_streams_are_the_callers(lab, tmp_path):
    assert lab.call("on", "client-1", "--", "cat", input="words\n") == "words\n"
    assert lab.call("on", "client-1", "echo wrong >&2; exit 3", code=3) == "wrong\n"
    file = tmp_path / "note"
    lab.call("on", "client-1", "pwd > note", cwd=tmp_path)
    assert file.read_text() == f"{tmp_path}\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_command_gets_the_signals_of_its_caller(lab, name):
    number = signal.Signals[name]
    words = ("on", "client-1", "--", sys.executable, "-c", HEED)
    with lab.start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        assert program.communicate(timeout=LIMIT_S)[0] == f"{name}\n"
    assert program.returncode == number


def test_what_no_program_can_have_ends_no_network(lab):
    """A visitor of another make: words and signals that the kernel does not take."""
    channel = Channel(places.connect(lab.home / "lab"), VisitAnswer, "the keeper")
    try:
        channel.send(Enter("client-1", [b"a\0b"], False, [b"A=1"], b"/"), (0, 1, 2))
        assert "start a program: embedded null byte" in channel.receive(LIMIT_S).reason
        channel.send(Enter("client-1", [b"sleep 600"], True, [b"PATH=/bin"], b"/"), (0, 1, 2))
        for number in (999, -1, int(signal.SIGSTOP), int(signal.SIGTERM)):
            channel.send(VisitSignal(number))
        assert channel.receive(LIMIT_S) == Begun()
        assert channel.receive(LIMIT_S).code == 143
    finally:
        channel.close()
    assert lab.call("on", "client-1", "hostname") == "client-1\n"


def sleeps(caller, name="lab"):
    """Processes of a network that sleep: where there are some, the shell that began them waits."""
    found = set()
    for each in caller.tree(name)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "sleep" in each.name():
                found.add(each)
    return found


def test_an_interrupt_reaches_all_that_a_line_started(lab, until):
    line = "echo ready; sleep 600; echo on"
    with lab.start("on", "client-1", line, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == "ready\n"
        until(lambda: sleeps(lab), "it sleeps", LIMIT_S)
        program.send_signal(signal.SIGINT)
        assert program.communicate(timeout=LIMIT_S)[0] == ""
    assert program.returncode == 130


def test_a_caller_that_is_killed_takes_its_command_along(lab, until):
    words = ("on", "client-1", "echo ready; sleep 600")
    with lab.start(*words, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == "ready\n"
        found = until(lambda: sleeps(lab), "it sleeps", LIMIT_S)
        program.kill()
    until(lambda: not alive(found) and not lab.programs(), "the command is gone", LIMIT_S)


def test_what_a_line_leaves_behind_goes_on(lab, until):
    lab.call("on", "client-1", "sleep 600 > /dev/null 2>&1 &")
    count = "cat /proc/[0-9]*/comm | grep -c sleep"
    assert lab.call("on", "client-1", count) == "1\n"
    lab.call("on", "client-1", "kill -KILL $(grep -l sleep /proc/[0-9]*/comm | cut -d/ -f3)")
    until(lambda: lab.call("on", "client-1", count, code=1) == "0\n", "it is gone", LIMIT_S)


def exit_code(pid, until):
    _, status = until(
        lambda: ready if (ready := os.waitpid(pid, os.WNOHANG))[0] else None, "it ends", LIMIT_S
    )
    return os.waitstatus_to_exitcode(status)


def read_until(master, text):
    found = b""
    while text not in found:
        assert select.select([master], [], [], LIMIT_S)[0], f"not within {LIMIT_S} s after {found}"
        found += os.read(master, 4096)
    return found


def test_a_command_at_a_terminal_has_one_of_its_own(lab, until):
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        words = [sys.executable, str(ROOT / "cli.py"), "on", "client-1", "--", sys.executable]
        os.execvpe(words[0], [*words, "-c", AT_A_TERMINAL], lab.environment)
    before = termios.tcgetattr(master)
    assert b"True 99 33 True\r\n" in read_until(master, b"\n")
    os.write(master, b"typed\r")
    assert b"typed\r\n" in read_until(master, b"typed\r\ntyped\r\n")
    os.write(master, b"\x03")
    assert exit_code(pid, until) == 130
    assert termios.tcgetattr(master) == before
    os.close(master)


def test_a_prompt_at_a_terminal(lab, until):
    pid, master = pty.fork()
    if pid == 0:
        words = [sys.executable, str(ROOT / "cli.py"), "shell"]
        os.execvpe(words[0], words, lab.environment)
    read_until(master, b"lab> ")
    os.write(master, b"client-2 hostname\r")
    assert b"client-2\r\n" in read_until(master, b"client-2\r\nlab> ")
    # Interrupted as soon as the line is no longer the prompt's, and once the program is there.
    for awaited in (False, True):
        os.write(master, b"client-2 exec sleep 600\r")
        read_until(master, b"600\r\n")
        if awaited:
            until(lambda: sleeps(lab), "it sleeps", LIMIT_S)
        os.write(master, b"\x03")
        read_until(master, b"lab> ")
        until(lambda: not sleeps(lab), "it is interrupted", LIMIT_S)
    os.write(master, b"exit\r")
    assert exit_code(pid, until) == 130
    os.close(master)


def test_a_prompt_takes_lines_of_a_file(lab):
    lines = "nodes\nclient-1 ping -c 1 -W 5 server > /dev/null && echo came\nclient-2 exit 5\n"
    if shutil.which("ping") is None:
        lines = lines.replace("ping -c 1 -W 5 server > /dev/null", "true")
    said = lab.call("shell", input=lines, code=5)
    assert said == "server client-1 client-2\ncame\n"
    assert "client-1" in lab.call("shell", "--plain", input="links\n")


def test_programs_in_a_node_get_to_others_as_by_rsh(lab):
    """In the order of words in which mpiexec and its like call their launcher."""
    line = '"$WIRETUNE_NETWORK/rsh" client-2 hostname ";" exit 9'
    assert lab.call("on", "server", line, code=9) == "client-2\n"


def test_several_are_up_at_once(lab):
    lab.up("other")
    assert [each["name"] for each in lab.listed()] == ["lab", "other"]
    said = lab.call("on", "client-1", "hostname", code=2)
    assert "several networks are up, lab, other: say which one is meant" in said
    where = "echo ${WIRETUNE_NETWORK##*/} $WIRETUNE_SIZE"
    assert lab.call("on", "--network=other", "client-1", where) == "other 2\n"
    assert "a network of that name is up" in lab.call("up", "--name=other", code=2)
    assert lab.call("down", "other") == "ended: other\n"
    assert "network 'other': is not up" in lab.call("down", "other", code=2)
    assert [each["name"] for each in lab.listed()] == ["lab"]


def running(caller, name, until):
    """A network with a program that ignores its end and has a grandchild; its processes."""
    caller.up(name)
    line = "trap '' TERM HUP INT; setsid sleep 600 & echo ready; sleep 600; sleep 600"
    program = caller.start("on", "client-1", line, stdout=subprocess.PIPE)
    assert program.stdout.readline() == "ready\n"
    until(lambda: len(sleeps(caller, name)) == 2, "both sleep", LIMIT_S)
    keeper, tree = caller.tree(name)
    return program, keeper, tree


def test_nothing_is_left_of_a_network_that_is_ended(caller, until):
    program, _, tree = running(caller, "lab", until)
    with program:
        assert caller.call("down") == "ended: lab\n"
        assert alive(tree) == []
        assert list(caller.home.iterdir()) == []
        program.communicate(timeout=LIMIT_S)
    assert program.returncode in (1, 137)


def test_nothing_is_left_of_a_keeper_that_is_killed(caller, until):
    program, keeper, tree = running(caller, "lab", until)
    with program:
        keeper.kill()
        until(lambda: not alive(tree), "its processes are gone", LIMIT_S)
        program.communicate(timeout=LIMIT_S)
    assert program.returncode == 1
    assert caller.listed() == []
    assert list(caller.home.iterdir()) == []
    caller.up("lab")
    assert caller.call("on", "client-1", "hostname") == "client-1\n"


def test_a_keeper_that_is_stopped_is_ended_all_the_same(caller, monkeypatch, until):
    caller.up("lab")
    keeper, tree = caller.tree("lab")
    keeper.suspend()
    receive = Channel.receive
    monkeypatch.setattr(Channel, "receive", lambda self, limit_s: receive(self, 0.1))
    visit.end(caller.home / "lab")
    until(lambda: not alive(tree), "its processes are gone", LIMIT_S)
    assert list(caller.home.iterdir()) == []


def test_a_keeper_that_is_stopped_begins_no_program(caller, monkeypatch):
    caller.up("lab")
    keeper, _ = caller.tree("lab")
    keeper.suspend()
    monkeypatch.setattr(visit, "ANSWER_LIMIT_S", 0.2)
    own, theirs = os.pipe()
    run = functools.partial(visit.run, caller.home / "lab", "client-1", "true", os.environ)
    with pytest.raises(LinkError, match="its keeper began nothing within"):
        run(streams=(own, theirs, theirs))
    os.close(theirs)
    os.set_blocking(own, False)
    assert os.read(own, 1) == b"", "the keeper has it still"
    os.close(own)
    monkeypatch.setattr(visit, "ANSWER_LIMIT_S", LIMIT_S)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert run() == 128 + signal.SIGTERM
    keeper.resume()


def without_children():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def test_whoever_hears_of_no_childs_end_is_told_of_a_programs(caller):
    words = ("up", f"--profile={LINK}", "--links=userspace", "--no-calibrate", "--name=lab")
    caller.call(*words, preexec_fn=without_children)
    assert caller.call("on", "client-1", "exit 7", code=7, preexec_fn=without_children) == ""


def test_a_network_of_a_prompt_ends_with_its_owner(caller, until):
    words = ("up", f"--profile={LINK}", "--clients=1", "--no-calibrate", "--prompt", "--name=own")
    said = caller.call(*words, input="client-1 hostname\nclient-1 exit 4\n", code=4)
    assert said.endswith("network: own\nclient-1\n")
    assert list(caller.home.iterdir()) == []
    with caller.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        while owner.stdout.readline() != "network: own\n":
            assert owner.poll() is None
        _, tree = caller.tree("own")
        owner.kill()
    until(lambda: not alive(tree), "its processes are gone", LIMIT_S)
    assert caller.listed() == []


TOKEN = "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -c s3cret; env | grep -c WIRETUNE_TOKEN"


def test_no_node_gets_the_token_of_the_hosts(caller):
    """Neither from a caller's environment nor from that of the node's first process."""
    caller.environment["WIRETUNE_TOKEN"] = "s3cret" * 6
    caller.up("lab")
    assert caller.call("on", "client-1", f"{TOKEN}; true") == "0\n0\n"
    assert caller.call("shell", input=f"client-1 {TOKEN}\n", code=1) == "0\n0\n"


SLOW = """
import pathlib, sys, time
if "keeper" in " ".join(sys.orig_argv):
    pathlib.Path({ready!r}).touch()
    time.sleep(2)
"""


def test_an_interrupt_of_up_leaves_nothing_and_says_nothing_else(caller, tmp_path, until):
    """As a terminal sends it, to all in the group, while the keeper begins."""
    ready = tmp_path / "ready"
    (tmp_path / "sitecustomize.py").write_text(SLOW.format(ready=str(ready)))
    before = caller.environment.get("PYTHONPATH", "")
    caller.environment["PYTHONPATH"] = f"{tmp_path}:{before}"
    words = ("up", f"--profile={LINK}", "--clients=1", "--links=userspace", "--name=lab")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with caller.start(*words, start_new_session=True, **streams) as maker:
        until(ready.exists, "its keeper begins", LIMIT_S)
        (keeper,) = psutil.Process(maker.pid).children()
        assert os.getsid(keeper.pid) == keeper.pid
        os.killpg(maker.pid, signal.SIGINT)
        assert maker.communicate(timeout=LIMIT_S) == ("", "interrupted: stopped by SIGINT\n")
    assert maker.returncode == 130
    until(lambda: not alive({keeper}), "its keeper is gone", LIMIT_S)
    assert list(caller.home.iterdir()) == []


def test_a_disk_that_is_full_is_said(root):
    with tempfile.TemporaryDirectory(prefix="of-a-test-") as folder:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", folder], check=True
        )
        try:
            one = Caller(Path(folder))
            with contextlib.suppress(OSError), (Path(folder) / "others").open("wb", 0) as file:
                while file.write(bytes(512)):
                    pass
            flags = ("--clients=1", "--no-calibrate", "--links=userspace", "--name=lab")
            said = one.call("up", *flags, code=1)
            assert said.startswith("error: make a network in ") and "No space left" in said
            assert list(one.home.iterdir()) == []
            (Path(folder) / "others").unlink()
            one.home.joinpath("lab").touch()
            assert "make a network's folder: " in one.call("up", *flags, code=2)
            assert one.listed() == []
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_an_ordinary_user_has_them_too(without_capabilities, until):
    with calling(without_capabilities) as one:
        one.up("lab")
        assert one.call("on", "client-1", "hostname; id -u") == "client-1\n0\n"
        assert one.call("on", "server", '"$WIRETUNE_NETWORK/rsh" client-1 hostname') == "client-1\n"
        keeper, tree = one.tree("lab")
        keeper.kill()
        until(lambda: not alive(tree), "its processes are gone", LIMIT_S)
        assert one.listed() == []


def test_a_schedule_that_is_not_followed_is_told(caller, tmp_path):
    file = tmp_path / "changing.toml"
    file.write_text(
        "[up]\nrate_kbit = 5000\n[down]\nrate_kbit = 20000\n"
        "[[schedule]]\nat_s = 1\ndown = { rate_kbit = 100 }\n"
    )
    flags = (f"--profile={file}", "--clients=1", "--no-calibrate", "--links=userspace")
    said = "they stay as they begin, for no schedule is followed here (changing@"
    assert said in caller.call("up", *flags)
    (listed,) = caller.listed()
    assert said in listed["links"]


def test_links_that_cannot_be_leave_no_place(caller):
    flags = ("--clients=1", "--no-calibrate", "--links=loopback")
    assert "unknown links 'loopback'. Known: auto, netem, userspace" in caller.call(
        "up", *flags, code=2
    )
    assert list(caller.home.iterdir()) == []


def test_links_are_measured_where_nothing_else_is_said(caller):
    flags = (f"--profile={LINK}", "--clients=1", "--links=userspace", "--json")
    found = json.loads(caller.call("up", *flags))
    assert found["certificate"]["verdict"] in ("pass", "fail")
    (listed,) = caller.listed()
    assert (listed["name"], listed["verdict"]) == ("net-1", found["certificate"]["verdict"])
