"""Models as `transformers` saves them: a folder of files, here or on the hub, and what they say.

Weights are read from safetensors alone, one file or shards that an index names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nodes.workload import hub
from testbed import outside
from testbed.config_error import ConfigError, excerpt, in_words

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt")
"""Weights in the format of torch.save."""
ADAPTER = "adapter_config.json"
"""What peft writes in place of a model."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Where a checkpoint says how images are to be normalised; the first that is there counts."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
BESIDE = ("special_tokens_map.json", "chat_template.jinja")
"""What older or newer checkpoints have for their tokenizer too."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Of weights that are plain numbers, as safetensors calls them."""
PLAIN = "take the checkpoint from before it was quantised, in float32, float16 or bfloat16"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHARD = re.compile(r"[\w.-]+\.safetensors")
MOST_BLOCKS, MOST = 1_000, 1 << 24
"""Of a size in config.json: of blocks, each of which is built, and of anything else. No model is as
large, and neither takes long or overflows."""
LARGEST = float(torch.finfo(torch.float32).max)
"""Of a number in config.json: what models compute with has no larger one."""


def local(name: str) -> Path:
    """The path of a checkpoint, if it is a folder here."""
    return hub.expanded(name)


def is_folder(path: Path) -> bool:
    """Path's own raises for a name that is too long."""
    return os.path.isdir(path)


def find(name: str, *, weights: bool) -> Path:
    """The checkpoint's folder, downloaded where it is on the hub; its weights only if asked for.

    ConfigError where there is none, or the hub cannot be reached.
    """
    folder, whole = local(name), True
    if not is_folder(folder):
        if not REPOSITORY.fullmatch(name):
            raise ConfigError(
                f"model = {name!r}: there is no such folder, and no repository of the hub is "
                "called so"
            )
        files = (CONFIG, *PROCESSORS, *TOKENIZER, *BESIDE)
        folder, whole = _fetched(name, (*files, *((WEIGHTS, INDEX, SHARDS) if weights else ())))
    outside.check_folder(folder, f"model = {name!r}:")
    require(name, folder, CONFIG, whole=whole)
    if weights:
        for file in files_of_weights(name, folder):
            require(name, folder, file, whole=whole)
    return folder


SAVED = (
    "what save_pretrained of a ViT or a causal language model writes (other formats of weights are "
    "not read)"
)


def require(name: str, folder: Path, file: str, right: str = SAVED, *, whole: bool = True) -> None:
    """ConfigError where a file is missing, though the hub has been asked, or holds nothing.

    ``right``: what to take instead; not ``whole``: the hub could not be asked.
    """
    if not os.path.isfile(folder / file):
        if not whole:
            raise ConfigError(
                f"model = {name!r}: the hub cannot be reached, and what is cached of it has no "
                f"{file}: {hub.advice('model')}"
            )
        raise ConfigError(f"model = {name!r}: has no {file}{_instead(folder, file)}; take {right}")
    if (reason := hub.unfit(folder / file)) is not None:
        raise ConfigError(f"model = {name!r}: its {file} {reason}")


def _instead(folder: Path, file: str) -> str:
    """Words for what a folder has in place of a file of a model in safetensors."""
    if os.path.exists(folder / ADAPTER):
        return f", but {ADAPTER}: it is an adapter, to be merged into its model (merge_and_unload)"
    if file == WEIGHTS and (shards := sorted(folder.glob(SHARDS))):
        return f", but {shards[0].name}, and no {INDEX}, which says what is in it"
    for pattern in PICKLES:
        if found := sorted(folder.glob(pattern)):
            return f", but {found[0].name}, a pickle, which could run code and is not read"
    return ""


@functools.cache
def _fetched(repository: str, files: tuple[str, ...]) -> hub.Fetched:
    return hub.fetch("model", f"model = {repository!r}", repository, list(files))


def read(name: str, path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint. ConfigError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"model = {name!r}: {path.name} cannot be read: {in_words(error)}"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"model = {name!r}: {path.name} must be a JSON object")
    return found


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """The fields of config.json.

    ConfigError for weights that are no plain numbers, and for a number that is none or too large.
    """
    config = read(name, folder / CONFIG)
    for field, value in numbers(config):
        if not abs(value) <= LARGEST:
            raise ConfigError(
                f"model = {name!r}: {field} = {excerpt(value)} in its {CONFIG}; no number there "
                f"may be larger in size than {LARGEST:.2g}, or none"
            )
    if config.get("quantization_config") is not None:
        raise ConfigError(
            f"model = {name!r}: quantization_config in its {CONFIG}: its weights are no plain "
            f"numbers; {PLAIN}"
        )
    return config


