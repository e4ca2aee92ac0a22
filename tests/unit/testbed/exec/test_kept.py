"""What stays of private folders: paths that a command and its environment name."""

import shlex
from pathlib import Path

import pytest

from testbed.exec import kept

ODD = ("out side", "a 'quoted' name", 'so "called"', "back\\slash", "fo:r,e [1];x=y", "ü (2)")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nodes have of their own, with what a program may need in it."""
    monkeypatch.setattr(kept, "PRIVATE", (str(tmp_path),))
    for name in ("plain", *ODD):
        (tmp_path / name / "venv" / "bin").mkdir(parents=True)
        (tmp_path / name / "venv" / "bin" / "python").touch()
        (tmp_path / name / "some data").mkdir()
    return tmp_path


def of(*words: str, begins: str = "/home", **environment: str) -> tuple[str, ...]:
    return kept.kept_paths((begins, "/home/results"), words, environment)


@pytest.mark.parametrize("name", ["plain", *ODD])
def test_a_name_is_found_whatever_is_in_it(private: Path, name: str) -> None:
    data = str(private / name / "some data")
    assert of("prog", data) == of("prog", f"--data={data}") == (data,)
    assert of("/bin/sh", "-c", f"exec prog {shlex.quote(data)} > out") == (data,)
    assert of("/bin/sh", "-c", f"cd {shlex.quote(data)}; prog 'it is' | less") == (data,)


@pytest.mark.parametrize("name", ["plain", *ODD])
def test_of_a_program_its_whole_installation_stays(private: Path, name: str) -> None:
    venv = private / name / "venv"
    assert of(str(venv / "bin" / "python"), "-c", "pass") == (str(venv),)
    assert of("prog", PATH=f"{private}/plain/venv/bin:/bin") == (str(private / "plain" / "venv"),)


def test_a_private_folder_is_no_installation(private: Path) -> None:
    (private / "bin").mkdir()
    (private / "bin" / "prog").touch()
    assert of(f"{private}/bin/prog") == (f"{private}/bin/prog",)


def test_of_what_is_not_there_yet_its_folder_is(private: Path) -> None:
    folder = f"{private}/out side"
    assert of("prog", f"--out={folder}/later/x", "more") == (folder,)
    assert of("prog", f"{private}/later/x", f"{private}/", f"/home{private}/plain") == ()


def test_two_names_in_one_line_are_two(private: Path) -> None:
    line = f"cp {private}/plain/venv {private}/plain/venv/bin/python '{private}/out side'"
    assert of("/bin/sh", "-c", line) == (f"{private}/out side", f"{private}/plain/venv")


def test_a_line_without_its_other_quote_and_a_long_one_are_read_too(private: Path) -> None:
    line = f'echo " {private}/plain/venv {private}/{"x " * 100_000}'
    assert of("/bin/sh", "-c", line) == (f"{private}/plain/venv",)


def test_a_private_folder_stays_whole_for_who_begins_in_it(private: Path) -> None:
    assert of("prog", f"{private}/plain", begins=str(private)) == (str(private),)
