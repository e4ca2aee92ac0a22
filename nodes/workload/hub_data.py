"""Data sets of the Hugging Face hub, from a local folder or by name.

The library `datasets` reads them, in a process apart: it takes memory and leaves threads. It takes
paths for patterns, and so is never given one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nodes.workload import hub
from testbed import outside
from testbed.config_error import ConfigError

READ_LIMIT_S = 240.0
"""Of a run's preparation, which has 300 s."""
SIDE = 32
BATCH = 1_000
"""Images that are decoded at once."""


class Source(NamedTuple):
    """A data set's place on the hub, and the names of its columns."""

    repository: str
    config: str
    """The repository's folder with its parquet files."""
    image: str
    label: str


SOURCES = {
    "cifar10": Source("uoft-cs/cifar10", "plain_text", "img", "label"),
    "cifar100": Source("uoft-cs/cifar100", "cifar100", "img", "fine_label"),
    "svhn": Source("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
}
SPLITS = ("train", "test")
ON_DISK = "dataset_dict.json"
"""What save_to_disk writes, and a folder of parquet files lacks."""
PARQUET = b"PAR1"
"""Begins and ends such a file."""
INSTALL = "pip install 'wiretune[hub]'"


class Splits(NamedTuple):
    """Images uint8 (n, 3, SIDE, SIDE) and labels int64 (n,)."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def find(name: str, folder: str | None) -> Path:
    """The folder that `read` can read a data set from: `folder`, or the hub's, downloaded.

    Nothing of `datasets` is imported. ConfigError where it is not installed, for a folder whose
    files are missing or not whole, or where the hub cannot be reached.
    """
    if find_spec("datasets") is None:
        raise ConfigError(f"dataset = {name!r}: needs the library datasets: {INSTALL}")
    source = SOURCES[name]
    partly = ""
    if folder is None:
        patterns = [f"{source.config}/{split}*.parquet" for split in SPLITS]
        path, whole = hub.fetch("dataset", f"dataset = {name!r}", source.repository, patterns)
        folder = str(path)
        if not whole:
            partly = "; the hub cannot be reached, and this is what is cached of it"
    path = hub.expanded(folder).absolute()
    # Path's own raises for a name that is too long.
    if not os.path.isdir(path):
        raise ConfigError(f"data_path = {folder!r}: there is no such folder")
    outside.check_folder(path, f"data_path = {folder!r}:")
    if os.path.isdir(path / source.config):
        path /= source.config
    try:
        _check_whole(path)
    except ConfigError as error:
        raise ConfigError(f"data_path = {folder!r}: {error}{partly}") from error
    return path


def _check_whole(path: Path) -> None:
    """ConfigError, to be told of which folder, where a file is missing or not whole."""
    missing = [split for split in SPLITS if not _files(path, split)]
    if missing:
        raise ConfigError(
            f"holds neither {missing[0]}*.parquet nor what save_to_disk of both splits wrote; "
            "docs/data.md says how to make either"
        )
    for file in [file for split in SPLITS for file in _files(path, split)]:
        reason = hub.unfit(file) or (torn(file) if file.suffix == ".parquet" else None)
        if reason is not None:
            raise ConfigError(f"{file.relative_to(path)} {reason}")


def torn(file: Path) -> str | None:
    """The reason why a file is no whole parquet file, or None."""
    with file.open("rb") as opened:
        first = opened.read(len(PARQUET))
        opened.seek(-min(len(PARQUET), opened.seek(0, os.SEEK_END)), os.SEEK_END)
        last = opened.read()
    if first != PARQUET:
        return f"is no parquet file: it begins with {first!r}"
    return None if last == PARQUET else "is not whole: a parquet file's end is missing"


def fingerprint(folder: Path) -> str:
    """SHA-256 of the files that `read` reads in a folder that `find` returned, and their names."""
    digest = hashlib.sha256()
    for file in [file for split in SPLITS for file in _files(folder, split)]:
        with file.open("rb") as opened:
            own = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder)}\0{own}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read(name: str, classes: int, folder: Path) -> Splits:
    """A data set from a folder that `find` returned; labels are 0 to `classes` - 1.

    ConfigError where its columns, images or labels are not those of the data set.
    """
    from safetensors.numpy import load_file

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        asked = [name, str(classes), str(folder), file.name]
        hub.run_apart(f"{__package__}.hub_data", *asked, limit_s=READ_LIMIT_S)
        arrays = load_file(file.name)
        return Splits(*(arrays[field] for field in Splits._fields))


def _files(folder: Path, split: str) -> list[Path]:
    """Files of a split, in the order in which they are read; none where it is not there.

    ConfigError, to be told of which folder, where what save_to_disk wrote cannot be read.
    """
    if not os.path.exists(folder / ON_DISK):
        return sorted(folder.glob(f"{split}*.parquet"))
    state = folder / split / "state.json"
    try:
        if split not in json.loads((folder / ON_DISK).read_text())["splits"]:
            return []
        names = [each["filename"] for each in json.loads(state.read_text())["_data_files"]]
        return [state.parent / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        text = getattr(error, "strerror", None) or repr(error)
        raise ConfigError(f"{ON_DISK} or {split}/state.json cannot be read: {text}") from error


def _read_here() -> str:
    """Write the arrays of Splits to the file that the arguments name."""
    # Heeded at import: a folder is all that is needed, and torch would take a second to load.
    os.environ |= {"HF_HUB_OFFLINE": "1", "USE_TORCH": "0"}
    # Of images that are refused, or read as they stand: a user has the refusal.
    warnings.simplefilter("ignore")
    import datasets
    from safetensors.numpy import save_file

    name, classes, folder, path = sys.argv[1:]
    datasets.disable_progress_bars()
    arrays: dict[str, NDArray[Any]] = {}
    for split in SPLITS:
        where = f"data_path = {folder!r}: the {split} split"
        files = _files(Path(folder), split)
        if not files:
            raise ConfigError(f"{where} is missing")
        read = _of_disk(files, where) if files[0].suffix == ".arrow" else files
        images, labels = _arrays(read, SOURCES[name], int(classes), where)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    # What is written is memory as it lies, in whatever order.
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return ""


def _of_disk(files: list[Path], where: str) -> Any:
    """The `datasets` split that save_to_disk wrote."""
    import datasets

    parts = []
    for file in files:
        try:
            parts.append(datasets.Dataset.from_file(str(file)))
        except Exception as error:  # Each layer has errors of its own.
            raise ConfigError(
                f"{where}: {file.name} cannot be read: {_first_line(error)}"
            ) from error
    return datasets.concatenate_datasets(parts)


def _tables(split: Any, source: Source, where: str) -> Iterator[Any]:
    """The two columns in arrow tables, of a `datasets` split or a list of parquet files."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    if isinstance(split, datasets.Dataset):
        _check_columns(split.features, source, where)
        yield from split.with_format("arrow").iter(BATCH)
        return
    for path in split:
        # Opened here: by its name it could be taken for an address.
        with path.open("rb") as opened:
            try:
                file = parquet.ParquetFile(opened)
                _check_columns(
                    datasets.Features.from_arrow_schema(file.schema_arrow), source, where
                )
                for column in (source.image, source.label):
                    if (count := file.schema_arrow.names.count(column)) > 1:
                        raise ConfigError(f"{where} has {count} columns {column}; must be one")
                for batch in file.iter_batches(BATCH, columns=[source.image, source.label]):
                    yield pa.Table.from_batches([batch])
            except ConfigError:
                raise
            except Exception as error:  # Each layer has errors of its own.
                raise ConfigError(
                    f"{where}: {path.name} cannot be read: {_first_line(error)}"
                ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _check_columns(there: Any, source: Source, where: str) -> None:
    """``there``: the features, as `datasets` has them."""
    import datasets

    for column in (source.image, source.label):
        if column not in there:
            raise ConfigError(
                f"{where} has columns {', '.join(there)}; it needs {source.image} and "
                f"{source.label}, as {source.repository} has them"
            )
    kind = there[source.image]
    if not (isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)):
        raise ConfigError(f"{where}: column {source.image} must hold images, not {kind}")


def _arrays(
    split: Any, source: Source, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of what `_tables` takes; ConfigError beginning with ``where``."""
    import datasets

    images, labels = [], []
    for table in _tables(split, source, where):
        if not len(table):
            continue
        kept = table[source.image].combine_chunks()
        try:
            cells = datasets.Image(decode=False).cast_storage(kept)
        except Exception as error:  # Of arrow or of `datasets`, by the column's type.
            raise ConfigError(
                f"{where}: column {source.image} must hold images, not {kept.type}"
            ) from error
        images.append(np.stack([_decoded(cell or {}, where) for cell in cells.to_pylist()]))
        column = table[source.label].to_numpy()
        if column.dtype.kind not in "iu":
            raise ConfigError(f"{where}: column {source.label} must hold whole numbers")
        wrong = column[(column < 0) | (column >= classes)]
        if len(wrong):
            raise ConfigError(
                f"{where}: {source.label} = {wrong[0]}: labels must be 0 to {classes - 1}"
            )
        labels.append(column.astype(np.int64))
    if not labels:
        raise ConfigError(f"{where} has no images")
    return np.concatenate(images), np.concatenate(labels)


def _decoded(cell: dict[str, Any], where: str) -> NDArray[np.uint8]:
    """An image, uint8 (3, SIDE, SIDE), the way up that its camera noted."""
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    content = cell.get("bytes") or cell.get("path")
    if not content:
        raise ConfigError(f"{where}: an image is empty")
    try:
        image: Image.Image = Image.open(
            io.BytesIO(content) if isinstance(content, bytes) else content
        )
        # By its head alone: decoded, a few bytes may be gigabytes.
        if image.size == (SIDE, SIDE):
            if image.getexif().get(ExifTags.Base.Orientation) is not None:
                image = ImageOps.exif_transpose(image)
            image.load()
    except UnidentifiedImageError as error:
        raise ConfigError(f"{where}: an image is of no format that is known") from error
    except Exception as error:  # Each format has errors of its own.
        raise ConfigError(f"{where}: an image cannot be read: {_first_line(error)}") from error
    if image.size != (SIDE, SIDE) or image.mode != "RGB":
        width, height = image.size
        raise ConfigError(
            f"{where}: an image is {width} x {height} {image.mode}; all must be {SIDE} x {SIDE} RGB"
        )
    return np.asarray(image).transpose(2, 0, 1)


if __name__ == "__main__":
    hub.answer(_read_here)
