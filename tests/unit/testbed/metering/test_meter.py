"""What a process says of its own memory and time, against what it is known to have used."""

import contextlib
import mmap
import sys
import time
from typing import Any

import psutil
import pytest

from testbed.metering import meter
from testbed.processes.worker import Result, Worker

MB = 1_000_000


def of_a_child(body: Any) -> Any:
    """What ``body`` returns in a forked process."""
    with contextlib.closing(Worker("measured", lambda channel: body())) as worker:
        return worker.receive(Result, 30).value


def test_private_memory_is_what_was_written_and_not_what_is_shared() -> None:
    inherited = mmap.mmap(-1, 40 * MB, flags=mmap.MAP_PRIVATE)
    zeros = memoryview(bytes(40 * MB))
    inherited.write(zeros)

    def write() -> list[float]:
        # Differences alone: what a test process has of its own depends on the tests before.
        with mmap.mmap(-1, 30 * MB, flags=mmap.MAP_PRIVATE) as own:
            found = [meter.usage()["private_mb"]]
            for memory, size in ((own, 30 * MB), (inherited, 40 * MB)):
                memory.seek(0)
                memory.write(zeros[:size])
                found.append(meter.usage()["private_mb"])
            return found

    before, with_own, with_all = of_a_child(write)
    assert with_own - before == pytest.approx(30, abs=3)
    assert with_all - with_own == pytest.approx(40, abs=3)
    inherited.close()


def test_private_memory_is_psutils_unique_set_size() -> None:
    ours = meter.usage()["private_mb"]
    assert ours == pytest.approx(psutil.Process().memory_full_info().uss / 1e6, rel=0.05, abs=2)


def test_cpu_time_counts_work_and_not_sleep() -> None:
    before = meter.usage()["cpu_s"]
    ends = time.process_time() + 0.05
    while time.process_time() < ends:
        pass
    after = meter.usage()["cpu_s"]
    assert before is not None and after is not None
    assert after - before >= 0.049


@pytest.mark.skipif(sys.platform != "linux", reason="schedstat is Linux's")
def test_the_run_queue_delay_never_shrinks() -> None:
    before, after = (meter.usage()["run_delay_s"] for _ in range(2))
    assert before is not None and after is not None and after >= before >= 0


def test_where_there_is_no_such_file_the_figure_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(meter, "_SMAPS", tmp_path / "none")
    monkeypatch.setattr(meter, "_TASKS", tmp_path / "none")
    found = meter.usage()
    assert found["run_delay_s"] is None
    assert found["private_mb"] == pytest.approx(
        psutil.Process().memory_full_info().uss / 1e6, rel=0.2
    )


def test_the_environment_names_the_machine_and_the_packages() -> None:
    found = meter.environment()
    assert found["cores"] >= 1 and found["memory_mb"] > 100
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found["packages"]) == set(meter.PACKAGES)
    assert found["torch"].startswith("2.")
