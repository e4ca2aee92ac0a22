"""Completion as shells ask for it: by environment variables, and in bash by its own function."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from experiments import plan
from experiments.commands import completion
from nodes.device_classes import CLASSES
from nodes.workload import data, models
from testbed.network import profiles

ROOT = Path(__file__).parents[4]
LIMIT_S = 60
FED = {name for name in methods.names() if name.startswith("fed")}
WORDS = {
    ("launch", "--method", "fed"): FED,
    ("launch", "--profile", "star"): {n for n in profiles.names() if n.startswith("star")},
    ("launch", "--profile", "4g:12,sta"): {
        f"4g:12,{n}" for n in profiles.names() if n.startswith("sta")
    },
    ("launch", "--links=user"): {"userspace"},
    ("launch", "--device-class", "phone:2,p"): {"phone:2,phone", "phone:2,pi"},
    ("launch", "--partition", ""): {"dirichlet", "iid", "natural", "pathological"},
    ("bench", "--preset", "sf"): {"sfprompt-claim"},
    ("profiles", "show", "4"): {n for n in profiles.names() if n.startswith("4")},
    ("prof",): {"profiles"},
    ("launch", "--quie"): {"--quiet"},
}
SHEBANG = f"""#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"
' '''
"""
"""As pip writes one, since no path with a space may follow `#!`."""
ZSH_WORDS = [("launch", "--links=user"), ("launch", "--profile", "4g:12,sta"), ("prof",)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`wiretune` as installing the package makes it."""
    path = tmp_path_factory.mktemp("bin") / "wiretune"
    path.write_text(
        f"{SHEBANG}import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom cli import run\nrun()\n"
    )
    path.chmod(0o755)
    return path


def ask(program: Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(program)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done


def offered(program: Path, shell: str, words: tuple[str, ...], cwd: Path = ROOT) -> set[str]:
    """The words that a shell would put in the last one's place."""
    *_, last = words
    place = last if shell == "fish" else str(len(words))
    line = " ".join(["wiretune", *words])
    variables = {"COMP_WORDS": line, "COMP_CWORD": place}
    done = ask(program, cwd, _WIRETUNE_COMPLETE=f"{shell}_complete", **variables)
    assert not [line for line in done.stderr.splitlines() if line.endswith(("torch", "rich"))]
    lines = done.stdout.splitlines()
    if shell == "zsh":
        return set(lines[1::3])
    return {line.partition(",")[2].split("\t")[0] for line in lines}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shell", "words"), [("fish", words) for words in WORDS] + [("zsh", w) for w in ZSH_WORDS]
)
def test_values_complete_without_torch(program: Path, shell: str, words: tuple[str, ...]) -> None:
    """Both replace a whole word, an option before "=" too."""
    option, equals, _ = words[-1].partition("=")
    expected = {f"{option}={value}" if equals else value for value in WORDS[words]}
    assert offered(program, shell, words) == expected


def in_bash(program: Path, pieces: list[str]) -> set[str]:
    """What bash's own function leaves in COMPREPLY, for a line in the pieces that bash makes."""
    array = " ".join(f"'{piece}'" for piece in ["wiretune", *pieces])
    script = f"""eval "$(_WIRETUNE_COMPLETE=bash_source wiretune)"
COMP_WORDS=({array}) COMP_CWORD={len(pieces)}
_wiretune_completion wiretune
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["launch", "--method", "fed"], FED),
        # Bash breaks --links=user and 4g:12,wi where its COMP_WORDBREAKS say, and replaces the last
        # piece.
        (["launch", "--links", "=", "user"], {"userspace"}),
        (["launch", "--links", "="], {"auto", "netem", "userspace", "loopback"}),
        (["launch", "--device-class", "=", "phone", ":", "2,p"], {"2,phone", "2,pi"}),
        (["launch", "--device-class", "phone", ":", "2,p"], {"2,phone", "2,pi"}),
        # Or does not, where somebody has changed them.
        (["launch", "--links=user"], {"--links=userspace"}),
        (["doc"], {"doctor"}),
    ],
)
def test_bash_gets_what_it_replaces(program: Path, pieces: list[str], expected: set[str]) -> None:
    assert in_bash(program, pieces) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shells_script_can_be_had(program: Path, shell: str) -> None:
    assert "_WIRETUNE_COMPLETE" in ask(program, _WIRETUNE_COMPLETE=f"{shell}_source").stdout


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for run in ("20261121-100000-a", "20261121-110000-b", "bench-x/cell/20261121-120000-c"):
        (tmp_path / "results" / run).mkdir(parents=True)
        (tmp_path / "results" / run / "events.jsonl").touch()
    (tmp_path / "results" / "bench-x" / "bench.json").touch()
    (tmp_path / "results" / "no-run").mkdir()
    return tmp_path


def test_runs_complete_from_the_results_here(program: Path, results: Path) -> None:
    runs = {
        "results/20261121-100000-a",
        "results/20261121-110000-b",
        "results/bench-x/cell/20261121-120000-c",
    }
    assert offered(program, "fish", ("report", "res"), results) == runs
    assert offered(program, "fish", ("compare", "res"), results) == {"results/bench-x", *runs}
    only = ("compare", "results/bench-x", "results/20261121-11")
    assert offered(program, "fish", only, results) == {"results/20261121-110000-b"}


def test_the_names_are_those_that_are_taken() -> None:
    known = {
        "method": methods.names(),
        "profile": profiles.names(),
        "dataset": data.names(),
        "model": models.names(),
        "device class": sorted(CLASSES),
        "preset": plan.presets(),
    }
    for kind, names in known.items():
        assert sorted(item.value for item in completion.offer(kind, "")) == sorted(names), kind


def test_where_no_name_fits_a_path_may() -> None:
    for kind, type_ in (("profile", "file"), ("model", "dir"), ("run", "dir"), ("folder", "dir")):
        (item,) = completion.offer(kind, "own/")
        assert (item.value, item.type) == ("own/", type_)
    assert completion.offer("method", "own/") == []
