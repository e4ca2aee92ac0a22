"""Data sets of the hub: read from local folders of made images; the hub itself is never asked."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import heavy
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from threads import threads

from nodes.program import FineTuning
from nodes.workload import data, hub, hub_data
from testbed.config_error import ConfigError
from testbed.run import client_links
from testbed.run.config import RunConfig

LABELS = {"cifar10": "label", "cifar100": "fine_label", "svhn": "label"}


@pytest.fixture(autouse=True)
def quiet() -> None:
    heavy.datasets.disable_progress_bars()


def pixels(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """Images uint8 (count, side, side, 3), as PIL has them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def split(name: str, images: np.ndarray, labels: list[Any]) -> heavy.datasets.Dataset:
    """As the hub's own sets are: encoded images, labels that know their classes' names."""
    source = hub_data.SOURCES[name]
    columns = {source.image: [Image.fromarray(each) for each in images], source.label: labels}
    if name == "cifar100":
        columns["coarse_label"] = [0] * len(labels)
    made = heavy.datasets.Dataset.from_dict(columns)
    return made.cast_column(source.image, heavy.datasets.Image())


def made(name: str) -> heavy.datasets.DatasetDict:
    classes = data.facts(name).classes
    train, test = ([index % classes for index in range(count)] for count in (30, 12))
    return heavy.datasets.DatasetDict(
        train=split(name, pixels(30), train), test=split(name, pixels(12, seed=1), test)
    )


