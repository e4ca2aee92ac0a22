"""What all tests share: how they are dealt out to workers, when they skip, and how they wait."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from testbed.links.linux import namespaces
from testbed.links.userspace import backend as userspace

POLL_S, SAID_S = 0.01, 5.0
LONGEST = ("tests/kernel/", "tests/e2e/", "tests/net/", "tests/unit/")
"""Folders in the order of their files' time: what is short fills the workers' last minute."""
MOST_WORKERS = 8
WHOLE = (
    *("tests/kernel/", "tests/unit/laws/", "tests/unit/methods/peft/"),
    *("tests/unit/methods/privacy/", "tests/unit/nodes/workload/text/"),
)
"""Folders whose files share what a worker makes once: boots, parsed sources, imports of seconds."""

_DROP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_CAPBSET_DROP = 24
CAP_SETFCAP = 31  # Without it the kernel lets nobody map root into a user namespace.
def drop():
    last = int(open("/proc/sys/kernel/cap_last_cap").read())
    for capability in set(range(last + 1)) - {CAP_SETFCAP}:
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "drop a capability")
"""
_EXECUTE = "\nos.execv(sys.argv[1], sys.argv[1:])\n"
_NO_MORE_USER_NAMESPACES = """
CLONE_NEWUSER = 0x10000000
uid, gid = os.getuid(), os.getgid()
if libc.unshare(CLONE_NEWUSER):
    raise OSError(ctypes.get_errno(), "unshare")
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
"""


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would what tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Modules and tests stay: garbage is not looked for as they come, nor among them later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in LONGEST])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than cores, since many tests wait for clocks and not for a processor."""
    cores = os.cpu_count() or 1
    return min(MOST_WORKERS, cores + 2) if cores > 1 else 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a whole file, whose tests share runs, and all of some folders."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = next((each for each in WHOLE if nodeid.startswith(each)), None)
            return folder or super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # Not by the number of tests.
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def without_capabilities(root: None) -> list[str]:
    """Prefix of a command that root runs without its capabilities, as in a strict container."""
    return [sys.executable, "-c", _DROP + "drop()" + _EXECUTE]


@pytest.fixture(scope="session")
def without_user_namespaces(root: None) -> list[str]:
    """Prefix of a command that has no capability and may not make a user namespace either."""
    return [sys.executable, "-c", _DROP + _NO_MORE_USER_NAMESPACES + "drop()" + _EXECUTE]


@pytest.fixture(scope="session")
def userspace_links() -> None:
    """Skip where userspace links do not work."""
    reason = userspace.probe()
    if reason is not None:
        pytest.skip(f"userspace links do not work here: {reason}")


@pytest.fixture(scope="session")
def root() -> None:
    """Skip where this process is not root with its capabilities."""
    if sys.platform != "linux" or os.geteuid() != 0 or not namespaces.is_privileged():
        pytest.skip("needs root with CAP_SYS_ADMIN")


def until(
    condition: Callable[[], Any],
    what: str,
    limit_s: float,
    of: subprocess.Popen[str] | None = None,
) -> Any:
    """Poll ``condition`` until it returns something true, and return that.

    ``of``: who is to make it so, whose end before it is the wait's, with what it said.
    """
    deadline = time.monotonic() + limit_s
    while True:
        ended = of is not None and of.poll() is not None
        found = condition()
        if found:
            return found
        if of is not None and ended:
            # What it has left behind may have its output still.
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = of.communicate(timeout=SAID_S)[0]
                raise AssertionError(f"ended with {of.returncode}, and not {what}: {said}")
            raise AssertionError(f"ended with {of.returncode}, and not {what}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(POLL_S)


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[..., Any]:
    return until
