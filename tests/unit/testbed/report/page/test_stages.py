"""Payload stages in a run's report."""

from dataclasses import dataclass

from testbed.record.events import StageSize
from testbed.record.run_summary import StagedBytes
from testbed.report.page.stages import staged


@dataclass
class Summary:
    staged: StagedBytes


def test_bytes_before_and_after_each_stage_stand_below_one_another() -> None:
    sizes = StagedBytes()
    for _ in range(2):
        sizes.add("up", [StageSize("", 4_000_000), StageSize("int8", 1_000_000)])
    sizes.add("down", [StageSize("", 10), StageSize("bf16", 5)])
    (found,) = staged(Summary(sizes))  # type: ignore[arg-type]
    for text in ("nothing yet", "8.000", "100.0 %", "int8", "2.000", "25.0 %", "bf16", "50.0 %"):
        assert text in found


def test_without_stages_there_is_no_table() -> None:
    assert staged(Summary(StagedBytes())) == []  # type: ignore[arg-type]
