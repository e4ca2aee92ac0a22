"""A confined process: what it can no longer do, what it still can, and what kernels may lack."""

import contextlib
import ctypes
import errno
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed import files
from testbed.metering import meter
from testbed.processes import call_filter, confinement, landlock
from testbed.processes.confinement import NET_ADMIN, Confined, Reach
from testbed.processes.worker import Result, Worker
from testbed.virtual_time import VirtualTime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="all of this is Linux's")
LIMIT_S = 30.0


def of_a_child(body: Callable[[], Any]) -> Any:
    """What ``body`` returns in a forked process."""
    with contextlib.closing(Worker("confined", lambda channel: body())) as worker:
        return worker.receive(Result, LIMIT_S).value


def outcome(attempt: Callable[[], Any]) -> str:
    """ "done", or the name of the error that an attempt comes to."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def has_landlock() -> None:
    try:
        landlock.version()
    except landlock.Unavailable as error:
        pytest.skip(str(error))


def test_no_capability_is_left_and_none_can_be_gained() -> None:
    def body() -> dict[str, str]:
        confinement.confine(Reach())
        return status()

    found = of_a_child(body)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"


def test_of_root_the_bounding_set_is_empty_too(root: None) -> None:
    def body() -> dict[str, str]:
        confinement.confine(Reach())
        return status()

    assert int(of_a_child(body)["CapBnd"], 16) == 0


def test_a_capability_may_be_kept(root: None) -> None:
    def body() -> dict[str, str]:
        confinement.confine(Reach(), keep=(NET_ADMIN,))
        return status()

    found = of_a_child(body)
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {1 << NET_ADMIN}


def test_root_that_was_called_by_sudo_becomes_its_caller(
    root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And writes into its folder, below others that it may not enter."""
    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setenv("SUDO_GID", "65533")
    own = tmp_path / "own"
    own.mkdir()
    tmp_path.chmod(0o700)
    files.give(own, (65534, 65533))

    def body() -> list[Any]:
        held = confinement.confine(Reach(folder=own), keep=(NET_ADMIN,))
        Path("kept").write_text("a state")
        return [os.getresuid(), os.getresgid(), os.getgroups(), status()["CapEff"], held.missing]

    users, groups, others, effective, missing = of_a_child(body)
    assert (users, groups, others) == ([65534] * 3, [65533] * 3, [])
    assert int(effective, 16) == 1 << NET_ADMIN
    assert missing == []
    assert (own / "kept").stat().st_uid == 65534


