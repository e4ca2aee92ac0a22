"""Refusals quote what is wrong, and never a whole file: a terminal gets both ends of a long one."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import made_run
import pytest
from click.testing import CliRunner

import cli
from testbed.config_error import ConfigError
from testbed.report.compare import comparison_page

CLI = Path(__file__).parents[4] / "cli.py"
LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f'[[schedule]]\nat_s = "{LONG}"\noutage_s = 1\n', "must be 0 to 1000000 seconds"),
        (f"[[schedule]]\nat_s = 1\noutage_s = 1\n{LONG} = 2\n", "at_s, up, down, outage_s"),
    ],
    ids=["a value", "a key"],
)
def test_it_is_cut_in_the_middle(tmp_path: Path, text: str, right: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    words = [sys.executable, CLI, "launch", "--schedule=own.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr) < 5000 and " ... " in done.stderr and right in done.stderr


def test_it_is_one_line_whatever_it_quotes(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[up]\n"a\\nb\\u001b" = 1\n[down]\n')
    words = [sys.executable, CLI, "launch", "--profile=own.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and r"a\nb\x1b = 1: is no key here" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_what_click_refuses_is_cut_too(tmp_path: Path) -> None:
    words = [sys.executable, CLI, "launch", f"--clients={LONG[:100_000]}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr) < 5000 and "whole number" in done.stderr


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("lanch", "No such command 'lanch': did you mean launch"),
        ("profile", "did you mean profiles?"),
        ("zzz", "No such command 'zzz'. There are agent, bench, "),
    ],
)
def test_a_command_that_is_none_has_the_near_ones_and_all_told(name: str, right: str) -> None:
    done = CliRunner().invoke(cli.main, [name])
    assert done.exit_code == 2 and right in done.output


@pytest.mark.parametrize("out", ["", "page.html"])
def test_a_page_that_cannot_be_written_is_told_by_its_place(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(comparison_page, "write", full)
    run = made_run.folder(tmp_path / "run", made_run.events())
    words = ["compare", str(run), *([f"--out={out}"] if out else [])]
    told = f"--out {out}" if out else f"RUN {run}"
    with pytest.raises(ConfigError, match=f"^{told}: cannot write the page: No space left"):
        CliRunner().invoke(cli.main, words, catch_exceptions=False)


@pytest.mark.parametrize(
    "words",
    [("report",), ("export", "--csv", "--out=taken"), ("compare", "--out=taken/page.html")],
    ids=lambda words: words[0],
)
def test_what_cannot_be_written_is_no_refusal(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = made_run.folder(tmp_path / "run", made_run.events())
    (run / "report.html").mkdir()
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py", words[0], "run", *words[1:]])
    assert cli._status() == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "cannot write" in told and told.count("\n") == 1