def write_parquet(sets: heavy.datasets.DatasetDict, folder: Path) -> Path:
    """The training split in two files, as the hub cuts large ones."""
    folder.mkdir(parents=True)
    for number in range(2):
        part = sets["train"].shard(2, number, contiguous=True)
        part.to_parquet(str(folder / f"train-0000{number}-of-00002.parquet"))
    sets["test"].to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def arrays(name: str, one: heavy.datasets.Dataset | list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """What the process apart would read of a split."""
    where = "data_path = 'x': the train split"
    return hub_data._arrays(one, hub_data.SOURCES[name], data.facts(name).classes, where)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_a_folder_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        # A copy of the hub's repository has the files one folder down.
        write_parquet(made("cifar100"), tmp_path / "cifar100")
    else:
        made("cifar100").save_to_disk(tmp_path)
    before = threads()
    folder = data.find("cifar100", str(tmp_path))
    got = data.load("cifar100", seed=0, folder=folder)
    assert not threads() - before
    assert got.name == "cifar100" and got.outputs == 100
    assert got.train_inputs.dtype == np.uint8
    assert np.array_equal(got.train_inputs, pixels(30).transpose(0, 3, 1, 2))
    assert got.train_targets.tolist() == list(range(30)) and got.train_targets.dtype == np.int64
    assert got.test_inputs.dtype == np.float32
    assert np.array_equal(got.test_inputs, data.scaled(pixels(12, seed=1)).transpose(0, 3, 1, 2))
    assert got.test_targets.tolist() == list(range(12))


@pytest.mark.thorough
def test_some_of_the_training_images_are_drawn_from_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hub_data.Splits(pixels(30), np.arange(30), pixels(12), np.arange(12))
    monkeypatch.setattr(hub_data, "read", lambda *_: whole)
    first, again, other = (
        data.load("svhn", seed=seed, train_samples=8, folder=tmp_path) for seed in (0, 0, 1)
    )
    assert first.train_targets.tolist() == again.train_targets.tolist()
    assert first.train_targets.tolist() != other.train_targets.tolist()
    assert np.array_equal(first.train_inputs, whole.train_images[first.train_targets])
    with pytest.raises(ConfigError, match="has 30 training images, and 31 were asked for"):
        data.load("svhn", seed=0, train_samples=31, folder=tmp_path)


def test_the_validation_split_is_a_fifth_of_the_folders_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hub_data.Splits(pixels(30), np.arange(30) % 3, pixels(12), np.arange(12))
    monkeypatch.setattr(hub_data, "read", lambda *_: whole)
    first, other = (
        data.load("svhn", seed=seed, folder=tmp_path, validation=True) for seed in (0, 1)
    )
    assert len(first.test_targets) == 6 and len(first.train_targets) == 24
    assert np.array_equal(first.test_inputs, other.test_inputs)
    assert first.test_inputs.dtype == np.float32 and first.train_inputs.dtype == np.uint8
    images = {each.tobytes() for each in data.scaled(whole.train_images)}
    parts = [*first.test_inputs, *data.scaled(first.train_inputs)]
    assert {each.tobytes() for each in parts} == images


@pytest.mark.parametrize("name", LABELS)
def test_every_set_has_the_hubs_columns(name: str) -> None:
    assert hub_data.SOURCES[name].label == LABELS[name]
    images, labels = arrays(name, made(name)["train"])
    assert np.array_equal(images, pixels(30).transpose(0, 3, 1, 2))
    assert labels.max() == min(29, data.facts(name).classes - 1)


def test_images_without_their_type_are_read_too() -> None:
    """Other writers of parquet keep the bytes and not that they are an image."""
    plain = made("cifar10")["train"].cast_column("img", heavy.datasets.Image(decode=False))
    rows = {"img": plain["img"][:], "label": plain["label"][:]}
    images, _ = arrays("cifar10", heavy.datasets.Dataset.from_dict(rows))
    assert np.array_equal(images, pixels(30).transpose(0, 3, 1, 2))


def test_contents_that_are_another_sets_are_refused() -> None:
    good = made("cifar10")["train"]

    def refused(one: heavy.datasets.Dataset, why: str) -> None:
        with pytest.raises(ConfigError, match=f"data_path = 'x': the train split.*{why}"):
            arrays("cifar10", one)

    refused(good.rename_column("img", "image"), "columns image, label; it needs img and label")
    refused(good.remove_columns("label"), "has columns img; it needs")
    refused(split("cifar10", pixels(2, side=28), [0, 1]), "28 x 28 RGB; all must be 32 x 32 RGB")
    refused(split("cifar10", pixels(2)[..., 0], [0, 1]), "an image is 32 x 32 L;")
    refused(split("cifar10", pixels(2), [0, 10]), "label = 10: labels must be 0 to 9")
    refused(split("cifar10", pixels(2), [0, -1]), "label = -1: labels must be 0 to 9")
    refused(split("cifar10", pixels(2), [0, None]), "label must hold whole numbers")
    refused(split("cifar10", pixels(2), ["cat", "dog"]), "label must hold whole numbers")
    refused(good.select([]), "has no images")
    numbers = heavy.datasets.Dataset.from_dict({"img": [1.0], "label": [0]})
    refused(numbers, "column img must hold images")
    broken = {"img": [{"bytes": b"no image", "path": None}], "label": [0]}
    refused(heavy.datasets.Dataset.from_dict(broken), "an image is of no format that is known")
    for absent in (None, {"bytes": b"", "path": None}):
        row = {"img": [absent, broken["img"][0]], "label": [0, 0]}
        refused(heavy.datasets.Dataset.from_dict(row), "an image is empty")
    cut = encoded(Image.fromarray(pixels(1)[0]))[:-100]
    torn = {"img": [{"bytes": cut, "path": None}], "label": [0]}
    refused(heavy.datasets.Dataset.from_dict(torn), "an image cannot be read: image file is trunc")


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_an_image_of_another_size_is_refused_by_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one colour, 300 kB are a gigabyte of pixels."""
    cell = {"bytes": encoded(Image.new("RGB", (4000, 1))), "path": None}
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail(f"decoded {image.size}"))
    one = heavy.datasets.Dataset.from_dict({"img": [cell], "label": [0]})
    with pytest.raises(ConfigError, match="an image is 4000 x 1 RGB; all must be 32 x 32 RGB"):
        arrays("cifar10", one)


def test_columns_that_arrow_or_datasets_cannot_take_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    image = {"bytes": encoded(Image.fromarray(pixels(1)[0])), "path": None}
    images, labels = pa.array([image]), pa.array([0])

    def refused(columns: list[Any], names: list[str], why: str, about: bytes = b"{}") -> None:
        table = pa.Table.from_arrays(columns, names)
        table = table.replace_schema_metadata({b"huggingface": about})
        parquet.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(ConfigError, match=f"data_path = 'x': the train split.*{why}"):
            arrays("cifar10", [tmp_path / "train.parquet"])

    both = ["img", "label"]
    refused([images, images, labels], ["img", *both], "has 2 columns img; must be one")
    refused([images, labels, labels], [*both, "label"], "has 2 columns label; must be one")
    for odd in (3, [3], {"bytes": b""}):
        refused([pa.array([{"bytes": odd}]), labels], both, "column img must hold images, not str")
    refused([images, pa.array([0], pa.duration("s"))], both, "label must hold whole numbers")
    refused([images, labels], both, r"train\.parquet cannot be read", b"[" * 100_000)


@pytest.mark.thorough
def test_a_refusal_of_the_process_apart_arrives(tmp_path: Path) -> None:
    folder = write_parquet(made("svhn"), tmp_path / "own")
    assert data.find("cifar10", str(folder)) == folder
    with pytest.raises(ConfigError, match=r"own.*the train split has columns image, label;"):
        data.load("cifar10", seed=0, folder=folder)


def test_a_folder_without_the_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"data_path = 'nowhere': there is no such folder"):
        data.find("cifar10", "nowhere")
    with pytest.raises(ConfigError, match=r"holds neither train\*.parquet nor"):
        data.find("cifar10", str(tmp_path))
    (tmp_path / "train.parquet").touch()
    with pytest.raises(ConfigError, match=r"holds neither test\*.parquet nor"):
        data.find("cifar10", str(tmp_path))
    monkeypatch.setattr(hub_data, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'svhn': needs .*pip install 'wiretune\[hub\]'"):
        data.find("svhn", str(tmp_path))


ODD_NAMES = [
    "s?t[1]*::x",
    "set[1]",
    "run*",
    "what?",
    "a::b",
    "hf:",
    "{x}",
    "with space ",
    "#1%20",
    "~",
]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_a_folders_name_is_no_pattern_and_no_address(kind: str, tmp_path: Path) -> None:
    own, neighbours = made("cifar10"), ["set1", "run2", "whatx", "a", "x"]
    for number, name in enumerate([*neighbours, *ODD_NAMES]):
        sets = own
        if name in neighbours:
            wrong = split("cifar10", pixels(3, seed=9), [0, 1, 2])
            sets = heavy.datasets.DatasetDict(train=wrong, test=wrong)
        place = write_parquet(sets, tmp_path / f"made-{number}") if kind == "parquet" else None
        if place is None:
            place = tmp_path / f"made-{number}"
            sets.save_to_disk(place)
        place.rename(tmp_path / name)
    for name in ODD_NAMES:
        assert data.find("cifar10", str(tmp_path / name)) == tmp_path / name
    # By the process apart, which takes most of a second, one with all that a pattern may have.
    found = data.load("cifar10", seed=0, folder=tmp_path / ODD_NAMES[0])
    assert np.array_equal(found.train_inputs, pixels(30).transpose(0, 3, 1, 2))
    for name in ODD_NAMES[1:]:
        files = hub_data._files(tmp_path / name, "train")
        read = files if kind == "parquet" else hub_data._of_disk(files, "")
        assert np.array_equal(arrays("cifar10", read)[0], pixels(30).transpose(0, 3, 1, 2)), name


def test_a_files_name_is_no_pattern_either(tmp_path: Path) -> None:
    made("cifar10")["train"].to_parquet(str(tmp_path / "plain"))
    (tmp_path / "plain").rename(tmp_path / "train[1]::x.parquet")
    found, _ = arrays("cifar10", hub_data._files(tmp_path, "train"))  # type: ignore[arg-type]
    assert np.array_equal(found, pixels(30).transpose(0, 3, 1, 2))


@pytest.mark.thorough
def test_files_that_are_not_whole_are_refused_by_name_before_anything_starts(
    tmp_path: Path,
) -> None:
    folder = write_parquet(made("cifar10"), tmp_path / "own")
    file = folder / "train-00001-of-00002.parquet"
    whole = file.read_bytes()

    def refused(contents: bytes, why: str) -> None:
        file.write_bytes(contents)
        with pytest.raises(ConfigError, match=rf"own': {file.name} {why}"):
            data.find("cifar10", str(folder))

    refused(b"", "is empty")
    refused(b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")
    refused(whole[:-9], "is not whole: a parquet file's end is missing")
    refused(b"<html>", "is no parquet file: it begins with b'<htm'")
    refused(b"PA", "is no parquet file")
    file.unlink()
    file.symlink_to("gone")
    with pytest.raises(ConfigError, match=f"{file.name} cannot be read: No such file"):
        data.find("cifar10", str(folder))
    file.unlink()
    file.write_bytes(whole[:40] + bytes(len(whole) - 80) + whole[-40:])
    assert data.find("cifar10", str(folder)) == folder
    with pytest.raises(ConfigError, match=f"the train split: {file.name} cannot be read: "):
        data.load("cifar10", seed=0, folder=folder)


@pytest.mark.thorough
def test_what_save_to_disk_wrote_is_checked_too(tmp_path: Path) -> None:
    made("cifar10").save_to_disk(tmp_path / "own")
    file = next((tmp_path / "own" / "train").glob("*.arrow"))
    whole = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"own': train/{file.name} is empty"):
        data.find("cifar10", str(tmp_path / "own"))
    file.write_bytes(whole[:200])
    with pytest.raises(ConfigError, match=f"the train split: {file.name} cannot be read: "):
        data.load("cifar10", seed=0, folder=data.find("cifar10", str(tmp_path / "own")))
    for text in ("{", "[" * 100_000, '{"_data_files": [3]}'):
        (tmp_path / "own" / "train" / "state.json").write_text(text)
        with pytest.raises(ConfigError, match=r"own': .*train/state\.json cannot be read"):
            data.find("cifar10", str(tmp_path / "own"))


def test_an_image_stands_as_its_camera_noted_and_as_datasets_decodes_it() -> None:
    cells = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        Image.fromarray(pixels(1)[0]).save(file, "png", exif=exif)
        cells.append({"bytes": file.getvalue(), "path": None})
    one = heavy.datasets.Dataset.from_dict({"img": cells, "label": [0] * 8})
    found, _ = arrays("cifar10", one)
    decoded = one.cast_column("img", heavy.datasets.Image())["img"]
    theirs = np.stack([np.asarray(each).transpose(2, 0, 1) for each in decoded])
    assert np.array_equal(found, theirs)
    assert not np.array_equal(found[0], found[2])


def test_a_fingerprint_is_of_what_is_read_and_of_nothing_beside_it(tmp_path: Path) -> None:
    folder = write_parquet(made("cifar10"), tmp_path / "own")
    before = data.fingerprint("cifar10", folder)
    (folder / "README.md").write_text("beside it")
    assert data.fingerprint("cifar10", folder) == before
    file = folder / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes().replace(b"PNG", b"PNg"))
    assert data.fingerprint("cifar10", folder) != before
    assert len(data.fingerprint("digits", None) or "") == 64
    assert data.fingerprint("glyphs", None) is None


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("lambda: 'there'", None),
        ("lambda: 1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("lambda: os.kill(os.getpid(), 9)", "failed: killed by SIGKILL"),
    ],
)
def test_a_process_apart_leaves_as_soon_as_it_has_answered(
    body: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a library's thread that aborts a process on its way out.
    text = "import atexit, os\natexit.register(os.abort)\nfrom nodes.workload import hub\n"
    (tmp_path / "apart.py").write_text(f"{text}hub.answer({body})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if told is None:
        assert hub.run_apart("apart", limit_s=60) == "there"
        return
    with pytest.raises(ConfigError, match=told):
        hub.run_apart("apart", limit_s=60)


@pytest.mark.thorough
def test_a_run_trains_on_fractions_and_shares_pixels(tmp_path: Path) -> None:
    folder = write_parquet(made("cifar10"), tmp_path / "own")
    config = RunConfig(method="fedavg", dataset="cifar10", data_path=str(folder))
    threads = torch.get_num_threads()
    program = FineTuning(config, clients=2)
    program.prepare()
    torch.set_num_threads(threads)
    assert program._data.train_inputs.dtype == np.uint8
    shards = [program._shard(number) for number in (1, 2)]
    assert sum(len(shard.targets) for shard in shards) == 30
    for shard in shards:
        assert shard.inputs.dtype == torch.float32 and shard.inputs.shape[1:] == (3, 32, 32)
        assert 0.9 < shard.inputs.max() <= 1


def test_a_run_asks_for_its_data_before_anything_starts() -> None:
    config = RunConfig(method="fedavg", dataset="cifar10", data_path="nowhere")
    with pytest.raises(ConfigError, match="data_path = 'nowhere'"):
        FineTuning(config, clients=2)
    # What is there is found from any other folder, and a repository's name is left as it is.
    assert client_links.repeatable(config).data_path == "nowhere"
    there = msgspec.structs.replace(config, data_path="tests")
    assert client_links.repeatable(there).data_path == str(Path("tests").resolve())
    # Shapes alone need no data.
    FineTuning(msgspec.structs.replace(config, compute="modelled"), clients=2)


@pytest.mark.parametrize("silent", [False, True])
def test_a_hub_out_of_reach_is_said_soon(
    silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it refuses a connection or takes it and does not answer."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(hub, "DOWNLOAD_LIMIT_S", 20.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        if not silent:
            server.close()
        with pytest.raises(ConfigError, match=r"'cifar10': the hub cannot be reached.*--data-path"):
            data.find("cifar10", None)


def test_what_the_hub_gave_before_is_found_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "hub" / "datasets--ufldl-stanford--svhn"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    write_parquet(made("svhn"), cached / "snapshots" / ("0" * 40) / "cropped_digits")
    folder = data.find("svhn", None)
    assert folder is not None and folder.name == "cropped_digits"
    assert len(list(folder.glob("*.parquet"))) == 3
