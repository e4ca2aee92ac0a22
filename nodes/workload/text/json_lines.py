"""JSON objects of a file: one a line, or all in one array; packed or not."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from testbed import files
from testbed.config_error import ConfigError

MOST_LINE = 16 * 2**20
"""Bytes of a line."""
MOST_ARRAY = 256 * 2**20
"""Bytes of a JSON array, which is read as a whole."""
MOST_BYTES = 2 * 2**30
"""Bytes of a file, unpacked."""
_SHOWN = 60
"""Characters of a line that a refusal shows."""
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff")
_MARK = b"\xef\xbb\xbf"
"""What editors of Windows write before UTF-8."""

_OTHER_FILES = {
    b"\x1f\x8b": ".gz",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"PK\x03\x04": ".zip",
}
"""Beginnings of files that are no JSON, and how their names should end."""


class Unreadable(ValueError):
    """Contents of a file are not what they should be; the text says where in it and why."""


def _zstd() -> Any:
    """Python's module of it, from 3.14 on, or the package that has the same; None: neither."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda file: _zstd().open(file),
}


def check_packing(path: Path) -> None:
    """ConfigError where a file is packed in a way that this Python cannot unpack."""
    if path.suffix.lower() == ".zst" and _zstd() is None:
        raise ConfigError(
            f"{path.name}: Python has zstd from 3.14 on, before that the package backports.zstd, "
            "which is not installed; unpack the file"
        )


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the number of its line, or of its place in the array, from 1.

    Lines that are blank hold none. Raises Unreadable for what is no JSON object in UTF-8, has a
    name twice, and for a file that is cut off.
    """
    try:
        with files.opened(path) as raw:
            opener = OPENERS.get(path.suffix.lower())
            yield from _objects(raw if opener is None else opener(raw))
    except Unreadable:
        raise
    except Exception as error:  # Each way to pack has errors of its own.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(f"cannot be read: {reason}") from error


def _objects(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    number, size, is_first = 0, 0, True
    while line := file.readline(MOST_LINE + 1):
        number, size = number + 1, size + len(line)
        if number == 1 and line.startswith(_OTHER_ENCODINGS):
            raise Unreadable("is UTF-16 or UTF-32; save it as UTF-8")
        if number == 1:
            for first, ending in _OTHER_FILES.items():
                if line.startswith(first):
                    raise Unreadable(
                        f"begins as a {ending} file does, and not as JSON; unpack or convert it, "
                        "or name it by what it is"
                    )
        # Of files that were joined each begins with its own.
        line = line.removeprefix(_MARK)
        if is_first and line.lstrip().startswith(b"["):
            yield from _array(line, file)
            return
        if len(line) > MOST_LINE:
            raise Unreadable(f"line {number}: has more than {MOST_LINE >> 20} MiB")
        if size > MOST_BYTES:
            raise Unreadable(f"has more than {MOST_BYTES >> 30} GiB; take a part of it")
        if line.strip():
            is_first = False
            yield number, _object(_parsed(_decoded(line, number), f"line {number}: "), number)


def _array(first: bytes, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    content = first + file.read(MOST_ARRAY)
    if len(content) > MOST_ARRAY:
        raise Unreadable(f"is an array of more than {MOST_ARRAY >> 20} MiB; write an object a line")
    for number, value in enumerate(_parsed(_decoded(content, 1), ""), start=1):
        yield number, _object(value, number)


def _decoded(content: bytes, line: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        found = content[error.start]
        raise Unreadable(
            f"line {line}: is not UTF-8 text (byte 0x{found:02x}); save it as UTF-8"
        ) from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        line = where or f"line {error.lineno}: "
        start = max(0, error.pos - _SHOWN // 2)
        shown = text[start : start + _SHOWN].rstrip()
        raise Unreadable(
            f"{line}is no JSON: {error.msg} at column {error.colno}: {shown!r}; each line is to be "
            "an object, or the whole file an array of them"
        ) from None
    except RecursionError:
        raise Unreadable(f"{where}has lists or objects in one another too deep") from None
    except ValueError as error:  # also of Python, of a number of thousands of digits
        raise Unreadable(f"{where}{error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the field {twice!r} more than once")
    return found


def _object(value: Any, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable(
            f'line {number}: is {repr(value)[:_SHOWN]}; must be an object, such as {{"text": "…"}}'
        )
    return value
