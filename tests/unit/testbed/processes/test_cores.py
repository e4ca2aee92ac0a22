"""Cores that a process may keep busy, in groups of both versions."""

import os

import pytest

from testbed.processes import cores

ALL = len(os.sched_getaffinity(0))


def machine(tmp_path, lines, limits):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines)
    for name, text in limits.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    return tmp_path / "proc", tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("lines", "limits", "found"),
    [
        pytest.param("0::/\n", {}, ALL, id="no limit"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, ALL, id="a limit of max"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1, id="one and a half"),
        pytest.param("0::/a/b\n", {"a/cpu.max": "100000 100000\n"}, 1, id="of a group above"),
        pytest.param("0::/\n", {"cpu.max": "20000 100000\n"}, 1, id="a fifth is one"),
        pytest.param("0::/../a\n", {"cpu.max": "torn"}, ALL, id="no numbers"),
        pytest.param(
            "5:cpu,cpuacct:/a\n3:pids:/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            1,
            id="version 1",
        ),
        pytest.param(
            "5:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            ALL,
            id="version 1 without a limit",
        ),
    ],
)
def test_usable_cores(tmp_path, lines, limits, found):
    assert cores.usable(*machine(tmp_path, lines, limits)) == found


def test_cores_without_any_groups(tmp_path):
    assert cores.usable(tmp_path / "proc", tmp_path) == ALL
