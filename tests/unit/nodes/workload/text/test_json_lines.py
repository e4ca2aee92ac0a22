"""JSON lines: whatever an editor or a program makes of them is read whole, or refused by place."""

import codecs
import gzip
import json
import lzma
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.workload.text import json_lines
from testbed.config_error import ConfigError

ZSTD: Any = json_lines._zstd()
PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": ZSTD.compress}
OBJECTS = st.lists(st.dictionaries(st.text(), st.text() | st.none() | st.integers()), max_size=5)


def written(folder: Path, content: bytes | str, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> list[Any]:
    return [value for _, value in json_lines.objects(path)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@pytest.mark.thorough
@settings(deadline=None)
@given(
    values=OBJECTS,
    packing=st.sampled_from(list(PACKERS)),
    mark=st.sampled_from([b"", codecs.BOM_UTF8]),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \r\n"]),
    is_last_ended=st.booleans(),
    is_array=st.booleans(),
    is_ascii=st.booleans(),
)
def test_objects_are_read_as_they_were_written(
    folder: Path,
    values: list[Any],
    packing: str,
    mark: bytes,
    end: str,
    is_last_ended: bool,
    is_array: bool,
    is_ascii: bool,
) -> None:
    if is_array:
        text = json.dumps(values, ensure_ascii=is_ascii, indent=1)
    else:
        lines = [json.dumps(value, ensure_ascii=is_ascii) for value in values]
        text = end.join(lines) + end * is_last_ended
    content = PACKERS[packing](mark + text.encode())
    assert read(written(folder, content, f"a.json{packing}")) == values


def test_files_that_were_joined_have_a_mark_each(tmp_path: Path) -> None:
    one = codecs.BOM_UTF8 + b'{"text": "a"}\r\n'
    assert read(written(tmp_path, one + b"\n" + one + codecs.BOM_UTF8)) == [{"text": "a"}] * 2


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(list(PACKERS)))
def test_whatever_bytes_are_there_end_in_objects_or_in_a_refusal(
    folder: Path, content: bytes, packing: str
) -> None:
    path = written(folder, content, f"b.jsonl{packing}")
    try:
        assert all(isinstance(value, dict) for value in read(path))
    except json_lines.Unreadable as error:
        assert str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"line 2: is not UTF-8 text \(byte 0xe9\)"),
        ('{"text": "a"}\n\n{"text": 1', r"line 3: is no JSON: .*: '{\"text\": 1'; each line"),
        ('{"text": "a", "b": 1, "text": "c"}', "line 1: has the field 'text' more than once"),
        ('{"text": "a"}\n["b"]', r"line 2: is \['b'\]; must be an object"),
        ('[{"text": "a"}, 3]', "line 2: is 3; must be an object"),
        ('[{"text": "a"},\n {"text" "a"}]', "line 2: is no JSON: Expecting ':'"),
        (f'{{"text": {"[" * 200_000}', "line 1: has lists or objects in one another too deep"),
        ('{"a": ' + "9" * 5_000 + "}", "line 1: Exceeds the limit"),
        ('{"text": "a"}'.encode("utf-16"), "is UTF-16 or UTF-32; save it as UTF-8"),
        (gzip.compress(b'{"text": "a"}', mtime=0), r"begins as a \.gz file does, and not as JSON"),
        (b"PAR1" + bytes(9), r"begins as a \.parquet file does, and not as JSON"),
        ('{\n  "text": "a"\n}', "line 1: is no JSON: .* or the whole file an array of them"),
    ],
)
def test_what_is_no_object_is_refused_with_its_line(
    tmp_path: Path, content: bytes | str, reason: str
) -> None:
    with pytest.raises(json_lines.Unreadable, match=reason):
        read(written(tmp_path, content))


def test_lines_and_files_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MOST_LINE", 2**20)
    monkeypatch.setattr(json_lines, "MOST_ARRAY", 2**20)
    long = json.dumps({"text": "a" * 2**20})
    with pytest.raises(json_lines.Unreadable, match="line 2: has more than 1 MiB"):
        read(written(tmp_path, f'{{"text": "a"}}\n{long}\n'))
    # A line without an end, of a packed file that would unpack to as much as one likes.
    packed = written(tmp_path, gzip.compress(b" " * 2**25), "a.jsonl.gz")
    with pytest.raises(json_lines.Unreadable, match="line 1: has more than 1 MiB"):
        read(packed)
    with pytest.raises(json_lines.Unreadable, match="is an array of more than 1 MiB; write"):
        read(written(tmp_path, f"[\n{long}\n]"))
    packed = written(tmp_path, lzma.compress(b"\n" * 2**12), "a.jsonl.xz")
    monkeypatch.setattr(json_lines, "MOST_BYTES", 2**10)
    with pytest.raises(json_lines.Unreadable, match="has more than 0 GiB; take a part"):
        read(packed)


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path, packing: str) -> None:
    lines = "".join(json.dumps({"text": str(number**9)}) + "\n" for number in range(5_000))
    whole = PACKERS[packing](lines.encode())
    with pytest.raises(json_lines.Unreadable, match=r"cannot be read: \w"):
        read(written(tmp_path, whole[: len(whole) // 2], f"a.jsonl{packing}"))
    with pytest.raises(json_lines.Unreadable, match=r"cannot be read: \w"):
        read(written(tmp_path, lines, f"a.jsonl{packing}"))


def test_a_packing_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        if "zstd" in name:
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(json_lines, "import_module", missing)
    with pytest.raises(ConfigError, match=r"a\.jsonl\.zst: .* backports\.zstd, which is not"):
        json_lines.check_packing(tmp_path / "a.jsonl.zst")
    json_lines.check_packing(tmp_path / "a.jsonl.gz")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(json_lines.Unreadable, match="cannot be read"):
        read(tmp_path / "a.jsonl")
