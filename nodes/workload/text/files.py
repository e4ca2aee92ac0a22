"""Files of texts that a user has, or that a repository of the hub has: found, and read by record.

JSON lines, a JSON array, parquet, or what `datasets` saves; which part of the data a file is, its
name says. No code of a repository is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nodes.workload import hub, hub_data
from nodes.workload.text import json_lines
from testbed import outside
from testbed.config_error import ConfigError

READ_LIMIT_S = 240.0
"""Of a run's preparation, which has 300 s."""
JSON = (".jsonl", ".ndjson", ".json")
TABLES = (".parquet", ".arrow")
_COMPRESSED = ("", *json_lines.OPENERS)
_ENDINGS = (*(f"{kind}{packing}" for kind in JSON for packing in _COMPRESSED), *TABLES)
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside data; and what it caches begins with "cache-"."""
_PART = re.compile(
    r"(?:^|[^a-z])(train(?:ing)?|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE
)
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[\w][\w.=-]*)*)")
_SOME = 5
"""Names that a refusal lists."""


class Record(NamedTuple):
    """One object of a file."""

    place: str
    """File and line, to begin a refusal with."""
    fields: dict[str, Any]


class Files(NamedTuple):
    """Files of a data set, in the order in which they are read."""

    where: str
    """Begins a refusal."""
    folder: Path
    """What their names are told from."""
    train: list[Path]
    test: list[Path]
    """Empty: the test is to be held out of the others."""
    left_alone: list[Path]
    """A validation split, where there is a test split too."""

    def name(self, file: Path) -> str:
        """A file's path below the folder."""
        return file.relative_to(self.folder).as_posix()


def find(data_path: str) -> Files:
    """The files that a path or a hub repository's name stands for, those downloaded first.

    "owner/name/folder" is that folder of the repository. ConfigError where there are none, where
    they may be the same data twice, and for a file that is empty or cut off.
    """
    where = f"data_path = {data_path!r}"
    path, partly = hub.expanded(data_path).absolute(), ""
    # Path's own raises for a name that is too long.
    if not os.path.exists(path):
        found = _REPOSITORY.fullmatch(data_path)
        if found is None:
            raise ConfigError(
                f"{where}: there is no such file or folder, and no repository of the hub is "
                "called so"
            )
        path, partly = _fetched(where, found[1], found[2].removeprefix("/"))
        if not os.path.exists(path):
            raise ConfigError(f"{where}: the repository has no {found[2][1:]}{partly}")
    try:
        files = _listed(data_path, path)
        _check_whole(files)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}{partly}") from error
    return files


def _fetched(where: str, repository: str, inner: str) -> tuple[Path, str]:
    """A repository's folder or file here, and what a refusal says beside where it is cached."""
    before = f"{inner}/" if inner else ""
    patterns = [f"{before}*{ending}" for ending in _ENDINGS]
    folder, whole = hub.fetch("dataset", where, repository, [*patterns, *([inner] * bool(inner))])
    partly = "" if whole else "; the hub cannot be reached, and this is what is cached of it"
    return folder / inner, partly


