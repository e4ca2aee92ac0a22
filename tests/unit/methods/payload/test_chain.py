"""Chains of stages, from a message's tensors to what is sent and back."""

import pytest
import torch

from methods.payload import names
from methods.payload.chain import Chain, is_coded
from testbed.config_error import ConfigError

SHAPES = {"weight": (12, 7), "bias": (7,), "one": (), "empty": (0, 3), "wide": (40, 50)}


def tensors(seed=0, dtype=torch.float32, device="cpu"):
    draw = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}
    return {name: each.to(device) for name, each in found.items()} | {"steps": torch.tensor([3])}


def there_and_back(chain, given, base, memory=None, seed=5):
    coded, after = chain.encode(given, base, seed, memory)
    return coded, chain.decode(coded, given, base, seed), after


CHAINS = [
    ("int8",),
    ("topk:k=0.1",),
    ("topk:k=0.1", "int8"),
    ("topk:k=0.01", "int8:per=row", "deflate"),
    ("deflate",),
    ("int8", "deflate:level=1"),
    ("powersgd:rank=1", "int8", "zstd"),
    ("randomk", "cossgd:bits=2"),
    ("stc:k=0.1", "zstd"),
]


LEAVE_OUT = {"powersgd", "randomk", "topk"}
FEWER_BITS = {"bf16", "cossgd", "fp16", "int8", "qsgd", "sign"}
PACKERS = {"deflate", "zstd"}
MAY_FOLLOW: dict[str, set[str]] = {
    **dict.fromkeys(LEAVE_OUT, FEWER_BITS | PACKERS),
    **dict.fromkeys(FEWER_BITS | {"stc"}, PACKERS),
    **{name: set() for name in PACKERS},
}
"""Each stage and those that may stand after it."""


@pytest.mark.parametrize("before", names())
@pytest.mark.parametrize("after", names())
def test_any_two_stages_go_together_or_are_refused(before, after):
    assert MAY_FOLLOW.keys() == set(names()), "each stage has a line in MAY_FOLLOW"
    texts = ["powersgd:rank=1" if name == "powersgd" else name for name in (before, after)]
    if after not in MAY_FOLLOW[before]:
        right = "the other way round" if before in MAY_FOLLOW[after] else "take one of them"
        with pytest.raises(ConfigError, match=f"stage = '{after}' after '{before}': .*{right}"):
            Chain(texts)
        return
    given, chain = tensors(1), Chain(texts)
    coded, found, _ = there_and_back(chain, given, tensors(2))
    assert all(each.isfinite().all() for each in found.values())
    sizes = [each.bytes for each in chain.sizes(coded, given)]
    assert sizes[2] < sizes[1] or after in PACKERS
    if not chain.by_values:
        alone = there_and_back(Chain(texts[:1]), given, tensors(2))[0]
        assert sizes[1] == sum(each.nbytes for each in alone.values())