def test_files_are_written_in_the_own_folder_alone(has_landlock: None, tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for each in (own, other):
        each.mkdir()
    (other / "there").write_text("secret")

    def body() -> list[str]:
        confinement.confine(Reach(folder=own))
        attempts = (
            lambda: (own / "new").write_text("x"),
            lambda: (own / "new").rename(own / "newer"),
            lambda: (own / "newer").unlink(),
            lambda: Path("/dev/null").write_text("x"),
            lambda: (other / "new").write_text("x"),
            lambda: (other / "there").write_text("x"),
            lambda: (other / "there").read_text(),
            lambda: (other / "there").unlink(),
            lambda: os.symlink(other, own / "link"),
            lambda: Path("/proc/self/oom_score_adj").write_text("0"),
            lambda: os.listdir(sys.prefix),
            lambda: Path("/proc/self/status").read_text(),
        )
        return [outcome(attempt) for attempt in attempts]

    done = ["done"] * 4
    assert of_a_child(body) == [*done, *["EACCES"] * 6, "done", "done"]
    assert (other / "there").read_text() == "secret"


def test_a_process_has_its_ports_alone(has_landlock: None) -> None:
    if landlock.version() < 4:
        pytest.skip("this kernel's landlock knows no ports")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as two:
        ports = [each.getsockname()[1] for each in (one, two)]

        def call(port: int) -> None:
            socket.create_connection(("127.0.0.1", port), LIMIT_S).close()

        def body() -> list[str]:
            confinement.confine(Reach(listens=(), calls=(ports[0],)))
            attempts = [lambda port=port: call(port) for port in ports]
            attempts.append(lambda: socket.create_server(("127.0.0.1", 0)).close())
            return [outcome(attempt) for attempt in attempts]

        assert of_a_child(body) == ["done", "EACCES", "EACCES"]


def test_signals_go_to_others_where_that_is_its_work(has_landlock: None) -> None:
    if landlock.version() < 6:
        pytest.skip("this kernel's landlock knows no signals")
    parent = os.getpid()

    def body(signals: bool) -> str:
        confinement.confine(Reach(signals=signals))
        return outcome(lambda: os.kill(parent, 0))

    assert of_a_child(lambda: body(False)) == "EPERM"
    assert of_a_child(lambda: body(True)) == "done"


def test_a_keeper_gives_a_turn_to_a_node_when_both_are_confined() -> None:
    """SIGURG, which it waits for, and no clock."""
    time_ = VirtualTime(1)
    time_.follows = True
    told = mmap.mmap(-1, 1)

    def node() -> str:
        time_.take_place(0)
        confinement.confine(Reach())
        time_.computes(0, 1, in_turn=True)
        told[0] = 1
        number = signal.sigtimedwait({signal.SIGURG}, LIMIT_S)
        return signal.Signals(number.si_signo).name if number else "none"

    def keeper() -> str:
        confinement.confine(Reach(signals=True))
        while not told[0]:
            time.sleep(0.001)
        time_.give_turn(time_.computing()[0])
        return "gave"

    with (
        contextlib.closing(Worker("node", lambda channel: node())) as waits,
        contextlib.closing(Worker("keeper", lambda channel: keeper())) as gives,
    ):
        assert gives.receive(Result, LIMIT_S).value == "gave"
        assert waits.receive(Result, LIMIT_S).value == "SIGURG"
    time_.close()


def test_no_program_is_started_and_no_namespace_made() -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def unshare() -> None:
        if libc.unshare(0x10000000):
            raise OSError(ctypes.get_errno(), "unshare")

    def body() -> list[str]:
        confinement.confine(Reach())
        attempts = (
            lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
            unshare,
            lambda: os.chroot("/"),
        )
        return [outcome(attempt) for attempt in attempts]

    assert of_a_child(body) == ["EPERM"] * 3


def test_threads_and_what_a_meter_reads_are_left() -> None:
    def body() -> list[Any]:
        meter.ready()
        confinement.confine(Reach())
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        small = meter.usage()
        with mmap.mmap(-1, 30 << 20, flags=mmap.MAP_PRIVATE) as block:
            block.write(bytes(30 << 20))
        peak = meter.usage()["peak_private_mb"]
        return [small["run_delay_s"] is not None, peak, meter.usage()["peak_private_mb"]]

    told, peak, after = of_a_child(body)
    assert told
    assert after < peak - 20, "the kernel's peak begins anew at each reading"


def test_descriptors_of_the_parent_read_and_write_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    with secret.open("r+b", buffering=0) as opened, socket.socket() as kept:

        def body() -> list[Any]:
            channel = [each for each in map(int, os.listdir("/proc/self/fd")) if each > 2]
            own = [each for each in channel if each not in (opened.fileno(),)]
            confinement.hold_only(own)
            opened.write(b"changed")
            return [opened.read().decode(), os.fstat(kept.fileno()).st_ino]

        read, number = of_a_child(body)
        assert read == ""
        assert number == os.fstat(kept.fileno()).st_ino
    assert secret.read_text() == "x"


@pytest.fixture
def without_landlock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def missing(*arguments: object) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    monkeypatch.setattr(landlock, "_call", missing)
    yield


def test_a_kernel_without_landlock_holds_by_the_rest_and_that_is_said(
    without_landlock: None,
) -> None:
    found = msgspec.convert(of_a_child(lambda: confinement.confine(Reach())), Confined)
    assert found.landlock is None
    assert found.no_new_privileges and found.capabilities == 0
    assert found.missing == ["landlock: this kernel has none, or has it switched off"]
    assert found.words().endswith("no landlock: this kernel has none, or has it switched off")


def test_a_machine_without_a_filter_is_held_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_filter.platform, "machine", lambda: "sparc64")
    found = msgspec.convert(of_a_child(lambda: confinement.confine(Reach())), Confined)
    assert not found.seccomp
    assert found.missing[-1:] == ["seccomp: no filter for linux on sparc64"]


