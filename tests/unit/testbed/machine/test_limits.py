"""What a machine allows: refused before anything starts, with the limit and how to raise it."""

import resource
import sys
from pathlib import Path

import pytest

from testbed.config_error import ConfigError
from testbed.links.loopback import listeners
from testbed.machine import limits


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A kernel that allows 32768 tasks, of which 200 are there."""
    for name, text in {
        "sys/kernel/pid_max": "32768\n",
        "sys/kernel/threads-max": "40000\n",
        "sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
        "loadavg": "0.1 0.2 0.3 2/200 4711\n",
        "self/cgroup": "1:cpu:/\n8:pids:/box\n0::/box\n",
    }.items():
        file = tmp_path / "proc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "proc"


def refusal(nodes: int, proc: Path, *, streams: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        limits.allow(nodes, streams=streams, proc=proc)
    return str(caught.value)


def test_a_thousand_clients_fit_an_ordinary_machine(proc: Path) -> None:
    limits.allow(1001, streams=True, proc=proc)


@pytest.mark.parametrize(
    ("name", "text", "needed"),
    [("pid_max", "3200", 3303), ("threads-max", "3302", 3303)],
)
def test_too_few_tasks_are_refused_with_the_way_to_raise_them(
    proc: Path, name: str, text: str, needed: int
) -> None:
    (proc / "sys/kernel" / name).write_text(text)
    reason = refusal(1001, proc)
    assert reason.startswith(
        "clients = 1000: needs 3103 processes and threads beside the 200 there"
    )
    assert f"the limit here is {text}; raise it with: sysctl -w kernel.{name}={needed}" in reason
    (proc / "sys/kernel" / name).write_text(str(needed))
    limits.allow(1001, streams=False, proc=proc)


def test_a_control_group_that_a_container_is_in_counts(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "cgroup")
    group = tmp_path / "cgroup" / "box"
    group.mkdir(parents=True)
    (group / "pids.max").write_text("max\n")
    (group / "pids.current").write_text("40\n")
    limits.allow(101, streams=False, proc=proc)
    (group / "pids.max").write_text("400\n")
    reason = refusal(101, proc)
    assert (
        "needs 403 processes and threads beside the 40 there are, the limit here is 400" in reason
    )
    assert reason.endswith(f"echo 443 > {group / 'pids.max'}")


def test_streams_need_ports_of_the_machine_and_namespaces_none(proc: Path) -> None:
    (proc / "sys/net/ipv4/ip_local_port_range").write_text("40000 41999")
    limits.allow(1001, streams=False, proc=proc)
    reason = refusal(1001, proc, streams=True)
    assert "needs 4003 ports of 127.0.0.1, the range here has 2000" in reason
    assert "net.ipv4.ip_local_port_range='1024 5027'" in reason


def test_where_the_kernel_tells_nothing_nothing_is_refused(tmp_path: Path) -> None:
    limits.allow(2001, streams=True, proc=tmp_path)


def test_without_proc_nothing_begins(proc: Path, tmp_path: Path) -> None:
    (proc / "self/status").write_text("Name:\tpython\n")
    limits.require_proc(proc)
    with pytest.raises(ConfigError, match="mount it with: mount -t proc"):
        limits.require_proc(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_proc_of_other_processes_is_none(proc: Path) -> None:
    (proc / "self").rename(proc / "4711")
    (proc / "4711/status").write_text("Name:\tpython\n")
    (proc / "self").symlink_to("4711")
    with pytest.raises(ConfigError, match="tells of another namespace's processes; mount it with"):
        limits.require_proc(proc)
    limits.require_proc()


def test_the_relays_open_files_count_where_there_is_one(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (120, 120))
    limits.allow(3, streams=False, proc=proc)
    assert "needs 262 open files, the limit here is 120" in refusal(3, proc, streams=True)
    assert listeners.least_descriptors(2) == 262
    assert limits.most_clients(262, streams=True) == 2
    assert limits.most_clients(261, streams=True) == 1
    assert limits.most_clients(112, streams=False) == 2
    assert limits.most_clients(0, streams=True) == 0


def test_open_files_are_raised_to_what_is_needed_or_refused(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda which, pair: set_to.append(pair))
    limits.allow(101, streams=False, proc=proc)
    assert set_to == []
    limits.allow(501, streams=False, proc=proc)
    assert set_to == [(501 * 4 + 100, 4096)]
    reason = refusal(1001, proc)
    assert "needs 4104 open files, the limit here is 4096; raise it with: ulimit -Hn 4104" in reason


def test_a_users_own_limit_of_processes_counts(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = resource.RLIM_INFINITY
    hard = {resource.RLIMIT_NPROC: 1000, resource.RLIMIT_NOFILE: infinite}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (infinite, hard[which]))
    monkeypatch.setattr(limits.os, "geteuid", lambda: 1000)
    assert "raise it with: ulimit -Hu 3103" in refusal(1001, proc)
    soft = {resource.RLIMIT_NPROC: 3102, resource.RLIMIT_NOFILE: infinite}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (soft[which], infinite))
    reason = refusal(1001, proc)
    assert "the limit here is 3102; raise it with: ulimit -Su 3103" in reason
    monkeypatch.setattr(limits.os, "geteuid", lambda: 0)
    limits.allow(1001, streams=False, proc=proc)