def _listed(data_path: str, path: Path) -> Files:
    where = f"data_path = {data_path!r}"
    if not path.is_dir():
        if not path.name.lower().endswith(_ENDINGS):
            raise ConfigError(f"is none of the files that are read: {_endings()}")
        return Files(where, path.parent, [path], [], [])
    outside.check_folder(path, "the folder")
    files = sorted(_data_files(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise ConfigError(f"has no file that is read: {_endings()}")
    names = {file: file.relative_to(path).as_posix() for file in files}
    _check_once(list(names.values()))
    parts = {file: _part(name) for file, name in names.items()}
    folders = sorted({folder for _, folder in parts.values()})
    if len(folders) > 1:
        raise ConfigError(
            f"has data in several folders, {_few(folders)}, which may be several sets; name one: "
            f"{data_path.rstrip('/')}/{folders[-1]}"
        )
    by_part = {
        wanted: [file for file, (part, _) in parts.items() if part == wanted]
        for wanted in ("train", "test", "validation", "")
    }
    plain, train = by_part[""], by_part["train"]
    if train and plain:
        others = _few([names[file] for file in plain])
        raise ConfigError(
            f"has files for training and others whose names say nothing, {others}; name them "
            "train, test or validation, or take them away"
        )
    if not train and not plain:
        raise ConfigError("has files to test and none to train on, such as train.jsonl")
    validation = by_part["validation"]
    test = by_part["test"] or validation
    left_alone = validation if by_part["test"] else []
    return Files(where, path, train or plain, test, left_alone)


def _check_once(names: list[str]) -> None:
    """ConfigError where two files have one name but for its ending."""
    seen: dict[str, str] = {}
    for name in names:
        ending = max((each for each in _ENDINGS if name.lower().endswith(each)), key=len)
        other = seen.setdefault(name[: -len(ending)], name)
        if other != name:
            raise ConfigError(f"has {other} and {name}, which may be the same twice; keep one")


def _data_files(folder: Path) -> Iterator[Path]:
    for here, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            is_kept = name.startswith((".", "cache-")) or name in _NO_DATA
            if name.lower().endswith(_ENDINGS) and not is_kept:
                yield Path(here, name)


def _part(name: str) -> tuple[str, str]:
    """Which part of the data a file is, by its name or else its folders', and the others of these.

    "" for a file whose names say nothing.
    """
    path = PurePosixPath(name)
    folders = [folder for folder in path.parts[:-1] if not _PART.search(folder)]
    for each in reversed(path.parts):
        if found := _PART.search(each):
            word = found[1].lower()
            first = "train" if word.startswith("train") else "validation"
            return ("test" if word == "test" else first), "/".join(folders)
    return "", "/".join(folders)


def _check_whole(files: Files) -> None:
    for file in [*files.train, *files.test]:
        reason = hub.unfit(file)
        if file.suffix.lower() == ".parquet":
            reason = reason or hub_data.torn(file)
        if reason is not None:
            raise ConfigError(f"{files.name(file)} {reason}")
        if file.suffix.lower() in TABLES and find_spec("pyarrow") is None:
            raise ConfigError(
                f"{files.name(file)}: needs the library pyarrow, which comes with datasets: "
                f"{hub_data.INSTALL}"
            )
        json_lines.check_packing(file)


def records(files: Files, part: list[Path], columns: frozenset[str]) -> Iterator[Record]:
    """Records of files, one after another, with what ``columns`` hold; others are null.

    ConfigError for the first that is not one.
    """
    for file in part:
        if file.suffix.lower() not in TABLES:
            yield from _records(files, file, file, columns)
            continue
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as converted:
            asked = [f"{files.where}: {files.name(file)}", str(file), converted.name]
            # A process apart: pyarrow leaves threads, and nodes are forked from this one.
            hub.run_apart(f"{__package__}.tables", *asked, *sorted(columns), limit_s=READ_LIMIT_S)
            yield from _records(files, file, Path(converted.name), columns)


def _records(files: Files, named: Path, file: Path, columns: frozenset[str]) -> Iterator[Record]:
    what = "line" if named is file else "row"
    try:
        for number, there in json_lines.objects(file):
            fields = {name: value if name in columns else None for name, value in there.items()}
            yield Record(f"{files.where}: {files.name(named)}: {what} {number}", fields)
    except json_lines.Unreadable as error:
        raise ConfigError(f"{files.where}: {files.name(named)}: {error}") from error


def fingerprint(files: Files) -> str:
    """SHA-256 of the files that are read, in order, and their names."""
    digest = hashlib.sha256()
    for part, several in (("train", files.train), ("test", files.test)):
        for file in several:
            with file.open("rb") as opened:
                own = hashlib.file_digest(opened, "sha256").hexdigest()
            name = f"{part}\0{files.name(file)}\0{own}\n"
            digest.update(name.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _endings() -> str:
    packed = ", ".join(json_lines.OPENERS)
    return f"{', '.join(JSON)} (also {packed}), {', '.join(TABLES)}"


def _few(names: list[str]) -> str:
    more = len(names) - _SOME
    listed = [name or "its top" for name in names[:_SOME]]
    return ", ".join([*listed, *([f"{more} more"] if more > 0 else [])])
