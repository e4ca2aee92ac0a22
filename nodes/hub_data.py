"""Data sets of the Hugging Face hub, from a local folder or by name.

The library `datasets` reads them, in a process apart: it takes memory and leaves threads.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from nodes import hub
from testbed.config_error import ConfigError

READ_LIMIT_S = 240.0
"""Of a run's preparation, which has 300 s."""
SIDE = 32
BATCH = 1_000
"""Images that are decoded at once."""


class Source(NamedTuple):
    """Where a data set is on the hub, and what its columns are called."""

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
INSTALL = "pip install 'wiretune[hub]'"


class Splits(NamedTuple):
    """Images uint8 (n, 3, SIDE, SIDE) and labels int64 (n,)."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def find(name: str, folder: str | None) -> Path:
    """The folder that `read` can read a data set from: `folder`, or the hub's, downloaded.

    Nothing of `datasets` is imported. ConfigError where it is not installed, for a folder that
    holds no such files, or where the hub cannot be reached.
    """
    if find_spec("datasets") is None:
        raise ConfigError(f"dataset = {name!r}: needs the library datasets: {INSTALL}")
    source = SOURCES[name]
    if folder is None:
        patterns = [f"{source.config}/{split}*.parquet" for split in ("train", "test")]
        path = hub.fetch("dataset", name, source.repository, patterns)
        folder = str(path)
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(f"data_path = {folder!r}: there is no such folder")
    if (path / source.config).is_dir():
        path /= source.config
    if not (path / "dataset_dict.json").exists():
        for split in ("train", "test"):
            if not _parquet(path, split):
                raise ConfigError(
                    f"data_path = {folder!r}: holds neither {split}*.parquet nor what save_to_disk "
                    "of both splits wrote; docs/data.md says how to make either"
                )
    return path


def read(name: str, classes: int, folder: Path) -> Splits:
    """A data set from a folder that `find` returned; labels are 0 to `classes` - 1.

    ConfigError where its columns, images or labels are not those of the data set.
    """
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        asked = [name, str(classes), str(folder), file.name]
        hub.run_apart("nodes.hub_data", *asked, limit_s=READ_LIMIT_S)
        arrays = load_file(file.name)
        return Splits(*(arrays[field] for field in Splits._fields))


def _parquet(folder: Path, split: str) -> list[str]:
    return sorted(str(path) for path in folder.glob(f"{split}*.parquet"))


def _read_here() -> str:
    """Write the arrays of Splits to the file that the arguments name."""
    # Heeded at import: a folder is all that is needed, and torch would take a second to load.
    os.environ |= {"HF_HUB_OFFLINE": "1", "USE_TORCH": "0"}
    import datasets

    name, classes, folder, path = sys.argv[1:]
    datasets.disable_progress_bars()
    if (Path(folder) / "dataset_dict.json").exists():
        loaded = datasets.load_from_disk(folder)
    else:
        files = {split: _parquet(Path(folder), split) for split in ("train", "test")}
        # Streaming leaves no copy in the cache.
        loaded = datasets.load_dataset("parquet", data_files=files, streaming=True)
    arrays = {}
    for split in ("train", "test"):
        where = f"data_path = {folder!r}: the {split} split"
        if split not in loaded:
            raise ConfigError(f"{where} is missing; there are {', '.join(loaded)}")
        images, labels = _arrays(loaded[split], SOURCES[name], int(classes), where)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    # What is written is memory as it lies, in whatever order.
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return ""


def _arrays(
    split: Any, source: Source, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of a `datasets` split; ConfigError beginning with ``where``."""
    import datasets

    there = split.features or {}
    for column in (source.image, source.label):
        if column not in there:
            raise ConfigError(
                f"{where} has columns {', '.join(there)}; it needs {source.image} and "
                f"{source.label}, as {source.repository} has them"
            )
    kind = there[source.image]
    if not (isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)):
        raise ConfigError(f"{where}: column {source.image} must hold images, not {kind}")
    split = split.cast_column(source.image, datasets.Image(decode=False))
    images, labels = [], []
    for table in split.with_format("arrow").iter(BATCH):
        images.append(np.stack(list(_decoded(table[source.image].to_pylist(), where))))
        column = table[source.label].to_numpy()
        if not np.issubdtype(column.dtype, np.integer):
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


def _decoded(cells: list[dict[str, Any] | None], where: str) -> Iterator[NDArray[np.uint8]]:
    """Each image, uint8 (3, SIDE, SIDE)."""
    from PIL import Image

    for cell in cells:
        try:
            cell = cell or {}
            image = Image.open(io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"])
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                width, height = image.size
                raise ConfigError(
                    f"{where}: an image is {width} x {height} {image.mode}; all must be "
                    f"{SIDE} x {SIDE} RGB"
                )
            yield np.asarray(image).transpose(2, 0, 1)
        except (OSError, KeyError, AttributeError, TypeError, SyntaxError) as error:
            raise ConfigError(f"{where}: an image cannot be read: {error}") from error


if __name__ == "__main__":
    hub.answer(_read_here)
