"""A run as a job of GitHub's shows it: outputs of a step, and a table in the job's summary."""

import os
from pathlib import Path

from testbed.config_error import ConfigError
from testbed.record import trust
from testbed.record.run_summary import Summary
from testbed.report import programs, summaries
from testbed.report.text import one_line

OUTPUTS, SUMMARY = "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"
"""Variables with the names of the files that a step appends to."""
REPORT = "report.html"


def write(run: Path) -> None:
    """Append both to the files that the job names.

    Raises:
        ConfigError: this is no job's step, or the folder has no run.
        OSError: a file cannot be written.
    """
    summary = summaries.load(run / summaries.NAME)
    for name, text in ((OUTPUTS, outputs(summary, run)), (SUMMARY, page(summary))):
        path = os.environ.get(name)
        if not path:
            raise ConfigError(f"--job: {name} is not set; it is where a job of GitHub's runs")
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)


def outputs(summary: Summary, run: Path) -> str:
    """The step's outputs, one a line."""
    values = {
        "wire-bytes": summary.bytes.wire.both,
        "verdict": summary.fidelity.verdict,
        "report": run.resolve() / REPORT,
        "folder": run.resolve(),
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def page(summary: Summary) -> str:
    """The run in Markdown."""
    lines = [
        f"### Wiretune: {_cell(summary.profile)}",
        "",
        f"{_cell(summary.status)}; certificate: **{summary.fidelity.verdict}**, "
        f"{_cell(summary.fidelity.reason)}",
        "",
        _cell(trust.line(summary)),
        "",
        "| " + " | ".join(programs.HEADS) + " |",
        "|" + "---|" * len(programs.HEADS),
    ]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in programs.rows(summary)]
    return "\n".join(lines) + "\n\n"


def _cell(text: object) -> str:
    """Text that Markdown takes for nothing else."""
    plain = one_line(str(text))
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>|#!" else each for each in plain)
