"""A state file: one node's tensors and JSON as safetensors, with a checksum over all of it.

The checksum is the file's last tensor, so that any reader of safetensors takes the file. It tells a
torn or damaged file, and is no proof of who wrote it: whoever changes the one can change the other.
So nothing is believed for it, and a reader's memory is bounded whatever the file says.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import psutil
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from nodes.checkpoint.kinds import Json
from testbed import files
from testbed.config_error import excerpt
from testbed.transport.wire import DTYPES, encode_tensors

CHECKSUM = "checksum"
"""The tensor's name; no path of an attribute is so."""
CHECKSUM_BYTES = hashlib.sha256().digest_size
MOST_HEADER_BYTES = 8 * files.MEGABYTE
"""Most that names, shapes and JSON may have; of the methods here they have up to 0.1 MB."""
MOST_DEPTH = 200
"""Of JSON in JSON: four a container."""
LENGTH_BYTES = 8
"""Of a header's length, before it."""
_CHUNK_BYTES = 1 << 20
_FORMAT_NAMES = {name: name.upper() for name in DTYPES}


class Unreadable(ValueError):
    """An error: a file is no state that can be believed whole; the text says why."""


class Writes(Protocol):
    """Whatever a file's parts are written to."""

    def write(self, data: Any, /) -> object:
        """Take the next bytes."""


class Parts(NamedTuple):
    """A file's parts before its checksum."""

    header: bytes
    """With its length."""
    buffers: Sequence[Any]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(map(len, self.buffers)) + CHECKSUM_BYTES

    def write(self, file: Writes) -> None:
        digest = hashlib.sha256()
        for part in (self.header, *self.buffers):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def encoded(tensors: Mapping[str, Tensor], state: Json) -> Parts:
    """The parts of a file.

    Raises:
        OSError: no reader would take so much JSON.
    """
    headers, buffers = encode_tensors(tensors)
    table: dict[str, Any] = {"__metadata__": {"state": json.dumps(state)}}
    end = 0
    for entry, buffer in zip(headers, buffers, strict=True):
        begin, end = end, end + len(buffer)
        place = {"shape": entry.shape, "data_offsets": [begin, end]}
        table[entry.name] = {"dtype": _FORMAT_NAMES[entry.dtype], **place}
    last = [end, end + CHECKSUM_BYTES]
    table[CHECKSUM] = {"dtype": "U8", "shape": [CHECKSUM_BYTES], "data_offsets": last}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MOST_HEADER_BYTES or not _is_shallow(state):
        raise OSError(
            errno.EFBIG,
            f"{len(header) / 1e6:.1f} MB of names and numbers outside tensors, and at most "
            f"{MOST_HEADER_BYTES / 1e6:g} MB, {MOST_DEPTH} deep, can be read again",
        )
    return Parts(len(header).to_bytes(LENGTH_BYTES, "little") + header, buffers)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """The tensors, which may stand in the file still, and the JSON object beside them.

    Before anything is made of a file it takes 10 MB; then at most 60 times its header, and the
    pages of its tensors.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        Unreadable: it is torn, was changed, or is larger than this machine's memory.
    """
    _check(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            names = [name for name in file.keys() if name != CHECKSUM]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # RecursionError is one of the last.
        raise Unreadable(f"is not as this version writes it ({excerpt(error)})") from error
    return tensors, _checked(state)


def decoded(data: bytes) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """The same of a file's bytes, of which the tensors are copies.

    Raises:
        Unreadable: as ``read``.
    """
    header = _check_parts(io.BytesIO(data), len(data))
    try:
        state = json.loads(json.loads(header)["__metadata__"]["state"])
        tensors = load(data)
        del tensors[CHECKSUM]
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise Unreadable(f"is not as this version writes it ({excerpt(error)})") from error
    return tensors, _checked(state)


def _checked(state: Any) -> dict[str, Json]:
    if not isinstance(state, dict) or not _is_shallow(state):
        raise Unreadable(f"is not as this version writes it (no JSON up to {MOST_DEPTH} deep)")
    return state


def _check(path: Path) -> None:
    """Unreadable where its size, its header's length or its checksum is wrong."""
    with files.opened(path) as file:
        size, free = os.fstat(file.fileno()).st_size, psutil.virtual_memory().available
        if size > free:
            raise Unreadable(f"has {size / 1e6:.0f} MB, and {free / 1e6:.0f} are free")
        _check_parts(file, size)


def _check_parts(file: BinaryIO, size: int) -> bytes:
    """The header, where its length and the checksum are right; else raises Unreadable."""
    first = file.read(LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    if size < LENGTH_BYTES + CHECKSUM_BYTES or length > size - LENGTH_BYTES:
        raise Unreadable(f"is torn: {size:,} bytes are no whole state")
    if length > MOST_HEADER_BYTES:
        raise Unreadable(
            f"is not as this version writes it (a header of {length / 1e6:.0f} MB; at most "
            f"{MOST_HEADER_BYTES / 1e6:g})"
        )
    header = file.read(length)
    digest = hashlib.sha256(first + header)
    for chunk in _chunks(file, size - LENGTH_BYTES - length - CHECKSUM_BYTES):
        digest.update(chunk)
    if file.read(CHECKSUM_BYTES + 1) == digest.digest():
        return header
    if f'"{CHECKSUM}"'.encode() not in header:
        raise Unreadable("has no checksum: an older version wrote it, or it was changed")
    raise Unreadable("is torn or was changed: its checksum is of other content")


def _chunks(file: BinaryIO, count: int) -> Iterator[bytes]:
    """The next ``count`` bytes, or as many as there are."""
    while count > 0 and (chunk := file.read(min(count, _CHUNK_BYTES))):
        count -= len(chunk)
        yield chunk


def _is_shallow(value: Json) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for each in level for inner in _within(each)]
        if not level:
            return True
    return False


def _within(value: Json) -> Sequence[Json]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()
