"""Defaults on text: the plain command works with each method, and what is given comes first."""

from collections.abc import Iterator
from typing import Any

import pytest
from copied import copied
from in_process import play

import methods
from experiments import assumptions
from methods.shared.objective import scores
from nodes import products
from nodes.program import FineTuning
from nodes.workload import models
from nodes.workload.text import corpora
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

TEXT = {"model": "llama-docs", "dataset": "docs"}
IMAGES_ALONE = ("feddm", "fedptr")
METHODS = methods.names()


@pytest.fixture(scope="module", autouse=True)
def texts_are_encoded_once() -> Iterator[None]:
    found = corpora.docs(models.encoder("llama-docs"), 128, validation=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "docs", lambda *_, **__: found)
        yield


def options(method: str, dataset: str = "docs", **given: object) -> dict[str, object]:
    """A run's options, as its record has them."""
    model = "llama-docs" if dataset in ("docs", "instructions") else "vit-glyphs"
    config = RunConfig(method=method, model=model, dataset=dataset, options=given)  # type: ignore[arg-type]
    return FineTuning(config, 20).options


@pytest.mark.thorough
@pytest.mark.parametrize("dataset", ["docs", "instructions"])
@pytest.mark.parametrize("method", METHODS)
def test_the_plain_command_is_taken_but_where_a_method_is_of_images(
    method: str, dataset: str
) -> None:
    if method in IMAGES_ALONE:
        with pytest.raises(ConfigError, match="learns images by their gradient"):
            options(method, dataset)
    else:
        assert options(method, dataset)


@pytest.mark.parametrize("method", METHODS)
def test_a_default_on_text_is_an_option_that_can_be_given(method: str) -> None:
    if method in IMAGES_ALONE:
        return
    own = methods.load(method).on_text({})
    found, images = options(method), options(method, "digits") if method != "fedsp" else {}
    assert all(found[name] == value for name, value in own.items())
    assert not images or {name for name in images if images[name] != found.get(name)} <= set(own)
    for name, value in own.items():
        if isinstance(value, float):
            given = value / 2
            assert options(method, **{name: given})[name] == given


def test_images_keep_their_defaults() -> None:
    assert options("fedcompress", "digits")["public_source"] == "glyphs"
    assert options("fedcompress")["public_source"] == "held-out"


def test_what_a_row_assumes_goes_by_the_defaults_of_its_data() -> None:
    config = RunConfig(**TEXT, method="fedcompress")  # type: ignore[arg-type]
    assert "200 public sequences, of the training set" in assumptions.of(config)


def test_an_option_that_is_none_is_refused_as_on_images() -> None:
    with pytest.raises(ConfigError, match="unknown field 'variants'"):
        options("fedpeft", variants="lora")
    with pytest.raises(ConfigError, match="variant = 3"):
        options("fedpeft", variant=3)
    with pytest.raises(ConfigError, match="optimizer = 'adam'"):
        options("fedpeft", optimizer="adam")


def perplexities(
    method: str, rounds: int, texts: int = 16, **given: Any
) -> tuple[float, float, float]:
    """Of the model as it comes, and of a method's before and after its rounds.

    Those are of two clients with so many short texts each; where no model is of all, it is the mean
    of the clients' own.
    """
    config = RunConfig(
        **TEXT,
        method=method,
        options=given,
        sequence_length=32,
        train_samples=2 * texts + given.get("public_samples", 0),
        dilation=1.0,
    )
    program = FineTuning(config, 2)
    program.prepare()
    node, options, shards = program._method, program._options, map(program._shard, range(3))
    with products.by_onednn():
        server = node.Server(options, copied(program._model), next(shards), 0)
        clients = {
            f"client-{shard.client}": node.Client(
                options, copied(program._model), shard, shard.client
            )
            for shard in shards
        }
        assert program._test is not None
        some = [each[::8] for each in program._test]

        def perplexity() -> float:
            if found := server.evaluate(*some):
                return found["perplexity"]
            own = [client.evaluate(*some)["perplexity"] for client in clients.values()]
            return sum(own) / len(own)

        plain, before = scores(program._model, *some)["perplexity"], perplexity()
        play(server, clients, dict.fromkeys(clients, texts), rounds=rounds)
        return plain, before, perplexity()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "texts", "images", "few"),
    [
        ("sfprompt", 16, {"local_epochs": 2, "learning_rate": 2e-2}, {}),
        # What a mask of so few weights has forgotten, epochs bring back. By fewer texts, what is
        # learnt of them is as much as chance.
        ("salientgrads", 96, {"density": 0.3, "local_epochs": 1}, {"local_epochs": 2}),
        (
            *("fedpruning", 16, {"layers": "adaptive", "pattern": "all", "sparsity": 0.5}),
            {"local_epochs": 1},
        ),
    ],
)
def test_the_defaults_teach_where_those_of_images_make_it_forget(
    method: str, texts: int, images: dict[str, Any], few: dict[str, Any]
) -> None:
    _, before, after = perplexities(method, 1, texts, **few)
    assert after < before
    _, before, after = perplexities(method, 1, texts, **(few | images))
    assert after > before


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "rounds", "images", "few"),
    [
        ("fedkd", 1, {"student_blocks": 2}, {}),
        ("fedmd", 1, {"depths": "2,3,4"}, {"public_samples": 32, "public_batch": 16}),
        ("dispfl", 1, {"first_masks": "random", "density": 0.5}, {}),
    ],
)
def test_models_of_nodes_own_begin_with_what_the_shipped_one_knows(
    method: str, rounds: int, images: dict[str, Any], few: dict[str, Any]
) -> None:
    plain, before, after = perplexities(method, rounds, **few)
    assert before < 1.1 * plain and after < before
    _, before, _ = perplexities(method, 0, **few, **images)
    assert before > 1.5 * plain
