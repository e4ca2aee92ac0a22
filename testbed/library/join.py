"""Joining: a program that runs another in a node, and is to its caller what that would be.

`join.py PID COMMAND...` enters the namespaces of the process PID, the first of the node, hands on
the signals that it is sent, and ends as the command does. Imports nothing of ours, so as to start
at once.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import termios

KINDS = ("user", "net", "mnt", "uts", "ipc", "pid")
KILL_ALL = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
"""Sent to this process, ends the command and what it started with SIGKILL."""
HANDED_ON = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT),
}
FROM_TERMINALS = (signal.SIGINT, signal.SIGQUIT)
"""Of these, those that a terminal sends to all that a command has in its group."""
_PR_SET_PDEATHSIG = 1
_NOT_FOUND, _NOT_JOINED = 127, 125

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    pid, command = sys.argv[1], sys.argv[2:]
    watched = {signal.SIGCHLD, KILL_ALL, *HANDED_ON}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    # Ignored by who started this, the command's end would not be told.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = os.getcwd()
    enter(pid)
    try:
        child = os.fork()
    except OSError as error:
        refuse(_NOT_JOINED, f"start {command[0]}: {error.strerror}")
    if child == 0:
        become(command, folder)
    while True:
        found = signal.sigwaitinfo(watched)
        if found.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                end_as(status)
        elif found.si_signo == KILL_ALL:
            send_all(child, signal.SIGKILL)
        elif found.si_signo in FROM_TERMINALS:
            send_all(child, found.si_signo)
        else:
            os.kill(child, found.si_signo)


def send_all(child: int, number: int) -> None:
    """Send a signal to the command and its group."""
    try:
        os.killpg(child, number)
    except ProcessLookupError:  # It has yet to begin its session.
        os.kill(child, number)


def enter(pid: str) -> None:
    """Enter the namespaces of a process, but those that this one stands in already."""
    handles = []
    try:
        for kind in KINDS:
            handle = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
            if os.fstat(handle).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
                handles.append(handle)
    except OSError as error:
        refuse(_NOT_JOINED, f"the network is no longer up: {error.strerror}")
    for handle in handles:
        if _libc.setns(handle, 0) != 0:
            refuse(_NOT_JOINED, f"enter a node: {os.strerror(ctypes.get_errno())}")
        os.close(handle)


def become(command: list[str], folder: str) -> None:
    """Be the command, in a session of its own. Never returns."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    with contextlib.suppress(OSError):  # Of no terminal, or of another session's.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.chdir(folder)
        os.execvp(command[0], command)
    except OSError as error:
        refuse(_NOT_FOUND, f"{command[0]}: {error.strerror}")
    except ValueError as error:  # The first word is empty.
        refuse(_NOT_FOUND, f"{command[0]!r}: {error}")


def refuse(code: int, text: str) -> None:
    """Say why nothing runs, and end."""
    os.write(2, f"{os.environ.get('WIRETUNE_NODE', 'wiretune')}: {text}\n".encode())
    os._exit(code)


def end_as(status: int) -> None:
    """End as a process with this wait status did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
