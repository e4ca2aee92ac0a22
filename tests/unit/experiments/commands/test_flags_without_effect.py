"""Flags that would change nothing, or say two things at once: refused, not taken without a word."""

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from experiments.commands.bench import bench
from experiments.commands.exec import exec as exec_
from experiments.commands.launch import launch
from experiments.commands.network import calibrate, doctor
from experiments.commands.networks import down, up
from testbed.config_error import ConfigError

CASES = {
    "a token where there is one host": (launch, ["--token-file=t"], "--token-file=t: .*--hosts"),
    "a token of no hosts": (doctor, ["--token-file=t"], "--token-file=t: .*--hosts"),
    "one network and all": (down, ["lab", "--all"], "down lab --all: .*leave one out"),
    "strict without probes": (
        up,
        ["--clients=1", "--strict", "--no-calibrate"],
        "--strict with --no-calibrate: .*leave one out",
    ),
    "programs placed on hosts": (
        exec_,
        ["--place=client-1=b", "--clients=1", "--", "true"],
        "place = 'client-1=b': there is one host",
    ),
    "a token of no hosts for programs": (
        exec_,
        ["--token-file=t", "--clients=1", "--", "true"],
        "--token-file=t: .*--hosts",
    ),
    "a token of no hosts for a bench": (
        bench,
        ["--methods=fedavg", "--token-file=t"],
        "--token-file=t: .*--hosts",
    ),
    "a network on several hosts": (
        up,
        ["--hosts=10.0.0.1,10.0.0.2", "--clients=1"],
        "--hosts=10.0.0.1,10.0.0.2: a network that stays has all its nodes on one host, this one",
    ),
    "seconds that are no number": (
        calibrate,
        ["--profile=4g", "--seconds=nan"],
        "--seconds nan: must be 5 to 3600",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, words, reason = CASES[case]
    monkeypatch.chdir(tmp_path)
    assert isinstance(command, click.Command)
    with pytest.raises(ConfigError, match=reason):
        CliRunner().invoke(command, words, catch_exceptions=False)
    assert os.listdir(tmp_path) == []
