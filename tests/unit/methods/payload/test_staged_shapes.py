"""Stages that would change nothing of what a run sends: known and refused before it starts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_staged_runs import OPTIONS, Run, plain
from made_stages import byte_count
from made_text import TEXT_ALONE, language_model

import methods
from methods.payload import load
from methods.payload.chain import Chain
from methods.payload.powersgd import highest
from methods.shared.local_training import learnt
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig
from testbed.run.config import load as load_config

SMALL_BATCHES = {name: {"batch_size": 4} for name in ("split", "splitfed", "fedlite", "sfprompt")}
"""As clients have more samples than that, all batches but the last are as large as they may be."""
MORE = [
    *((name, options | {"labels": "private"}) for name, options in SMALL_BATCHES.items()),
    *[("fedlite", {"batch_size": 4, "quantise_down": True}), ("kdfft", {"top_k": 2})],
]
CASES = [
    (name, way, options)
    for name, options in [*((each, SMALL_BATCHES.get(each, {})) for each in OPTIONS), *MORE]
    if name != "sfprompt" or "labels" not in options
    for way in methods.load(name).stageable
]


def outline(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape; vectors are alike, since masks decide how long they are."""
    return tuple(shape) if len(shape) > 1 else (0,)


def told(name: str, way: str, options: Any) -> list[Sequence[int]]:
    method = methods.load(name)
    model = method.adapt(options, language_model() if name in TEXT_ALONE else plain())
    if method.staged_shapes is None:
        return [each.shape for each in learnt(model).values() if each.is_floating_point()]
    return list(method.staged_shapes(options, model, way))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "way", "options"), CASES, ids=str)
