"""A filter of system calls (seccomp): those are refused that no node and no link process needs.

They are what a process gains rights by, or looks into others with: other programs, other
namespaces, mounts, debugging, the kernel's modules and its newer entrances. Refused is EPERM;
``clone3`` seems not to be there, for its flags lie where no filter can look, and libraries
then take ``clone``, which may make threads and no namespaces.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

from testbed.processes.landlock import Unavailable

_SET_FILTER, _WITHOUT_MITIGATIONS = 1, 4
_CALL = {"x86_64": 317, "aarch64": 277}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_OTHER_NUMBERS = 0x40000000
"""From here on x86-64 has calls of another kind (x32)."""
_NAMESPACES = 0x7E020000
"""Flags of ``clone`` that make some."""
_REFUSED = {
    "x86_64": (
        *(59, 322, 101, 310, 311),  # execve, execveat, ptrace, process_vm_readv and _writev
        *(272, 308, 165, 166, 155, 161),  # unshare, setns, mount, umount2, pivot_root, chroot
        *(167, 168, 169, 163, 164),  # swapon, swapoff, reboot, acct, settimeofday
        *(175, 313, 176, 246, 320),  # init_module, finit_module, delete_module, kexec's two
        *(321, 298, 323, 304),  # bpf, perf_event_open, userfaultfd, open_by_handle_at
        *(248, 249, 250, 172, 173),  # add_key, request_key, keyctl, iopl, ioperm
    ),
    "aarch64": (
        *(221, 281, 117, 270, 271),
        *(97, 268, 40, 39, 41, 51),
        *(224, 225, 142, 89, 170),
        *(105, 273, 106, 104, 294),
        *(280, 241, 282, 265),
        *(217, 218, 219),
    ),
}
_REFUSED_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442)
"""io_uring's three, the newer calls of mounts, pidfd_getfd, process_madvise, mount_setattr."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _FLAGS_AT = 0, 4, 16

_libc = ctypes.CDLL(None, use_errno=True)


def install() -> None:
    """Filter the calls of this thread, and of what it starts, for good.

    The thread has given up new privileges (``PR_SET_NO_NEW_PRIVS``) before.

    Raises:
        Unavailable: no kernel or machine for it.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _CALL:
        raise Unavailable(f"seccomp: no filter for {sys.platform} on {machine}")
    code = program(machine)
    text = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog
    asked = struct.pack("@HP", len(code) // 8, ctypes.addressof(text))
    # Else older kernels slow down all that the process computes.
    for flags in (_WITHOUT_MITIGATIONS, 0):
        if _libc.syscall(_CALL[machine], _SET_FILTER, flags, asked) == 0:
            return
    raise Unavailable(f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: str) -> bytes:
    """The filter, in the kernel's own words (classic BPF), for x86_64 or aarch64."""
    refused = sorted({*_REFUSED[machine], *_REFUSED_EVERYWHERE})
    lines = [
        _line(_LOAD, _ARCHITECTURE_AT),
        _line(_EQUAL, _ARCHITECTURE[machine], 1, 0),
        _line(_RETURN, _REFUSE | errno.EPERM),
        _line(_LOAD, _NUMBER_AT),
        _line(_AT_LEAST, _OTHER_NUMBERS, 0, 1),
        _line(_RETURN, _REFUSE | errno.EPERM),
        _line(_EQUAL, _CLONE3, 0, 1),
        _line(_RETURN, _REFUSE | errno.ENOSYS),
    ]
    for number in refused:
        lines += [_line(_EQUAL, number, 0, 1), _line(_RETURN, _REFUSE | errno.EPERM)]
    lines += [
        _line(_EQUAL, _CLONE[machine], 0, 3),
        _line(_LOAD, _FLAGS_AT),
        _line(_ANY_OF, _NAMESPACES, 0, 1),
        _line(_RETURN, _REFUSE | errno.EPERM),
        _line(_RETURN, _ALLOW),
    ]
    return b"".join(lines)


def _line(code: int, value: int, if_true: int = 0, if_not: int = 0) -> bytes:
    """struct sock_filter"""
    return struct.pack("=HBBI", code, if_true, if_not, value)
