"""Options that would change nothing beside the others: refused, not taken without a word."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest

import methods
from methods.shared.beside import Beside
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

RULES = [
    (name, option, rule)
    for name in methods.names()
    for option, hint in get_type_hints(methods.load(name).Config, include_extras=True).items()
    for rule in getattr(hint, "__metadata__", ())
    if isinstance(rule, Beside)
]


@pytest.mark.parametrize(("name", "option", "rule"), RULES, ids=str)
def test_a_rule_names_values_that_its_other_option_takes(
    name: str, option: str, rule: Beside
) -> None:
    config = methods.load(name).Config
    defaults = {each.name: each.default for each in msgspec.structs.fields(config)}
    if rule.other not in defaults:
        assert (option, rule.other) == ("local_epochs", "local_steps")
        return
    hint = get_type_hints(config)[rule.other]
    known = get_args(hint) if get_origin(hint) is Literal else rule.values
    assert option != rule.other and set(rule.values) <= set(known)
    assert any(rule.allows(each) for each in (*known, *rule.values, defaults[rule.other], object()))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("fedpeft", {"variant": "head", "rank": 4}, "variant = 'lora' or 'ffalora' alone"),
    ("fedpeft", {"variant": "bias", "lora_alpha": 4.0}, "variant = 'lora' or 'ffalora' alone"),
    ("fedpeft", {"adapter_width": 5}, "variant = 'adapter' alone, and variant = 'lora'"),
    ("fedpeft", {"prompt_length": 4}, "variant = 'prompt' alone, and variant = 'lora'"),
    ("fedavg", {"dp_clip": 2.0}, "dp = 'sample' or 'client' alone, and dp = 'none'"),
    ("fedprox", {"dp_delta": 1e-4}, "dp = 'sample' or 'client' alone, and dp = 'none'"),
    ("fedavg", {"local_steps": 5, "local_epochs": 3}, "without local_steps alone, and local_st"),
    ("diloco", {"local_epochs": 3}, "without local_steps alone, and local_steps = 20"),
    ("hetlora", {"prune_lambda": 0.1}, "self_prune = true alone, and self_prune = false"),
    ("hetlora", {"prune_gamma": 0.5}, "self_prune = true alone, and self_prune = false"),
    ("fedadam", {"rule": "adagrad", "beta2": 0.9}, "does not go with rule = 'adagrad'"),
    ("fedkseed", {"clip": 5.0}, "sampling = 'importance' alone"),
    ("fedkd", {"rank": 4, "energy_end": 0.99}, "without rank alone, and rank = 4"),
    ("kdfft", {"sharpen_temperature": 0.5}, "sharpen = true alone"),
    ("kdfft", {"student": False, "student_epochs": 2}, "student = true alone"),
    ("splitfed", {"order": "arrival"}, "variant = 'v2' alone"),
    ("fedlite", {"order": "arrival"}, "variant = 'v2' alone"),
    ("fedcompress", {"adaptive": False, "representations": "gram"}, "adaptive = true alone"),
    ("sfprompt", {"local_epochs": 0, "local_learning_rate": 0.1}, "go with local_epochs = 0"),
]


@pytest.mark.parametrize(("method", "options", "words"), REFUSED, ids=str)
def test_an_option_in_vain_is_refused(method: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        FineTuning(RunConfig(method=method, options=options), 3)
    (name, value) = list(options.items())[-1]
    shown = repr(value)
    assert str(caught.value).startswith(f"options of method {method}: {name} = {shown} ")
    assert "it would change nothing; leave it out" in str(caught.value)


TEXT = {"model": "llama-docs", "dataset": "docs"}


@pytest.mark.thorough
def test_on_text_the_rules_are_of_what_is_given() -> None:
    """FedSP's rate of an alignment without steps; and defaults of text go with anything."""
    fedsp = RunConfig(
        method="fedsp", options={"align_steps": 0, "align_learning_rate": 0.1}, **TEXT
    )
    with pytest.raises(ConfigError, match=r"align_learning_rate = .* not go with align_steps"):
        FineTuning(fedsp, 3)
    pool = RunConfig(method="sfprompt", options={"pool": "mean"}, **TEXT)
    with pytest.raises(ConfigError, match="pool = 'mean': a language model has no class token"):
        FineTuning(pool, 3)
    FineTuning(RunConfig(method="fedcompress", options={"adaptive": False}, **TEXT), 3)


@pytest.mark.parametrize("method", ["fedpeft", "kdfft", "diloco", "hetlora", "fedkd", "splitfed"])
def test_a_record_reads_back_with_all_that_its_run_had(method: str) -> None:
    options = FineTuning(RunConfig(method=method), 3).options
    again = FineTuning(RunConfig(method=method, options=options), 3)  # type: ignore[arg-type]
    assert again.options == options


def test_a_rank_that_no_matrix_of_the_student_has_a_use_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank = 64: no matrix of the student .* at most 63$"):
        FineTuning(RunConfig(method="fedkd", options={"rank": 64}), 3)
    FineTuning(RunConfig(method="fedkd", options={"rank": 63}), 3)
