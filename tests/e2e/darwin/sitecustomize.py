"""Makes a Python on Linux look to a program like one on macOS.

On PYTHONPATH it is imported before the program. What Linux alone has is then not there: attributes
of the standard library, functions of the C library, /proc and /sys, pyroute2. psutil stays as it
is, since its macOS half cannot run here, and what the kernel itself does cannot be changed.
"""

import importlib
import os
import resource
import select
import selectors
import signal
import socket
import sys
import sysconfig
import types
from collections.abc import Callable
from typing import Any

HIDDEN = {
    select: "epoll EPOLL",
    selectors: "EpollSelector",
    os: "sched_ pidfd P_PIDFD setns unshare CLONE_ memfd MFD_ eventfd EFD_ splice SPLICE_ "
    "getrandom GRND_ posix_fadvise POSIX_FADV copy_file_range setxattr getxattr listxattr "
    "removexattr XATTR_ setresuid getresuid fdatasync pipe2 O_TMPFILE O_PATH O_DIRECT O_NOATIME",
    socket: "AF_NETLINK AF_PACKET AF_VSOCK AF_CAN AF_ALG NETLINK_ PACKET_ CAN_ ALG_ VMADDR "
    "SO_BINDTODEVICE SO_MARK SO_DOMAIN SO_PROTOCOL SO_PASS SO_PEERCRED SO_PRIORITY "
    "SO_INCOMING_CPU SOCK_CLOEXEC SOCK_NONBLOCK MSG_CMSG_CLOEXEC MSG_NOSIGNAL MSG_ERRQUEUE "
    "MSG_MORE MSG_FASTOPEN MSG_CONFIRM TCP_CONGESTION TCP_INFO TCP_CORK TCP_QUICKACK "
    "TCP_USER_TIMEOUT TCP_DEFER_ACCEPT TCP_LINGER2 TCP_SYNCNT TCP_WINDOW_CLAMP TCP_KEEPIDLE "
    "IP_BIND_ADDRESS_NO_PORT IP_TRANSPARENT SCM_CREDENTIALS",
    signal: "SIGRT SIGPWR SIGSTKFLT SIGCLD SIGPOLL sigwaitinfo sigtimedwait pidfd",
    resource: "prlimit RLIMIT_NICE RLIMIT_RT RLIMIT_MSGQUEUE RLIMIT_SIGPENDING RLIMIT_OFILE",
}
"""Beginnings of the names that are taken away."""
LINUX_C = {"prctl", "mallopt", "malloc_trim", "unshare", "setns", "mount", "sched_setscheduler"}
LINUX_FOLDERS = ("/proc/", "/sys/")
LINUX_PACKAGES = {"pyroute2"}
OPEN_MAX = 10240


def absent(path: Any) -> bool:
    """Whether macOS has no such path, unless psutil asks."""
    caller = sys._getframe(1).f_back
    by_psutil = caller is not None and caller.f_globals.get("__name__", "").startswith("psutil")
    if by_psutil or not isinstance(path, str | os.PathLike):
        return False
    return f"{os.fspath(path)}/".startswith(LINUX_FOLDERS)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and absent(arguments[0]):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
    if event == "ctypes.dlsym" and arguments[1] in LINUX_C:
        raise AttributeError(arguments[1])
    if event == "import" and arguments[0].partition(".")[0] in LINUX_PACKAGES:
        raise ModuleNotFoundError(f"No module named {arguments[0]!r}", name=arguments[0])


def looking(real: Callable[..., Any]) -> Callable[..., Any]:
    """``os.stat`` and its like, which are not audited."""

    def look(path: Any, *arguments: Any, **options: Any) -> Any:
        if absent(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return real(path, *arguments, **options)

    return look


def setrlimit(
    kind: int, limits: tuple[int, int], real: Callable[..., None] = resource.setrlimit
) -> None:
    if kind == resource.RLIMIT_NOFILE and limits[0] > OPEN_MAX:
        raise ValueError("current limit exceeds maximum limit")
    real(kind, limits)


def pretend() -> None:
    # While they can still see Linux: what they find is kept.
    assert importlib.import_module("psutil").LINUX
    sysconfig.get_config_vars()
    for module, beginnings in HIDDEN.items():
        for name in dir(module):
            if name.startswith(tuple(beginnings.split())):
                delattr(module, name)
    selectors.DefaultSelector = selectors.PollSelector
    # A macOS build of Python has it, and urllib asks for it.
    proxies = types.ModuleType("_scproxy")
    vars(proxies).update(_get_proxies=dict, _get_proxy_settings=dict)
    sys.modules["_scproxy"] = proxies
    for name in ("stat", "lstat", "readlink", "access"):
        setattr(os, name, looking(getattr(os, name)))
    resource.setrlimit = setrlimit
    sys.addaudithook(audit)
    sys.platform = "darwin"


pretend()
