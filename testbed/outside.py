"""Paths and text files that come from outside: one way to take each, and what is refused.

A file is read as UTF-8 with any ends of lines, with or without the byte-order mark that editors of
Windows and Excel write.
"""

import codecs
import hashlib
import math
import os
import re
import stat
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed import files
from testbed.config_error import ConfigError, excerpt

MOST_BYTES = 64 * 1024 * 1024
MOST_DEPTH = 32
"""Of tables and lists in one another: far more than any file here has, far less than crashes."""
_INTEGERS = range(-(2**63), 2**63)
"""What TOML promises to hold."""
_TOO_LONG = "is a whole number of more than 64 bits, beyond what TOML holds"
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_KINDS = (
    (stat.S_ISDIR, "Is a directory"),
    (stat.S_ISFIFO, "is a pipe, which can be read only once; write what it says to a file"),
    (stat.S_ISREG, ""),
)
_OF_THIS_PROCESS = re.compile("/(dev|proc)/")


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` or ``~user`` made a home.

    Raises:
        ConfigError: nobody's home, or what can be no path here or in a record.
    """
    text = os.fspath(path)
    home = os.path.expanduser(text)
    if text.startswith("~") and home == text:
        raise ConfigError(f"{text!r}: there is no such user's home; a file called so is './{text}'")
    _check_path(home)
    return Path(home)


def absolute(path: str | os.PathLike[str]) -> str:
    """The same file from whatever folder; links are kept, as the names that somebody gave."""
    found = expanded(path).absolute()
    # Descriptors of this process are none of the next one.
    if ".." in found.parts or _OF_THIS_PROCESS.match(os.fspath(found)):
        found = found.resolve()
    text = os.fspath(found)
    _check_path(text)
    return text


def exists(path: str | os.PathLike[str]) -> bool:
    """Path's own raises for a name that is too long, and where nobody may look."""
    return os.path.exists(path)


def check_folder(path: str | os.PathLike[str], what: str) -> None:
    """Raises ConfigError, beginning with ``what``, where a folder is none or cannot be listed."""
    try:
        os.scandir(path).close()
        os.stat(os.path.join(path, os.curdir))  # which what can be listed may still refuse
    except OSError as error:
        raise ConfigError(f"{what} {path}: is no folder to be listed: {error.strerror}") from error


def _check_path(text: str) -> None:
    if why := unwritable(text):
        raise ConfigError(f"{text!r}: {why}")


def unwritable(text: str) -> str | None:
    """Why a text can be no part of a record, or None."""
    if "\0" in text:
        return "cannot hold the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        if encoding != "utf-8":
            return (
                f"cannot be read as {encoding}, which this Python takes file names for; set "
                "PYTHONUTF8=1, or a locale that is UTF-8"
            )
        return "is no UTF-8, which the record of a run and its config.toml are; rename it"
    return None


def data(path: str | os.PathLike[str], what: str) -> bytes:
    """The contents of a regular file; ``what`` it is begins a refusal.

    Raises:
        ConfigError: it cannot be read, is no file, or is too large to be one of these.
    """
    file = expanded(path)
    where = f"{what} {file}: cannot read it"
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            kinds = (text for is_kind, text in _KINDS if is_kind(status.st_mode))
            if kind := next(kinds, "is a device or a socket, no file"):
                raise ConfigError(f"{where}: {kind}")
            found = files.contents(opened, MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    if len(found) > MOST_BYTES:
        raise ConfigError(f"{where}: is larger than {MOST_BYTES >> 20} MiB")
    return found


def digest(path: str | os.PathLike[str], what: str) -> str:
    """The digest of a file's contents: SHA-256, hexadecimal."""
    return hashlib.sha256(data(path, what)).hexdigest()


def text(path: str | os.PathLike[str], what: str) -> str:
    """A file's text, its lines ending in a line feed.

    Raises:
        ConfigError: as ``data`` does, or it is no UTF-8.
    """
    found = data(path, what)
    for mark, name in _OTHER_ENCODINGS:
        if found.startswith(mark):
            raise ConfigError(f"{what} {path}: is {name}; save it as UTF-8")
    if b"\0" in found:
        raise ConfigError(
            f"{what} {path}: is not text, or UTF-16 without its mark, for it has NUL bytes; save "
            "it as UTF-8"
        )
    try:
        decoded = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{what} {path}: line {line}: is not UTF-8 text (byte 0x{found[error.start]:02x}); "
            "save it as UTF-8"
        ) from None
    return decoded.replace("\r\n", "\n").replace("\r", "\n")


def toml(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """A TOML document whose numbers are finite and whose depth is bounded.

    Raises:
        ConfigError: as ``text`` does, or it is no such document.
    """
    written = text(path, what)
    try:
        document = tomllib.loads(written)
    except RecursionError:
        raise ConfigError(f"{path}: {_too_deep()}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    except ValueError:  # Python's own, of a number of thousands of digits
        raise ConfigError(f"{path}: {_TOO_LONG}") from None
    for problem in _problems(document):
        raise ConfigError(f"{path}: {problem}")
    return document


def regex(written: str) -> re.Pattern[str]:
    """A regular expression that somebody wrote. Raises ValueError: it is none."""
    try:
        with warnings.catch_warnings():
            # Of what may mean something else in a later Python.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(written)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(excerpt(error)) from None


def _problems(document: dict[str, Any]) -> Iterator[str]:
    """Values that no file here may have; without recursion, for depth is one of these."""
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            yield _too_deep()
        elif isinstance(value, dict):
            dot = "." if key else ""
            waiting += [(f"{key}{dot}{name}", each, depth + 1) for name, each in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{key}[{place}]", each, depth + 1) for place, each in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key} = {value}: must be a finite number"
        elif isinstance(value, int) and value not in _INTEGERS:
            yield f"{key}: {_TOO_LONG}"


def _too_deep() -> str:
    return f"has tables or lists in one another more than {MOST_DEPTH} deep"