def numbers(found: dict[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Numbers of a JSON object and of all within it, with their fields, such as "rope.factor"."""
    left: list[tuple[str, Any]] = list(found.items())
    while left:
        field, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{field}.{key}", each) for key, each in value.items()]
        elif isinstance(value, list):
            left += [(f"{field}[{place}]", each) for place, each in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield field, value


def size(name: str, field: str, found: Any, most: int = MOST) -> int:
    """A size in config.json, which may stand as a pair of equal ones."""
    if isinstance(found, list) and len(found) == 2 and found[0] == found[1]:
        found = found[0]
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= most:
        raise ConfigError(
            f"model = {name!r}: {field} = {excerpt(repr(found))} in its {CONFIG}; must be a whole "
            f"number, at least 1 and at most {most:,}"
        )
    return found


def files_of_weights(name: str, folder: Path) -> list[str]:
    """Names of the files with a checkpoint's weights: one, or those that its index names."""
    if os.path.exists(folder / WEIGHTS) or not os.path.exists(folder / INDEX):
        return [WEIGHTS]
    if (reason := hub.unfit(folder / INDEX)) is not None:
        raise ConfigError(f"model = {name!r}: its {INDEX} {reason}")
    return sorted(set(_index(name, folder).values()))


def _index(name: str, folder: Path) -> dict[str, str]:
    """The shard of each weight."""
    shards = read(name, folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(
            f"model = {name!r}: weight_map in its {INDEX} must have a file for each weight"
        )
    for weight, file in shards.items():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise ConfigError(
                f"model = {name!r}: {weight} is in {file!r} by its {INDEX}; must be the name of "
                "a safetensors file of the same folder"
            )
    return shards


def fingerprint(name: str, folder: Path) -> str:
    """SHA-256 of the file of weights; of shards, that of their names and theirs."""
    found = {}
    for file in files_of_weights(name, folder):
        with (folder / file).open("rb") as opened:
            found[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    if list(found) == [WEIGHTS]:
        return found[WEIGHTS]
    return hashlib.sha256("".join(f"{k}\0{v}\n" for k, v in found.items()).encode()).hexdigest()


class Weights:
    """Weights of a checkpoint by name; what is read of them is mapped privately from its files.

    ConfigError where a file is none of safetensors, or not what the index says.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self.files: dict[str, str] = {}
        """The file of each weight."""
        files = files_of_weights(name, folder)
        for file in files:
            with self._opened(file) as opened:
                self.files |= dict.fromkeys(opened.keys(), file)
        self._whole = WEIGHTS if files == [WEIGHTS] else INDEX
        if self._whole == INDEX:
            for weight, file in _index(name, folder).items():
                if self.files.get(weight) != file:
                    raise ConfigError(
                        f"model = {name!r}: its {file} has no {weight}, which is there by its "
                        f"{INDEX}"
                    )

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        try:
            with safe_open(self._folder / file, framework="pt") as opened:
                yield opened
        except SafetensorError as error:
            raise ConfigError(
                f"model = {self._name!r}: {file} is no safetensors file: {error}"
            ) from error

    def dtype(self, weight: str) -> torch.dtype:
        """ConfigError where it has none of plain numbers."""
        with self._opened(self._file(weight)) as opened:
            return self._dtype(opened, weight)

    def _file(self, weight: str) -> str:
        if weight not in self.files:
            raise ConfigError(f"model = {self._name!r}: its {self._whole} has no {weight}")
        return self.files[weight]

    def _dtype(self, opened: Any, weight: str) -> torch.dtype:
        found = opened.get_slice(weight).get_dtype()
        if found not in DTYPES:
            raise ConfigError(f"model = {self._name!r}: {weight} is {found}; {PLAIN}")
        return DTYPES[found]

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """ConfigError where one is missing, has another shape, or is no plain numbers.

        Of the layers that are read no weight is left over, as scales of a quantised one would be.
        """
        layers = {each.rpartition(".")[0] for each in shapes if each.endswith(".weight")}
        for each in sorted(self.files.keys() - shapes.keys()):
            if any(each.startswith(f"{layer}.") for layer in layers):
                raise ConfigError(
                    f"model = {self._name!r}: its {self.files[each]} has {each}, which plain "
                    f"weights do not; {PLAIN}"
                )
        for _ in self._each(shapes):
            pass

    def _each(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
        """Each weight of the right shape, and its open file, one file after another."""
        for file in dict.fromkeys(self._file(weight) for weight in shapes):
            with self._opened(file) as opened:
                for weight, shape in shapes.items():
                    if self.files[weight] != file:
                        continue
                    self._dtype(opened, weight)
                    found = tuple(opened.get_slice(weight).get_shape())
                    if found != tuple(shape):
                        raise ConfigError(
                            f"model = {self._name!r}: {weight} is {found}, and by its "
                            f"{CONFIG} {tuple(shape)}"
                        )
                    yield weight, opened

    def read(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The weights of these names and shapes, in the files' dtypes.

        ConfigError as of `check`, and where a value is not finite, or no float32 is as large.
        """
        self.check(shapes)
        found = {weight: opened.get_tensor(weight) for weight, opened in self._each(shapes)}
        for weight, values in found.items():
            # Two numbers a weight: anything of its own size would be memory beside the mapped file.
            if not all(bool(end.float().isfinite()) for end in values.aminmax()):
                raise ConfigError(
                    f"model = {self._name!r}: its {self.files[weight]} has {weight}, which holds "
                    "values that are not finite; take a checkpoint from before it diverged"
                )
        return found