@pytest.mark.parametrize("texts", CHAINS, ids=" ".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_arrives_is_like_what_was_sent(texts, dtype):
    given, base = tensors(1, dtype), tensors(2, dtype)
    coded, found, _ = there_and_back(Chain(texts), given, base)
    assert is_coded(coded) and not is_coded(given)
    assert found.keys() == given.keys()
    for name, each in given.items():
        assert (found[name].shape, found[name].dtype) == (each.shape, each.dtype)
    assert torch.equal(found["steps"], given["steps"])


def test_without_loss_every_bit_arrives():
    given = tensors(1)
    _, found, _ = there_and_back(Chain(["deflate"]), given, tensors(2))
    assert all(torch.equal(found[name], each) for name, each in given.items())


def test_a_lossy_stage_works_on_the_difference_from_the_base():
    base = tensors(2)
    given = {name: each + 1e-3 if each.is_floating_point() else each for name, each in base.items()}
    _, found, _ = there_and_back(Chain(["int8"]), given, base)
    for name in SHAPES:
        assert torch.allclose(found[name], given[name], atol=1e-5)
    _, found, _ = there_and_back(Chain(["int8"]), given, {})
    assert not torch.allclose(found["wide"], given["wide"], atol=1e-5)


def test_what_was_not_said_is_added_to_what_is_said_next():
    """Of an update that is the same in each round, in the end all has been said."""
    chain = Chain(["topk:k=0.25,feedback=true"])
    base = {"w": torch.zeros(4)}
    given = {"w": torch.tensor([4.0, 3.0, 2.0, 1.0])}
    memory, total = {}, torch.zeros(4)
    for seed in range(40):
        _, found, memory = there_and_back(chain, given, base, memory, seed)
        total += found["w"]
    assert torch.allclose(total + memory["w"]["residual"], 40 * given["w"])
    assert (total / 40 - given["w"]).abs().max() < 0.4
    _, found, _ = there_and_back(Chain(["topk:k=0.25"]), given, base, {})
    assert found["w"].tolist() == [4.0, 0.0, 0.0, 0.0]


def test_an_update_that_is_not_finite_leaves_nothing_to_say() -> None:
    chain = Chain(["topk:k=0.5,feedback=true"])
    _, after = chain.encode({"w": torch.tensor([1.0, torch.nan])}, {}, 1, {})
    assert after == {}


def test_the_memory_changes_only_once_it_is_taken_over():
    chain = Chain(["topk:k=0.25,feedback=true"])
    memory = {"w": {"residual": torch.ones(4)}}
    chain.encode({"w": torch.arange(4.0)}, {}, 1, memory)
    assert memory["w"]["residual"].tolist() == [1.0] * 4


@pytest.mark.parametrize("texts", CHAINS, ids=" ".join)
def test_bytes_are_told_before_and_after_each_stage(texts):
    given = tensors(1)
    chain = Chain(texts)
    coded, _, _ = there_and_back(chain, given, {})
    sizes = chain.sizes(coded, given)
    assert [each.stage for each in sizes] == ["", *chain.names]
    assert sizes[0].bytes == sum(each.nbytes for each in given.values())
    assert sizes[-1].bytes == sum(each.nbytes for each in coded.values())
    if texts == ("topk:k=0.1", "int8"):
        values = 9 + 1 + 1 + 200
        places = 11 + 1 + 1 + 250
        assert [each.bytes for each in sizes[1:]] == [
            places + 4 * values + 8,
            places + values + 4 * 4 + 8,
        ]


@pytest.mark.parametrize("texts", [each for each in CHAINS if not Chain(each).by_values])
def test_without_values_the_same_lengths_are_made(texts):
    chain = Chain(texts)
    real, _ = chain.encode(tensors(1), {}, 1)
    given = tensors(1, device="meta") | {"steps": torch.tensor([3])}
    shapes, _ = chain.encode(given, {}, 1)
    assert {n: (t.shape, t.dtype) for n, t in real.items()} == {
        n: (t.shape, t.dtype) for n, t in shapes.items()
    }
    assert chain.decode(shapes, given, {}, 1)["wide"].is_meta


def test_what_is_not_in_the_layout_is_refused():
    chain, given = Chain(["topk:k=0.1", "int8"]), tensors(1)
    coded, _ = chain.encode(given, {}, 1)
    assert len(coded) == 5
    for name, each in coded.items():
        if name.startswith("~"):
            with pytest.raises(ValueError, match=f"{name} is not"):
                chain.decode({**coded, name: each[:-1]}, given, {}, 1)
        missing = {other: tensor for other, tensor in coded.items() if other != name}
        with pytest.raises(ValueError, match=name):
            chain.decode(missing, given, {}, 1)
    with pytest.raises(ValueError, match="tensors differ in 'more'"):
        chain.decode({**coded, "more": torch.zeros(1)}, given, {}, 1)
    with pytest.raises(ValueError, match="no packed bytes"):
        Chain(["deflate"]).decode(coded, given, {}, 1)
    packed, _ = Chain(["deflate"]).encode(given, {}, 1)
    with pytest.raises(ValueError, match="inflate"):
        Chain(["deflate"]).decode({**packed, "~packed": packed["~packed"][:-9]}, given, {}, 1)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["int9"], "did you mean int8"),
        (
            ["int8", "topk"],
            "stage = 'topk' after 'int8': the other way round; first leave values out, then",
        ),
        (["deflate", "deflate"], "after 'deflate': both pack bytes; take one of them"),
        (["topk", "stc"], "'stc' after 'topk': both leave values out; take one of them"),
        (["bf16", "stc", "zstd"], "'stc' after 'bf16': both take fewer bits for each value; take"),
        (["topk", "bf16", "int8"], "'int8' after 'bf16': both take fewer bits"),
        (["topk", "deflate", "int8"], "'int8' after 'deflate': the other way round"),
        (["topk:k=2"], "k = 2"),
        (["topk:share=1"], "share"),
        (["topk:k"], "KEY=VALUE"),
    ],
)
def test_what_makes_no_sense_is_refused(texts, words):
    with pytest.raises(ConfigError, match=words):
        Chain(texts)


def test_none_is_no_chain_and_each_says_whether_its_bytes_depend_on_values():
    assert not Chain([]) and Chain(["int8"])
    assert Chain(["deflate"]).by_values and not Chain(["topk", "int8"]).by_values
    assert {"topk", "int8", "deflate"} <= set(names())
