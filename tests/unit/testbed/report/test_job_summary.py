"""A run in a job of GitHub's: what names are in its page, and where there is no job."""

from pathlib import Path

import pytest
from made_run import events, folder

from testbed.config_error import ConfigError
from testbed.report import job_summary


def test_a_name_is_no_markup() -> None:
    assert job_summary._cell("<b>|`x`\n[a](b)") == r"\<b\>\|\`x\`\\n\[a\](b)"


def test_outside_a_job_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(tmp_path / "20261121-100000-run", events())
    monkeypatch.delenv(job_summary.OUTPUTS, raising=False)
    with pytest.raises(ConfigError, match="--job: GITHUB_OUTPUT is not set"):
        job_summary.write(run)


def test_a_job_gets_outputs_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(tmp_path / "20261121-100000-run", events())
    for name in (job_summary.OUTPUTS, job_summary.SUMMARY):
        (tmp_path / name).write_text("before\n")
        monkeypatch.setenv(name, str(tmp_path / name))
    job_summary.write(run)
    first, *lines = (tmp_path / job_summary.OUTPUTS).read_text().splitlines()
    assert first == "before" and f"report={run.resolve()}/report.html" in lines
    assert (tmp_path / job_summary.SUMMARY).read_text().startswith("before\n### Wiretune: ")
