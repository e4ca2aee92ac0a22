"""Shell completion: the names that options and arguments take. Imports no torch.

click asks for values; the classes here give them to the shell so that what already stands in the
word stays: an option before "=", and in bash what is before the last ":" or "=" of a mix.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_type_hints

from click import shell_completion
from click.shell_completion import CompletionItem

RESULTS = Path("results")
PAPER_MODELS = ("llama-2-7b", "mistral-7b", "vit-b16", "vit-l16")
"""Those of nodes.workload.models without weights, which to import would take seconds."""
_RUN_DEPTHS = ("*/events.jsonl", "*/*/events.jsonl", "*/*/*/events.jsonl")
_WORD_BREAKS = ("=", ":")


def offer(kind: str, incomplete: str) -> list[CompletionItem[str]]:
    """Values that begin with ``incomplete``; a path's completion where there are none."""
    *kept, last = incomplete.rpartition(",") if kind in _LISTS else ("", "", incomplete)
    before = "".join(kept)
    found = [before + name for name in _NAMES[kind]() if name.startswith(last)]
    if not found and kind in _PATHS:
        return [CompletionItem(incomplete, type=_PATHS[kind])]
    return [CompletionItem(value) for value in found]


def _profiles() -> Iterable[str]:
    from testbed.network import profiles

    return profiles.names()


def _methods() -> Iterable[str]:
    import methods

    return methods.names()


def _stages() -> Iterable[str]:
    from methods import payload

    return payload.names()


def _datasets() -> Iterable[str]:
    from nodes.workload import data

    return data.names()


def _models() -> Iterable[str]:
    weights = Path(__file__).parents[2] / "nodes" / "workload" / "weights"
    return sorted([*(path.stem for path in weights.glob("*.safetensors")), *PAPER_MODELS])


def _device_classes() -> Iterable[str]:
    from nodes.device_classes import CLASSES

    return CLASSES


def _presets() -> Iterable[str]:
    from experiments import plan

    return plan.presets()


def _congestion() -> Iterable[str]:
    from testbed.transport import congestion

    return congestion.available()


def _one_of(field: str) -> Callable[[], Iterable[str]]:
    """The values of a run's field that has just these."""

    def values() -> Iterable[str]:
        from testbed.run.config import RunConfig, offered

        return offered(get_type_hints(RunConfig)[field])

    return values


def _runs() -> Iterable[str]:
    """Folders of runs, the newest first."""
    found = [path.parent for depth in _RUN_DEPTHS for path in RESULTS.glob(depth)]
    return [path.as_posix() for path in sorted(found, key=lambda path: path.name, reverse=True)]


def _runs_and_benches() -> Iterable[str]:
    return [*sorted(path.parent.as_posix() for path in RESULTS.glob("*/bench.json")), *_runs()]


def _networks() -> Iterable[str]:
    from testbed.library import places

    return [folder.name for folder in places.up()]


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "profile": _profiles,
    "method": _methods,
    "stage": _stages,
    "dataset": _datasets,
    "model": _models,
    "device class": _device_classes,
    "accelerator": lambda: ("cpu", "cuda"),
    "preset": _presets,
    "congestion": _congestion,
    "links": _one_of("links"),
    "compute": _one_of("compute"),
    "partition": _one_of("partition"),
    "evaluation": _one_of("eval_on"),
    "network": _networks,
    "file": tuple,
    "folder": tuple,
    "run": _runs,
    "run or bench": _runs_and_benches,
}
_LISTS = ("profile", "device class", "accelerator")
"""Of these an option may take several, after commas."""
_PATHS = dict.fromkeys(("profile", "preset", "file"), "file") | dict.fromkeys(
    ("model", "folder", "run", "run or bench"), "dir"
)


class _WholeWord(shell_completion.ShellComplete):
    """A shell that replaces all of ``--profile=4``: the option goes back with the value."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions(args, incomplete)
        if not equals or not option.startswith("-"):
            return found
        return [_changed(item, f"{option}={item.value}") for item in found]


class Zsh(_WholeWord, shell_completion.ZshComplete):
    pass


class Fish(_WholeWord, shell_completion.FishComplete):
    pass


class Bash(shell_completion.BashComplete):
    """Bash breaks words at "=" and ":", and replaces the last piece alone."""

    def get_completion_args(self) -> tuple[list[str], str]:
        pieces = shell_completion.split_arg_string(os.environ["COMP_WORDS"])
        last = int(os.environ["COMP_CWORD"])
        pieces = pieces[: last + 1] + [""] * (last + 1 - len(pieces))
        words: list[str] = []
        glue = False
        for piece in pieces:
            breaks = piece in _WORD_BREAKS
            if words and (glue or breaks):
                words[-1] += piece
            else:
                words.append(piece)
            glue = breaks
        self._piece = "" if pieces[-1] in _WORD_BREAKS else pieces[-1]
        return words[1:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        found = super().get_completions(args, incomplete)
        option, equals, value = incomplete.partition("=")
        if not equals or not option.startswith("-"):
            value = incomplete
        if len(self._piece) > len(value):  # This bash does not break at "=".
            return [_changed(item, f"{option}={item.value}") for item in found]
        kept = len(value) - len(self._piece)
        return [_changed(item, item.value[kept:]) for item in found]


def _changed(item: CompletionItem[Any], value: str) -> CompletionItem[Any]:
    return CompletionItem(value if item.type == "plain" else item.value, item.type, item.help)


def register() -> None:
    """Have click complete for these shells in this way."""
    for shell in (Bash, Zsh, Fish):
        shell_completion.add_completion_class(shell)
