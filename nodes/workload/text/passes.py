"""Whether any sequence passes a language model of a config.json: its numbers, angles and shapes.

Without weights, so that what is wrong with a configuration is said before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nodes.workload.saved import CONFIG, MOST
from nodes.workload.text.layouts import LAYOUTS
from nodes.workload.text.stages import CausalModel
from testbed.config_error import ConfigError, excerpt

TOKENS = 4
"""Of the sequence whose shapes are worked out."""
ROPE = ("rope_parameters", "rope_scaling")
"""Fields with what the angles of places are made of, in newer and older files."""
WHOLE = {
    "head_dim": 1,
    "intermediate_size": 1,
    "n_inner": 1,
    "num_key_value_heads": 1,
    "original_max_position_embeddings": 2,
    "sliding_window": 1,
}
"""Whole numbers, and the least that each may be."""
SHARES = (
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "partial_rotary_factor",
    "rms_norm_eps",
)
"""Numbers above 0 and at most 1."""
ABOVE = {
    "attention_factor": 0,
    "attn_logit_softcapping": 0,
    "beta_fast": 0,
    "beta_slow": 0,
    "clip_qkv": 0,
    "factor": 0,
    "final_logit_softcapping": 0,
    "high_freq_factor": 0,
    "low_freq_factor": 0,
    "query_pre_attn_scalar": 0,
    "rope_theta": 1,
}
"""Numbers, and what each is above."""
SCALES = ("long_factor", "short_factor")
"""Lists of numbers above 0."""
NEEDED = (
    *("high_freq_factor", "low_freq_factor", "original_max_position_embeddings", "rope_theta"),
    *SCALES,
)
"""Of angles: may be left out, and are not null."""


def check_fields(name: str, config: Mapping[str, Any]) -> None:
    """ConfigError for a number that no model computes with; what is absent is not asked.

    Sizes that every family has are asked already.
    """
    for field in ROPE:
        found = config.get(field)
        if found is not None and not isinstance(found, dict):
            raise _wrong(name, field, found, "an object, or null")
        for key, value in (found or {}).items():
            if isinstance(value, dict) and key not in (*WHOLE, *SHARES, *ABOVE, *SCALES):
                # Of one kind of layers.
                _check_angles_fields(name, f"{field}.{key}.", value)
        _check_angles_fields(name, f"{field}.", found or {})
    _check(name, "", config)
    if not isinstance(kinds := config.get("layer_types"), list | None):
        raise _wrong(name, "layer_types", kinds, "a list, or null")
    if later := config.get("use_bidirectional_attention"):
        right = "false or null: a token is to be told from those before it alone"
        raise _wrong(name, "use_bidirectional_attention", later, right)
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        right = f"a divisor of num_attention_heads = {heads}"
        raise _wrong(name, "num_key_value_heads", shared, right)
    padding, vocabulary = config.get("pad_token_id"), config["vocab_size"]
    if isinstance(padding, int) and padding >= vocabulary:
        right = f"null, or below vocab_size = {vocabulary}"
        raise _wrong(name, "pad_token_id", padding, right)


def _check_angles_fields(name: str, path: str, fields: Mapping[str, Any]) -> None:
    _check(name, path, fields)
    for field in NEEDED:
        if field in fields and fields[field] is None:
            raise _wrong(name, f"{path}{field}", None, "numbers, or left out")
    kind = fields.get("rope_type", fields.get("type", "default"))
    if not isinstance(kind, str):
        raise _wrong(name, f"{path}rope_type", kind, "a name")
    if kind in ("dynamic", "linear", "llama3") and "factor" in fields and fields["factor"] is None:
        raise _wrong(name, f"{path}factor", None, f"a number with rope_type {kind}")


def _check(name: str, path: str, fields: Mapping[str, Any]) -> None:
    for field, value in fields.items():
        if value is None:
            continue
        if (least := WHOLE.get(field)) is not None:
            right = f"a whole number, at least {least} and at most {MOST:,}"
            fits = _number(value) and isinstance(value, int) and least <= value <= MOST
        elif field in SHARES:
            right, fits = "a number above 0, at most 1", _number(value) and 0 < value <= 1
        elif (bound := ABOVE.get(field)) is not None:
            right, fits = f"a number above {bound}", _number(value) and value > bound
        elif field in SCALES:
            right = "a list of numbers above 0"
            fits = isinstance(value, list) and all(_number(each) and each > 0 for each in value)
        else:
            continue
        if not fits:
            raise _wrong(name, f"{path}{field}", value, right)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, field: str, value: object, right: str) -> ConfigError:
    return ConfigError(
        f"model = {name!r}: {field} = {excerpt(repr(value))} in its {CONFIG}; must be {right}"
    )


def check(name: str, config: Mapping[str, Any], theirs: Any, model: CausalModel) -> None:
    """ConfigError where a sequence does not pass the model, of which both have no values."""
    _check_angles(name, config, theirs, model)
    try:
        with torch.inference_mode():
            model(torch.zeros(1, min(TOKENS, model.spec.context), dtype=torch.int64, device="meta"))
    except Exception as error:  # Each operation has checks of its own.
        raise ConfigError(
            f"model = {name!r}: by the sizes in its {CONFIG} no sequence passes it: "
            f"{excerpt(error)}"
        ) from error


def _check_angles(name: str, config: Mapping[str, Any], theirs: Any, model: CausalModel) -> None:
    """ConfigError where those of some place are not finite, or more than a head has features."""
    layout = LAYOUTS[model.spec.model_type]
    if layout.rotary is None:
        return
    own, last = theirs.config, model.spec.context - 1
    said = ", ".join(
        f"{field} = {excerpt(config[field])}"
        for field in (*ROPE, "rope_theta", "partial_rotary_factor", "head_dim")
        if config.get(field) is not None
    )
    where = f"model = {name!r}: {said or 'rope_parameters = None'} in its {CONFIG}"
    kinds = sorted(set(own.layer_types)) if layout.by_kind else [None]
    features = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    try:
        with torch.device("cpu"), torch.inference_mode():
            made = type(theirs.base_model.get_submodule(layout.rotary))(own)
            found = [
                each
                for kind in kinds
                for places in ([[0]], [[0, last]])
                for each in made(
                    torch.zeros(1), torch.tensor(places), **({"layer_type": kind} if kind else {})
                )
            ]
    except Exception as error:  # Each type has checks of its own.
        raise ConfigError(f"{where}: make no angles of places: {excerpt(error)}") from error
    if not all(bool(each.isfinite().all()) for each in found):
        raise ConfigError(
            f"{where}: the angles of places up to {last} are not finite; take numbers that they "
            "are finite for"
        )
    if (most := max(each.shape[-1] for each in found)) > features:
        raise ConfigError(
            f"{where}: places turn {most} features, and a head has {features}; an even number of "
            "features has to be turned"
        )
