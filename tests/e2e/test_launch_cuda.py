"""Runs on GPUs beside runs on the CPU; skipped, with the reason, where there is none."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from running import Run

from nodes import accelerators

pytestmark = pytest.mark.cuda

SMALL = (
    *("--links=loopback", "--profile=ethernet", "--no-calibrate", "--clients=3", "--rounds=3"),
    *("--train-samples=96", "--time-limit=150"),
)
LANGUAGE = ("--model=llama-docs", "--dataset=instructions", "--eval-samples=16")
CASES: dict[str, tuple[str, ...]] = {
    "fedpeft lora": (),
    "fedpeft prompt": ("--set=variant=prompt",),
    "fedavg by stages both ways": (
        *("--method=fedavg", "--set=local_epochs=1", "--stage=topk:k=0.05", "--stage-down=int8"),
    ),
    "fedavg private by client": ("--method=fedavg", "--set=dp=client", "--set=dp_noise=0.1"),
    "splitfed": ("--method=splitfed", "--set=variant=v1"),
    "dispfl": ("--method=dispfl", "--links=auto"),
    "language": LANGUAGE,
}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    reason = accelerators.looked().reason
    if reason is not None:
        pytest.skip(f"needs a GPU: {reason}")


def finished(out: Path, *flags: str) -> dict[str, Any]:
    run = Run(out, *SMALL, *flags)
    assert run.finish() == 0, run.describe()
    return run.summary


@pytest.mark.parametrize("case", CASES)
def test_bytes_equal_those_of_the_cpu_and_metrics_are_near(case: str, tmp_path: Path) -> None:
    here = finished(tmp_path / "cpu", *CASES[case])
    there = finished(tmp_path / "cuda", "--accelerator=cuda", *CASES[case])
    assert there["bytes"]["payload"] == here["bytes"]["payload"]
    last = [summary["rounds"][-1]["metrics"] for summary in (here, there)]
    assert last[0].keys() == last[1].keys()
    assert {name: pytest.approx(value, abs=0.05) for name, value in last[0].items()} == last[1]
    peaks = [row["peak_accelerator_mb"] for row in there["processes"]]
    assert len(peaks) == 4 and all(peak is not None and peak > 0.5 for peak in peaks)
    assert {row["peak_accelerator_mb"] for row in here["processes"]} == {None}
    assert there["compute"]["accelerators"] == accelerators.looked().devices[:4]


def test_a_mix_is_by_node(tmp_path: Path) -> None:
    summary = finished(tmp_path / "run", "--accelerator=cpu:1,cuda:2")
    peaks = {row["node"]: row["peak_accelerator_mb"] for row in summary["processes"]}
    assert {node for node, peak in peaks.items() if peak} == {"client-2", "client-3"}
    assert summary["compute"]["server_accelerator"] == "cpu"


def test_a_killed_run_goes_on_on_the_gpu(tmp_path: Path) -> None:
    flags = (*SMALL, "--accelerator=cuda", "--set=dp=client", "--set=dp_noise=0.1")
    whole = Run(tmp_path / "whole", *flags)
    assert whole.finish() == 0, whole.describe()
    killed = Run(tmp_path / "killed", *flags)
    killed.wait_for("round", round=2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.process.wait()
    resumed = Run(tmp_path / "resumed", resume=killed.folder)
    assert resumed.finish() == 0, resumed.describe()
    last = [run.summary["rounds"][-1]["metrics"] for run in (whole, resumed)]
    assert {name: pytest.approx(value, abs=0.05) for name, value in last[0].items()} == last[1]
