"""A forked process: how it ends, that its end is told, and that it does not outlive its parent."""

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from testbed.processes import child as child_module
from testbed.processes.channel import Channel
from testbed.processes.child import (
    Child,
    NotForked,
    describe_exit,
    die_with_parent,
    fork_alone,
    watch_parent,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="a parent-death signal needs Linux")


def sleep_forever() -> None:
    while True:
        signal.pause()


def ended(body) -> Child:
    child = Child("test", body)
    assert child.wait(10)
    return child


def exit_with(code):
    raise SystemExit(code)


def test_a_body_that_returns_exits_with_0():
    child = ended(lambda: None)
    assert not child.poll()
    assert describe_exit(child.exit_status) == "exited with 0"


def test_a_body_that_raises_exits_with_1_and_says_why(capfd):
    child = ended(lambda: 1 / 0)
    assert describe_exit(child.exit_status) == "exited with 1"
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "status"), [(3, 3), (0, 0), ("a text", 1)])
def test_a_body_may_choose_its_exit_status(code, status):
    child = ended(lambda: exit_with(code))
    assert describe_exit(child.exit_status) == f"exited with {status}"


def test_kill_ends_a_child_by_its_id():
    child = Child("test", sleep_forever)
    assert child.poll()
    assert not child.wait(0)
    child.kill()
    assert describe_exit(child.exit_status) == "killed by SIGKILL"
    child.kill()


def test_signals_that_ask_a_whole_group_to_end_are_its_owners():
    def body() -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)

    assert describe_exit(ended(body).exit_status) == "exited with 0"


def test_what_is_printed_is_printed_once(tmp_path, monkeypatch):
    path = tmp_path / "out"
    with path.open("w") as buffered:
        monkeypatch.setattr(sys, "stdout", buffered)
        print("before,", end="")
        ended(lambda: print("within,", end=""))
        print("after", end="")
    assert path.read_text() == "before,within,after"


def test_a_process_without_standard_output_has_children_too(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert describe_exit(ended(lambda: None).exit_status) == "exited with 0"


def test_the_parents_signal_mask_is_as_before():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ended(lambda: None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_child_has_a_channel_to_its_parent():
    ours, theirs = Channel.pair()
    child = Child("test", lambda: theirs.send({"double": 2 * theirs.receive(10)["number"]}))
    theirs.close()
    ours.send({"number": 21})
    assert ours.receive(10) == {"double": 42}
    assert child.wait(10)
    ours.close()


@linux
def test_a_child_dies_when_its_parent_is_killed():
    reader, writer = os.pipe()

    def parent() -> None:
        Child("grandchild", lambda: (os.write(writer, b"up"), sleep_forever()))
        sleep_forever()

    child = Child("parent", parent)
    os.close(writer)
    assert os.read(reader, 2) == b"up"
    child.kill()
    # Both held the pipe's other end: its end is that of the grandchild.
    assert select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b""
    os.close(reader)


def test_elsewhere_a_child_that_watches_its_parent_ends_with_it(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(child_module, "PARENT_CHECK_S", 0.01)
    reader, writer = os.pipe()

    def grandchild() -> None:
        signal.alarm(30)
        watch_parent(os.getppid())
        os.write(writer, b"up")
        sleep_forever()

    child = Child("parent", lambda: (Child("grandchild", grandchild), sleep_forever()))
    os.close(writer)
    assert os.read(reader, 2) == b"up"
    assert not select.select([reader], [], [], 0.1)[0], "it ended with its parent alive"
    child.kill()
    assert select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b""
    os.close(reader)


@linux
def test_a_child_whose_parent_has_gone_already_ends_at_once(capfd):
    child = ended(lambda: (die_with_parent(os.getpid()), print("still here")))
    assert describe_exit(child.exit_status) == "exited with 1"
    assert capfd.readouterr().out == ""


def test_wait_returns_soon_after_the_end():
    reader, writer = os.pipe()
    child = Child("test", lambda: (os.read(reader, 1), None)[1])
    os.write(writer, b"x")
    start = time.monotonic()
    assert child.wait(60)
    assert time.monotonic() - start < 30
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_status_in_words():
    assert describe_exit(7 << 8) == "exited with 7"
    assert describe_exit(signal.SIGSEGV) == "killed by SIGSEGV"


def test_a_lone_fork_leaves_out_what_python_does_in_a_child():
    heard_read, heard_write = os.pipe()
    body = f"""
import os
from testbed.processes.child import fork_alone
os.register_at_fork(after_in_child=lambda: os.write({heard_write}, b"python's "))
for fork in (os.fork, fork_alone):
    if (pid := fork()) == 0:
        os.write({heard_write}, b"child ")
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", body], check=True, timeout=30, pass_fds=(heard_write,))
    os.close(heard_write)
    with os.fdopen(heard_read) as heard:
        assert heard.read() == "python's child child "


def test_a_process_that_cannot_be_had_is_named(monkeypatch):
    def no_more():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def no_more_alone():
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(os, "fork", no_more)
    monkeypatch.setattr(child_module, "_libc", SimpleNamespace(fork=no_more_alone))
    with pytest.raises(NotForked, match=r"^start the prober: there are as many processes as a lim"):
        Child("prober", lambda: None)
    with pytest.raises(NotForked, match=r"^there are as many processes as a limit"):
        fork_alone()


def test_children_of_lone_forks_draw_different_numbers():
    heard_read, heard_write = os.pipe()
    body = f"""
import os, random
from testbed.processes.child import fork_alone
random.seed(1)
for _ in range(2):
    if (pid := fork_alone()) == 0:
        os.write({heard_write}, f"{{random.random()}} ".encode())
        os._exit(0)
    os.waitpid(pid, 0)
os.write({heard_write}, str(random.random()).encode())
"""
    subprocess.run([sys.executable, "-c", body], check=True, timeout=30, pass_fds=(heard_write,))
    os.close(heard_write)
    with os.fdopen(heard_read) as heard:
        assert len(set(heard.read().split())) == 3
