"""Files of texts: which are found, which part of the data each is, and tables beside lines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import heavy
import pytest

from nodes.workload import hub
from nodes.workload.text import files
from testbed.config_error import ConfigError

TEXT = frozenset({"text"})


@pytest.fixture(autouse=True)
def quiet() -> None:
    heavy.datasets.disable_progress_bars()


def lines(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    heavy.parquet.write_table(heavy.pyarrow.table(columns), path)
    return path


def parts(folder: Path, *names: str) -> tuple[list[str], list[str], list[str]]:
    for name in names:
        path = folder / name
        if name.endswith(".parquet"):
            table(path, text=["a"])
        else:
            lines(path, "a")
    found = files.find(str(folder))
    return tuple([found.name(file) for file in each] for each in found[2:])  # type: ignore[return-value]


def refused(data_path: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        files.find(str(data_path))
    assert str(caught.value).startswith(f"data_path = {str(data_path)!r}: ")


@pytest.mark.parametrize(
    ("names", "train", "test", "left_alone"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"], []),
        (["train-1.jsonl", "train-0.jsonl"], ["train-0.jsonl", "train-1.jsonl"], [], []),
        (["train.jsonl", "validation.jsonl"], ["train.jsonl"], ["validation.jsonl"], []),
        (
            ["train.jsonl", "test.jsonl", "dev.jsonl"],
            ["train.jsonl"],
            ["test.jsonl"],
            ["dev.jsonl"],
        ),
        (["b.jsonl", "a.json", "README.md"], ["a.json", "b.jsonl"], [], []),
        (["contest.jsonl", "strain.jsonl"], ["contest.jsonl", "strain.jsonl"], [], []),
        (
            ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00001.parquet"],
            ["data/test-00000-of-00001.parquet"],
            [],
        ),
        (["train/0.parquet", "test/0.parquet"], ["train/0.parquet"], ["test/0.parquet"], []),
        (
            ["train_and_test/test.jsonl", "train_and_test/train.jsonl"],
            ["train_and_test/train.jsonl"],
            ["train_and_test/test.jsonl"],
            [],
        ),
        (["TRAIN.JSONL", "my_test_set.JSONL"], ["TRAIN.JSONL"], ["my_test_set.JSONL"], []),
        ([".hidden.jsonl", ".git/a.jsonl", "dataset_info.json", "a.jsonl"], ["a.jsonl"], [], []),
    ],
)
def test_a_files_part_is_in_its_name(
    tmp_path: Path, names: list[str], train: list[str], test: list[str], left_alone: list[str]
) -> None:
    assert parts(tmp_path, *names) == (train, test, left_alone)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], r"has no file that is read: \.jsonl, .*\.parquet"),
        (["notes.txt"], "has no file that is read"),
        (["a.jsonl", "a.parquet"], "has a.jsonl and a.parquet, which may be the same twice"),
        (["train.jsonl", "train.json"], "has train.json and train.jsonl, which may be the same"),
        (["main/train.jsonl", "other/train.jsonl"], "several folders, main, other, .*/other$"),
        (["a.jsonl", "old/a.jsonl"], "several folders, its top, old, .*/old$"),
        (["train.jsonl", "extra.jsonl"], "others whose names say nothing, extra.jsonl; name them"),
        (["test.jsonl"], "has files to test and none to train on, such as train.jsonl"),
    ],
)
def test_a_folder_that_may_mean_two_things_is_refused(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    for name in names:
        lines(tmp_path / name, "a")
    refused(tmp_path, reason)


def test_a_file_that_is_not_whole_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    refused(tmp_path / "a.jsonl", "a.jsonl is empty")
    (tmp_path / "a.jsonl").write_bytes(hub.LFS + b".com/spec/v1")
    refused(tmp_path, "a.jsonl is a Git LFS pointer")
    content = table(tmp_path / "b.parquet", text=["a"]).read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[:-5])
    refused(tmp_path / "b.parquet", "b.parquet is not whole")
    lines(tmp_path / "c.csv", "a")
    refused(tmp_path / "c.csv", "is none of the files that are read")
    refused(tmp_path / "no such file", "there is no such file or folder, and no repository")
    refused("a" * 5_000, "there is no such file or folder")


def test_tables_need_a_library_that_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.parquet", text=["a"])
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    refused(path, r"a\.parquet: needs the library pyarrow, .* pip install 'wiretune\[hub\]'")
    lines(tmp_path / "other" / "a.jsonl", "a")
    files.find(str(tmp_path / "other"))


def test_records_are_those_of_all_files_with_their_places(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "one", "two")
    table(tmp_path / "b.parquet", text=["three", None], other=[1, 2])
    found = files.find(str(tmp_path))
    records = list(files.records(found, found.train, TEXT))
    assert [record.place.removeprefix(f"{found.where}: ") for record in records] == [
        *("a.jsonl: line 1", "a.jsonl: line 2", "b.parquet: row 1", "b.parquet: row 2")
    ]
    assert [record.fields for record in records] == [
        *({"text": "one"}, {"text": "two"}),
        *({"text": "three", "other": None}, {"text": None, "other": None}),
    ]


def test_nested_cells_of_a_table_are_as_lines_have_them(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "é"}], []]
    table(tmp_path / "a.parquet", messages=messages, text=[b"\xff", b""])
    found = files.find(str(tmp_path))
    records = list(files.records(found, found.train, frozenset({"messages", "text"})))
    assert [record.fields["messages"] for record in records] == messages
    # What JSON has no form for is no string either.
    assert records[0].fields["text"] == {"bytes": "b'\\xff'"}


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    split = {"train": ["a", "b"], "test": ["c"]}
    of_dict = heavy.datasets.Dataset.from_dict
    made = {name: of_dict({"text": texts}) for name, texts in split.items()}
    heavy.datasets.DatasetDict(made).save_to_disk(tmp_path)
    found = files.find(str(tmp_path))
    read = [
        [record.fields["text"] for record in files.records(found, part, TEXT)]
        for part in (found.train, found.test)
    ]
    assert read == [["a", "b"], ["c"]]


def test_arrow_is_read_in_its_format_of_files_too(tmp_path: Path) -> None:
    pa = heavy.pyarrow
    made = pa.table({"text": ["a", "b", "c"]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), made.schema) as file:
        file.write_table(made, max_chunksize=2)
    found = files.find(str(tmp_path))
    read = [record.fields["text"] for record in files.records(found, found.train, TEXT)]
    assert read == ["a", "b", "c"]


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    content = bytearray(table(tmp_path / "a.parquet", text=["a" * 99] * 999).read_bytes())
    content[4:60] = bytes(56)
    (tmp_path / "a.parquet").write_bytes(content)
    found = files.find(str(tmp_path))
    with pytest.raises(ConfigError, match=r"data_path = .*: a\.parquet cannot be read: \w"):
        list(files.records(found, found.train, TEXT))


def test_reading_a_table_leaves_no_thread_and_imports_nothing(tmp_path: Path) -> None:
    """Nodes are forked by the process that reads."""
    path = table(tmp_path / "a.parquet", text=["a"])
    program = (
        "import os, sys\n"
        "from nodes.workload.text import files\n"
        "before = os.listdir('/proc/self/task')\n"
        "found = files.find(sys.argv[1])\n"
        "print(len(list(files.records(found, found.train, frozenset({'text'})))))\n"
        "print('pyarrow' in sys.modules, before == os.listdir('/proc/self/task'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(files.__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\nFalse True\n"


def test_the_fingerprint_is_of_contents_names_and_parts(tmp_path: Path) -> None:
    def print_of(name: str, text: str) -> str:
        for file in tmp_path.iterdir():
            file.unlink()
        lines(tmp_path / "train.jsonl", "a")
        lines(tmp_path / name, text)
        return files.fingerprint(files.find(str(tmp_path)))

    same, again = print_of("test.jsonl", "b"), print_of("test.jsonl", "b")
    assert same == again and len(same) == 64
    assert len({same, print_of("test.jsonl", "c"), print_of("test-1.jsonl", "b")}) == 3
    assert print_of("train-1.jsonl", "b") != same


def hub_has(monkeypatch: pytest.MonkeyPatch, folder: Path, *, whole: bool) -> list[Any]:
    asked: list[Any] = []

    def fetch(kind: str, where: str, repository: str, patterns: list[str]) -> hub.Fetched:
        asked.extend([kind, repository, patterns])
        return hub.Fetched(folder, whole)

    monkeypatch.setattr(hub, "fetch", fetch)
    return asked


def test_a_repository_of_the_hub_is_fetched_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "main" / "train.jsonl", "a")
    lines(tmp_path / "other" / "train.jsonl", "b")
    asked = hub_has(monkeypatch, tmp_path, whole=True)
    refused("owner/name", "several folders, main, other, .*: owner/name/other$")
    found = files.find("owner/name/main")
    assert [found.name(file) for file in found.train] == ["train.jsonl"]
    assert asked[:2] == ["dataset", "owner/name"] and "*.parquet" in asked[2]
    assert asked[-2] == "owner/name" and {"main/*.jsonl", "main"} <= set(asked[-1])
    assert not any(pattern.endswith(".py") for pattern in asked[-1])
    assert files.find("owner/name/main/train.jsonl").train == found.train
    refused("owner/name/none", "the repository has no none$")
    refused("owner/../name", "there is no such file or folder")


def test_a_hub_that_cannot_be_reached_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_has(monkeypatch, tmp_path, whole=False)
    refused("owner/name", "has no file that is read.*; the hub cannot be reached, and this is")
    refused("owner/name/main", "has no main; the hub cannot be reached, and this is what is cached")
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    refused("owner/name", "the hub cannot be reached, and nothing of it is cached: .* --data-path")