@pytest.mark.parametrize("had", [1, 2, 3, 4, 5, 6, 7, 99])
def test_each_version_of_landlock_is_asked_for_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, had: int
) -> None:
    """Bits and sizes as linux/landlock.h has them."""
    asked = []

    def call(number: int, *arguments: Any) -> int:
        if number == 444 and arguments[2] == 1:
            return had
        if number == 444:
            asked.append(arguments[0])
            return os.open(os.devnull, os.O_RDONLY)
        return 0

    monkeypatch.setattr(landlock, "_call", call)
    assert landlock.restrict([Path("/")], [], (), (1,)) == had
    bits = 13 + (had >= 2) + (had >= 3) + (had >= 5)
    expected = [(1 << bits) - 1]
    expected += [3] * (had >= 4) + [3] * (had >= 6)
    found = memoryview(asked[0]).cast("Q").tolist()
    assert found == expected


@pytest.mark.skipif(not Path("/usr/include/asm-generic/unistd.h").exists(), reason="no headers")
def test_numbers_of_calls_are_those_of_the_kernels_headers() -> None:
    names = (
        *("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "unshare"),
        *("setns", "mount", "umount2", "pivot_root", "chroot", "swapon", "swapoff", "reboot"),
        *("acct", "settimeofday", "init_module", "finit_module", "delete_module", "kexec_load"),
        *("kexec_file_load", "bpf", "perf_event_open", "userfaultfd", "open_by_handle_at"),
        *("add_key", "request_key", "keyctl"),
    )
    text = Path("/usr/include/asm-generic/unistd.h").read_text().splitlines()
    numbers = {row[1]: row[2] for row in map(str.split, text) if row[:1] == ["#define"]}
    known = {int(numbers[f"__NR_{name}"]) for name in names}
    assert set(call_filter._REFUSED["aarch64"]) == known


def test_results_are_given_but_nothing_that_has_another_name(root: None, tmp_path: Path) -> None:
    folder, outside = tmp_path / "results", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    for each in (folder / "inner" / "events", outside):
        each.write_text("x")
    os.link(outside, folder / "hard")
    (folder / "soft").symlink_to(outside)
    files.give(folder, (65534, 65533))
    given = [folder, folder / "inner", folder / "inner" / "events"]
    assert {(each.stat().st_uid, each.stat().st_gid) for each in given} == {(65534, 65533)}
    assert {each.lstat().st_uid for each in (outside, folder / "hard", folder / "soft")} == {0}


@pytest.mark.parametrize(
    "values", [("", ""), ("0", "0"), ("-1", "1"), ("x", "1"), ("1000", ""), ("9" * 12, "1")]
)
def test_nobody_called_where_sudo_says_so(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name, value in zip(("SUDO_UID", "SUDO_GID"), values, strict=True):
        monkeypatch.setenv(name, value)
    assert files.caller() is None


def test_a_confined_process_ends_with_its_parent(tmp_path: Path) -> None:
    """The kernel forgets that it is to where a process becomes somebody else."""
    code = (
        "import os, sys, time\n"
        "from testbed.processes import confinement\n"
        "from testbed.processes.child import Child\n"
        "def body():\n"
        "    confinement.confine(confinement.Reach())\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(100)\n"
        "child = Child('x', body)\n"
        "time.sleep(100)\n"
    )
    variables = {**os.environ, "SUDO_UID": "65534", "SUDO_GID": "65534"}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=variables)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        handle = os.pidfd_open(child)
        parent.kill()
        assert select.select([handle], [], [], LIMIT_S)[0]
        os.close(handle)
