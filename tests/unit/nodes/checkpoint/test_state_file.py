"""A state file: what is torn or changed is told, and what is forged takes bounded memory."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nodes.checkpoint import state_file
from nodes.checkpoint.state_file import LENGTH_BYTES, MOST_HEADER_BYTES, Unreadable

TENSORS = {".a": torch.arange(6.0).view(2, 3), ".none": torch.zeros(0, 3), "torch": torch.ones(3)}
STATE = {"lasting": {"root": [1, {"x": None}]}, "told": {"parts": {"client-1": 7}}}


def content() -> bytes:
    file = io.BytesIO()
    state_file.encoded(TENSORS, STATE).write(file)
    return file.getvalue()


WHOLE = content()


def sealed(before: bytes) -> bytes:
    """With the checksum that whoever forges a file can work out too."""
    return before + hashlib.sha256(before).digest()


def forged(header: bytes, rest: bytes = b"") -> bytes:
    return sealed(len(header).to_bytes(LENGTH_BYTES, "little") + header + rest)


def refused(path: Path, written: bytes) -> str:
    path.write_bytes(written)
    with pytest.raises(Unreadable) as caught:
        state_file.read(path)
    return str(caught.value)


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(WHOLE)
    tensors, state = state_file.read(path)
    assert state == STATE and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert len(WHOLE) == state_file.encoded(TENSORS, STATE).size
    # Others read it, too.
    assert bytes(load_file(path)["checksum"].tolist()) == hashlib.sha256(WHOLE[:-32]).digest()


@pytest.mark.thorough
def test_each_bit_counts(tmp_path: Path) -> None:
    for place in range(len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[place] ^= 1 << place % 8
        assert "Error" not in refused(tmp_path / "a", bytes(changed))


@pytest.mark.thorough
def test_cut_or_longer_it_is_torn(tmp_path: Path) -> None:
    for length in range(len(WHOLE)):
        assert "is torn" in refused(tmp_path / "a", WHOLE[:length])
    for more in (b"\0", b"\0" * 100, WHOLE):
        assert "is torn" in refused(tmp_path / "a", WHOLE + more)


pieces = st.tuples(
    st.integers(0, len(WHOLE)),
    st.integers(0, 40),
    st.binary(max_size=40) | st.sampled_from([b"[", b"{", b'"', b"9" * 40, b"\0" * 8]),
)


@pytest.mark.thorough
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.lists(pieces, min_size=1, max_size=4), st.booleans())
def test_what_was_changed_is_refused_or_read(
    tmp_path: Path, changes: list[tuple[int, int, bytes]], seal: bool
) -> None:
    """Refused wherever the checksum is not made to fit."""
    changed = WHOLE[:-32]
    for place, gone, new in changes:
        changed = changed[:place] + new + changed[place + gone :]
    written = sealed(changed) if seal else changed + WHOLE[-32:]
    path = tmp_path / "a"
    path.write_bytes(written)
    try:
        state_file.read(path)
    except Unreadable as error:
        assert "\n" not in str(error)
    else:
        assert seal or written == WHOLE


FORGED: dict[str, bytes] = {
    "nothing": b"",
    "no table": b"[]",
    "no JSON": b"{" * 8,
    "no state": b"{}",
    "a state that is none": json.dumps({"__metadata__": {"state": "7"}}).encode(),
    "text that is no JSON": json.dumps({"__metadata__": {"state": "{"}}).encode(),
    "a number without end": json.dumps({"__metadata__": {"state": "9" * 9_999}}).encode(),
    "deep": json.dumps({"__metadata__": {"state": '{"a":' + "[" * 500 + "]" * 500 + "}"}}).encode(),
    "deeper": json.dumps({"__metadata__": {"state": "[" * 900_000}}).encode(),
    "far too deep": b'{"a":' * 900_000,
    "more than there is": json.dumps(
        {"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}
    ).encode(),
    "an overlap": json.dumps(
        {
            "a": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]},
            "b": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]},
        }
    ).encode(),
    "a huge extent": json.dumps(
        {
            "__metadata__": {"state": "7"},
            "a": {"dtype": "F32", "shape": [0, 2**63 - 1, 2**63 - 1], "data_offsets": [0, 0]},
        }
    ).encode(),
}


@pytest.mark.parametrize("case", list(FORGED))
def test_what_is_forged_is_refused_in_words(case: str, tmp_path: Path) -> None:
    assert "is not as this version writes it" in refused(tmp_path / "a", forged(FORGED[case]))


def test_a_length_is_not_believed(tmp_path: Path) -> None:
    for length in (2**63, 2**64 - 1, MOST_HEADER_BYTES + 1, len(WHOLE)):
        written = length.to_bytes(LENGTH_BYTES, "little") + WHOLE[LENGTH_BYTES:]
        assert "is torn" in refused(tmp_path / "a", sealed(written[:-32]))
    long = forged(b"{}" + b" " * MOST_HEADER_BYTES)
    assert "a header of 8 MB; at most 8" in refused(tmp_path / "a", long)


BOMB_BYTES = MOST_HEADER_BYTES // 4
"""Of headers whose memory is measured; it grows with them, and so does the time."""


def bomb(part: str) -> bytes:
    """A header of one part over and over in its JSON."""
    count = (BOMB_BYTES - 300) // (len(json.dumps(part)) - 1)
    text = f'{{"lasting":[{",".join([part] * count)}],"told":{{}}}}'
    table: dict[str, Any] = {"__metadata__": {"state": text}}
    table["checksum"] = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
    return json.dumps(table).encode()


def empties() -> bytes:
    """As many tensors without elements as there is room for."""
    own = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    count = BOMB_BYTES // (len(own) + 3)
    last = '"checksum":{"dtype":"U8","shape":[32],"data_offsets":[0,32]}'
    meta = '"__metadata__":{"state":"{}"}'
    return ("{" + ",".join([meta, *(own.format(n) for n in range(count)), last]) + "}").encode()


BEGINNING = """
import resource, sys
from pathlib import Path
from nodes.checkpoint import state_file
"""
READ = """
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    state_file.read(Path(sys.argv[1]))
except state_file.Unreadable as error:
    print(error, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
FIRST_BYTES, FACTOR = 10e6, 60
"""As ``state_file.read`` says: before anything is made of a file, and then times its header."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(BEGINNING) as forks:
        yield forks


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("part", ["[]", '{"a":1}', "[[[[[]]]]]", "1e9", "", None])
def test_memory_is_bounded_by_the_header(part: str | None, tmp_path: Path, forks: Forks) -> None:
    header = empties() if part is None else bomb(part) if part else b'{"a":' * 400_000
    assert BOMB_BYTES * 0.9 < len(header) <= BOMB_BYTES
    (tmp_path / "a").write_bytes(forged(header))
    taken = int(forks.printed(READ, tmp_path / "a"))
    print(taken / 1e3, "MB")
    assert taken * 1024 < FIRST_BYTES + FACTOR * len(header)


def test_a_file_with_holes_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(WHOLE)
        file.truncate(1 << 40)
    with pytest.raises(Unreadable, match="has 1099512 MB, and"):
        state_file.read(tmp_path / "a")