def test_a_method_tells_the_shapes_that_its_stages_are_given(
    name: str, way: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    encode = Chain.encode

    def watched(self: Chain, tensors: Any, *args: Any) -> Any:
        seen.extend(tuple(t.shape) for t in tensors.values() if t.is_floating_point())
        return encode(self, tensors, *args)

    monkeypatch.setattr(Chain, "encode", watched)
    run = Run(name, *((["bf16"], []) if way == "up" else ([], ["bf16"])), clients=2, **options)
    run.play(2)
    shapes = told(name, way, run.options)
    assert seen and {*map(outline, shapes)} <= {*map(outline, seen)}
    assert max(map(highest, shapes)) == max(map(highest, seen))


def test_the_highest_rank_is_the_last_that_makes_a_matrix_shorter() -> None:
    for shape in [(16, 16), (16, 17), (96, 192), (10, 96), (3, 8), (2, 3, 40), (1, 500), (7,), ()]:
        by_bytes = [
            rank
            for rank in range(1, 100)
            if byte_count(load(f"powersgd:rank={rank}"), shape) < 4 * math.prod(shape)
        ]
        assert highest(shape) == max(by_bytes, default=0)


def config(method: str, stage: str | tuple[str, ...], field: str, **more: Any) -> RunConfig:
    texts = (stage,) if isinstance(stage, str) else stage
    return RunConfig(method=method, **{field: texts}, **more)


HUGE = "powersgd:rank=100000"
SENDS = "of what method {} sends {}: stage {}"
REFUSED = [
    ("fedpeft", HUGE, "stage", "rank = 100000: no tensor is 2 .*; take at most 4$"),
    ("fedavg", HUGE, "stage", "rank = 100000: .* take at most 31$"),
    ("fedavg", HUGE, "stage_down", "rank = 100000: .* take at most 31$"),
    ("fedavg", "powersgd:rank=32", "stage", "rank = 32: .* take at most 31$"),
    ("flora", "int8:per=row,feedback=false", "stage", None),
    ("kdfft", "powersgd:rank=5", "stage", "take at most 4$"),
    ("kdfft", "powersgd:rank=5", "stage_down", "take at most 4$"),
    ("split", "powersgd:rank=8", "stage_down", "take at most 7$"),
    ("split", "powersgd:rank=8", "stage", None),
    ("salientgrads", "powersgd:rank=1", "stage", "none would be by any rank; leave the stage out$"),
    ("salientgrads", "int8:per=row", "stage", "per = 'row': no tensor has more than one; leave"),
    ("fedavg", ("topk:k=0.1", "int8:per=row"), "stage", "per = 'row': no tensor has more than one"),
    ("fedavg", ("powersgd", "int8:per=row"), "stage", "per = 'row': no tensor has more than one"),
    ("fedavg", "powersgd:rank=31", "stage", None),
    ("fedavg", "int8:per=row", "stage", None),
    ("fedpeft", "powersgd", "stage", None),
    ("kdfft", "powersgd", "stage", None),
]


@pytest.mark.parametrize(("method", "stage", "field", "words"), REFUSED)
def test_a_stage_that_shortens_nothing_is_refused(
    method: str, stage: str | tuple[str, ...], field: str, words: str | None
) -> None:
    if words is None:
        FineTuning(config(method, stage, field), 3)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        FineTuning(config(method, stage, field), 3)
    way = "up" if field == "stage" else "down"
    texts = [stage] if isinstance(stage, str) else list(stage)
    assert str(caught.value).startswith(f"{field} = {texts}: of what method {method} sends {way}: ")


@pytest.mark.thorough
def test_the_language_models_adapters_are_shorter_by_a_rank_of_at_most_three() -> None:
    text = {"model": "llama-docs", "dataset": "docs"}
    with pytest.raises(ConfigError, match=r"rank = 4: .* take at most 3$"):
        FineTuning(config("fedpeft", "powersgd", "stage", **text), 3)
    FineTuning(config("fedpeft", "powersgd:rank=3", "stage", **text), 3)


NOT_REMEMBERED = "feedback and decay are for what clients send"
OTHER_IMAGES = "predictions are on other images each round"


@pytest.mark.parametrize(
    ("method", "stage", "field", "words"),
    [
        ("fedavg", "topk:feedback=true", "stage_down", NOT_REMEMBERED),
        ("fedavg", "sign:decay=0.5", "stage_down", NOT_REMEMBERED),
        ("kdfft", "topk:feedback=true", "stage", OTHER_IMAGES),
        ("fedmd", "sign:decay=0.5", "stage", OTHER_IMAGES),
        ("fedavg", "sign", "stage_down", None),
        ("kdfft", "sign", "stage", None),
        ("fedavg", "topk:feedback=true", "stage", None),
    ],
)
def test_feedback_is_refused_where_nothing_is_remembered(
    method: str, stage: str, field: str, words: str | None
) -> None:
    if words is None:
        FineTuning(config(method, stage, field), 3)
        return
    with pytest.raises(ConfigError, match=words):
        FineTuning(config(method, stage, field), 3)


DP = {"dp": "client", "dp_noise": 1.0}
MODELLED = {"compute": "modelled"}
BY_VALUES = "how many bytes that makes depends on values, .* take stages of a fixed length"


@pytest.mark.parametrize(
    ("method", "stage", "field", "more", "words"),
    [
        *(
            ("fedavg", text, field, MODELLED, BY_VALUES)
            for text in ("deflate", "zstd", "stc")
            for field in ("stage", "stage_down")
        ),
        ("fedavg", ("int8", "deflate"), "stage", MODELLED, BY_VALUES),
        ("fedavg", ("topk", "int8"), "stage", MODELLED, None),
        ("fedavg", "int8", "stage", {"transport": "gloo"}, "an all-reduce adds up what it carries"),
        ("fedavg", "int8", "stage_down", {"transport": "gloo"}, "an all-reduce adds up what it"),
        ("dispfl", "int8", "stage", {}, "says of nothing that it sends up what .*fedavg.* do$"),
        ("fedkseed", "int8", "stage_down", {}, "says of nothing that it sends down .*fedavg.* do$"),
        ("fedbuff", "bf16", "stage_down", {}, "says of nothing that it sends down what"),
        ("fedavg", "int8", "stage", {"options": DP}, "take dp=sample, or stages without loss"),
        ("fedavg", "int8", "stage_down", {"options": DP}, "take dp=sample, or stages without loss"),
        ("fedavg", "deflate", "stage", {"options": DP}, None),
    ],
)
def test_what_cannot_go_with_a_run_is_refused(
    method: str,
    stage: str | tuple[str, ...],
    field: str,
    more: dict[str, Any],
    words: str | None,
) -> None:
    if words is None:
        FineTuning(config(method, stage, field, **more), 3)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        FineTuning(config(method, stage, field, **more), 3)
    texts = [stage] if isinstance(stage, str) else list(stage)
    assert str(caught.value).startswith(f"{field} = {texts}: ")


def test_stages_of_a_file_are_in_its_order_and_flags_take_their_place(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('stage = ["topk:k=0.1", "int8", "deflate"]\nstage_down = ["bf16"]\n')
    found = load_config(path, {})
    assert found.stage == ("topk:k=0.1", "int8", "deflate") and found.stage_down == ("bf16",)
    assert Chain(found.stage).names == ["topk", "int8", "deflate"]
    found = load_config(path, {"stage": ("int8",)})
    assert found.stage == ("int8",) and found.stage_down == ("bf16",)
