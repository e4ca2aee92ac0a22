"""A forked process that its parent owns: it dies with the parent, and is ended by its own id."""

import contextlib
import ctypes
import errno
import os
import platform
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

from testbed.processes import signals, states
from testbed.processes.channel import ChannelClosed

PR_SET_PDEATHSIG = 1
PARENT_CHECK_S = 1.0
ABOUT_TO_END_S = 1.0
_LIMITS = (
    "a limit of the user's (ulimit -u), a control group's (pids.max) or the kernel's (pid_max)"
)
_CLONE = {"x86_64": 56, "aarch64": 220}
"""Number of the system call by machine."""
# Loaded once: to load a library makes a class, which only the collector can remove.
_libc = ctypes.PyDLL(None, use_errno=True)


class NotForked(OSError):
    """No process more is to be had; the text says why, and what would be wanted."""

    def __str__(self) -> str:
        start = f"start the {self.filename}: " if self.filename else ""
        if self.errno == errno.ENOMEM:
            return f"{start}{self.strerror}; free some of this machine's memory"
        if self.errno == errno.EAGAIN:
            return f"{start}there are as many processes as {_LIMITS} lets be"
        return f"{start}{self.strerror}"


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which made it, ends.

    Linux only; elsewhere a process notices its parent's end by the channel between them, or by
    ``watch_parent``. A change of user namespace clears the setting, so a node calls this once more
    after it has entered its own. The parent must fork from its main thread: the signal comes when
    that thread ends.
    """
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def watch_parent(parent: int) -> None:
    """End this process within a second of ``parent``'s end, where the kernel does not do it.

    By a thread, so only for a process that forks no more.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    if sys.platform != "linux":
        threading.Thread(target=watch, daemon=True).start()


class Child:
    """A process that runs ``body`` and exits: 0 when it returns, 1 when it raises."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        self.name = name
        self.exit_status: int | None = None
        """As from waitpid, once the process has been seen to end."""
        for stream in (sys.stdout, sys.stderr):
            # None where this process was started without, broken where nobody reads any more.
            with contextlib.suppress(AttributeError, OSError):
                stream.flush()
        parent = os.getpid()
        # A handler that ran in the child before it is one would raise through the parent's code.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
        try:
            self.pid = os.fork()
        except OSError as error:
            raise NotForked(error.errno, error.strerror, name) from None
        else:
            if self.pid == 0:
                run_as_child(body, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> bool:
        """Whether the process still runs."""
        if self.exit_status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_status = status
        return self.exit_status is None

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False where it still runs after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.poll():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def ended(self, timeout_s: float = 0.0) -> str | None:
        """How it ended, in words, where it does within ``timeout_s``."""
        if not self.wait(timeout_s) or self.exit_status is None:
            return None
        return describe_exit(self.exit_status)

    def is_stopped(self) -> bool:
        """Whether a signal or a debugger holds it; False where the system does not tell."""
        return self.poll() and states.is_held(self.pid)

    def condition(self) -> str:
        """Why it does not answer: "was killed by SIGKILL", "is stopped (process 4711)"."""
        if self.is_stopped():
            return f"is stopped (process {self.pid}; kill -CONT lets it go on)"
        # One whose channel is closed is about to end.
        how = self.ended(ABOUT_TO_END_S) or "did not answer in time"
        return f"was {how}" if how.startswith("killed") else how

    def kill(self) -> None:
        """End it now. Safe by id: a child that was not waited for keeps its id."""
        if self.poll():
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)


def fork_alone(namespaces: int = 0) -> int:
    """Fork a process of one thread, as ``os.fork`` but without most of what Python does after it.

    ``namespaces``: new ones that the child is the first process of, as flags of clone(2).

    That renews locks and forgets threads, of which there are none, in Python and in a dozen
    packages: a megabyte that each child would write to and no longer share. What is left is that
    no two children draw the same from ``random``.

    Raises:
        NotForked: the system takes no more processes.
    """
    if namespaces:
        number = _CLONE.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, f"no number of clone(2) is known for {platform.machine()}")
        # Without a stack of its own the child goes on with a copy of this one, as from fork.
        flags = ctypes.c_ulong(namespaces | signal.SIGCHLD)
        pid: int = _libc.syscall(number, flags, 0, 0, 0, 0)
    else:
        pid = _libc.fork()
    if pid < 0:
        number = ctypes.get_errno()
        raise NotForked(number, os.strerror(number))
    if pid == 0:
        random.seed()
    return pid


def run_as_child(body: Callable[[], None], parent: int) -> None:
    """Be the forked process: run ``body`` and exit. Never returns.

    Signals that ask for an end come to all of a process group, as of a terminal or ``timeout``;
    only who owns the processes obeys them, and ends each in its turn.
    """
    code = 1
    try:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDING)
        body()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except ChannelClosed:
        pass  # Whom it would tell is gone, and has its own words for that.
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def describe_exit(status: int) -> str:
    """A wait status in words: "killed by SIGKILL", "exited with 3"."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with {os.waitstatus_to_exitcode(status)}"
