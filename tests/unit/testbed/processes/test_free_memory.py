"""Free memory: the machine's, or what the tightest of this process's control groups leaves."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from testbed.processes import free_memory

MB = 10**6


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000 * MB))


def usable_mb(tmp_path: Path, line: str, groups: dict[str, dict[str, str]]) -> float:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(f"{line}\n")
    for group, files in groups.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / group / f"memory.{name}").write_text(text)
    return free_memory.usable_bytes(proc, root) / MB


def newer(most: str, taken: int, files: int) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {files}\n"
    return {"max": f"{most}\n", "current": f"{taken}\n", "stat": stat}


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path):
    assert usable_mb(tmp_path, "0::/own", {}) == 1000


def test_the_tightest_group_counts_less_the_files_that_it_holds(tmp_path: Path):
    groups = {
        "pod": newer(str(700 * MB), 300 * MB, 50 * MB),
        "pod/own": newer("max", 100 * MB, 0),
    }
    assert usable_mb(tmp_path, "0::/pod/own", groups) == 450


def test_a_group_with_more_than_the_machine_bounds_nothing(tmp_path: Path):
    assert usable_mb(tmp_path, "0::/own", {"own": newer(str(9000 * MB), MB, 0)}) == 1000


def test_one_that_has_more_than_it_may_leaves_none(tmp_path: Path):
    assert usable_mb(tmp_path, "0::/own", {"own": newer(str(MB), 2 * MB, 0)}) == 0


def test_the_older_version_counts_too(tmp_path: Path):
    files = {
        "limit_in_bytes": f"{400 * MB}\n",
        "usage_in_bytes": f"{150 * MB}\n",
        "stat": f"inactive_file 7\ntotal_inactive_file {50 * MB}\n",
    }
    assert usable_mb(tmp_path, "4:memory:/own", {"memory/own": files}) == 300
