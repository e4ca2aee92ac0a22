"""What each variant trains, and what it makes of a model, against models joined by hand."""

import copy
import math
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import fedpeft, peft
from methods.shared.backbone import Roles
from nodes.workload import models
from nodes.workload.models import ModelSpec, VisionTransformer

CLASSES = 3
SPEC = ModelSpec(side=4, patch=2, width=16, depth=3, heads=2, mlp_ratio=4)
VARIANTS = peft.names()
CLASSIFIER = {"head.classifier.weight", "head.classifier.bias"}


@pytest.fixture(scope="module")
def plain() -> VisionTransformer:
    """No bias is zero and no norm one, so that a missing or misplaced one shows."""
    torch.manual_seed(0)
    model = VisionTransformer(SPEC, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def adapted(plain: nn.Module, variant: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    config = fedpeft.Config(variant=variant, **options)  # type: ignore[arg-type]
    return fedpeft.adapt(config, copy.deepcopy(plain))


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(2))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def trainable(model: nn.Module) -> int:
    return sum(each.numel() for each in trained(model).values())


def shake(model: nn.Module) -> None:
    """Move everything that is trained away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in trained(model).values():
            each.add_(0.3 * torch.randn(each.shape, generator=generator))


def test_every_file_is_a_variant_that_can_be_chosen() -> None:
    assert sorted(get_args(get_type_hints(fedpeft.Config)["variant"])) == VARIANTS


# How much is trained


@pytest.mark.parametrize(
    ("model", "classes", "variant", "expected"),
    [
        ("vit-b16", 100, "full", 85_875_556),
        ("vit-b16", 100, "head", 76_900),
        ("vit-b16", 100, "bias", 179_812),
        ("vit-b16", 100, "adapter", 225_220),
        ("vit-b16", 100, "prompt", 169_060),
        ("vit-b16", 100, "lora", 2 * 8 * 768 * 2 * 12 + 76_900),
        ("vit-b16", 100, "ffalora", 8 * 768 * 2 * 12 + 76_900),
        ("vit-b16", 100, "ia3", (768 + 768 + 3072) * 12 + 76_900),
        ("vit-b16", 10, "full", 85_806_346),
        ("vit-l16", 10, "full", 303_311_882),
    ],
)
def test_counts_at_the_size_of_the_paper(
    model: str, classes: int, variant: str, expected: int
) -> None:
    config = fedpeft.Config(variant=variant)  # type: ignore[arg-type]
    assert trainable(fedpeft.adapt(config, models.skeleton(model, classes))) == expected


@pytest.mark.parametrize(
    ("variant", "options", "expected"),
    [
        ("adapter", {}, 2 * 16 * 2 + 2 + 16),
        ("adapter", {"adapter_width": 5}, 2 * 16 * 5 + 5 + 16),
        ("prompt", {"prompt_length": 7}, 3 * 7 * 16),
        ("lora", {"rank": 3}, 3 * 2 * 2 * 3 * 16),
        ("ffalora", {"rank": 3}, 3 * 2 * 3 * 16),
        ("ia3", {}, 3 * (16 + 16 + 64)),
        # 11 widths a block, the patches' and the last norm's.
        ("bias", {}, 3 * 11 * 16 + 16 + 16),
        ("head", {}, 0),
    ],
)
def test_options_give_the_counts(
    plain: VisionTransformer, variant: str, options: dict[str, int], expected: int
) -> None:
    assert trainable(adapted(plain, variant, **options)) == expected + 16 * CLASSES + CLASSES


def test_what_is_trained_is_what_the_variant_is_named_for(plain: VisionTransformer) -> None:
    biases = {name for name, _ in plain.named_parameters() if name.endswith(".bias")}
    assert len(biases) == 3 * 8 + 1 + 2
    expected = {
        "full": {name for name, _ in plain.named_parameters()},
        "head": CLASSIFIER,
        "bias": biases | CLASSIFIER,
        "adapter": CLASSIFIER
        | {f"blocks.0.contract.adapter.{way}.{kind}"
           for way in ("down", "up") for kind in ("weight", "bias")},
        "prompt": CLASSIFIER | {f"blocks.{number}.prompt" for number in range(3)},
        "lora": CLASSIFIER
        | {f"blocks.{number}.attention.{target}.lora_{factor}"
           for number in range(3) for target in ("query", "value") for factor in "AB"},
        "ffalora": CLASSIFIER
        | {f"blocks.{number}.attention.{target}.lora_B"
           for number in range(3) for target in ("query", "value")},
        "ia3": CLASSIFIER
        | {f"blocks.{number}.{target}.ia3_l.default"
           for number in range(3) for target in ("attention.key", "attention.value", "contract")},
    }  # fmt: skip
    assert {variant: set(trained(adapted(plain, variant))) for variant in VARIANTS} == expected


# The function


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each != "prompt"])
def test_a_variant_at_first_changes_nothing(plain: VisionTransformer, variant: str) -> None:
    with torch.no_grad():
        assert torch.allclose(adapted(plain, variant)(images()), plain(images()), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_is_trained_and_nothing_else_gets_a_gradient(
    plain: VisionTransformer, variant: str
) -> None:
    model = adapted(plain, variant)
    shake(model)
    F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
    for name, each in model.named_parameters():
        if not each.requires_grad:
            assert each.grad is None, name
        # A key's bias shifts all scores of a query alike, so its gradient is rounding.
        elif not name.endswith("key.bias"):
            assert each.grad is not None and each.grad.abs().max() > 1e-7, name


def test_an_adapter_learns_although_it_starts_without_effect(plain: VisionTransformer) -> None:
    model = adapted(plain, "adapter")
    adapter = model.blocks[0].contract.adapter
    assert all(block.contract.adapter is adapter for block in model.blocks)
    assert not adapter.up.weight.any() and not adapter.up.bias.any()
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
        # Through an up-projection of zeros the first step cannot see the down-projection.
        assert adapter.up.weight.grad.abs().max() > 1e-5
        assert bool(adapter.down.weight.grad.any()) == (step == 1)
        optimizer.step()


def test_an_adapter_stands_behind_the_perceptron_within_its_residual(
    plain: VisionTransformer,
) -> None:
    model = adapted(plain, "adapter")
    shake(model)
    adapter = model.blocks[0].contract.adapter
    with torch.no_grad():
        tokens = plain.embed(images())
        for block in plain.blocks:
            tokens = tokens + block.attention(block.norm_attention(tokens))
            m = block.contract(F.gelu(block.expand(block.norm_mlp(tokens))))
            tokens = tokens + m + adapter.up(F.gelu(adapter.down(m)))
        expected = F.linear(
            plain.head.norm(tokens[:, 0]), *(each for each in model.head.classifier.parameters())
        )
        assert torch.allclose(model(images()), expected, atol=1e-5)


def test_prompts_and_their_gradients_against_a_model_joined_by_hand(
    plain: VisionTransformer,
) -> None:
    model = adapted(plain, "prompt", prompt_length=5)
    labels = torch.tensor([0, 1, 2, 0])
    loss = F.cross_entropy(model(images()), labels)
    loss.backward()
    # VPT-deep as its paper writes it: prompts between the class token and the patches, and each
    # block's in the place of the last one's.
    prompts = [block.prompt.detach().clone().requires_grad_(True) for block in model.blocks]
    tokens = plain.embed(images())
    for prompt, block in zip(prompts, plain.blocks, strict=True):
        joined = torch.cat([tokens[:, :1], prompt.repeat(4, 1, 1), tokens[:, 1:]], dim=1)
        after = block(joined)
        tokens = torch.cat([after[:, :1], after[:, 1 + 5 :]], dim=1)
    expected = F.cross_entropy(plain.head(tokens), labels)
    gradients = torch.autograd.grad(expected, prompts)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for block, gradient in zip(model.blocks, gradients, strict=True):
        assert block.prompt.grad.abs().max() > 1e-5
        assert torch.allclose(block.prompt.grad, gradient, atol=1e-7)


def test_prompts_start_apart_and_within_their_bound(plain: VisionTransformer) -> None:
    model = adapted(plain, "prompt", prompt_length=50)
    values = torch.cat([block.prompt for block in model.blocks]).detach()
    bound = math.sqrt(6 / (2 * 2 * 1 + 16))
    assert 0.99 * bound < values.abs().max() <= bound
    assert len(values.unique()) > 0.99 * values.numel()


def test_lora_against_merged_weights(plain: VisionTransformer) -> None:
    model = adapted(plain, "lora", rank=3, lora_alpha=6.0)
    shake(model)
    merged = copy.deepcopy(plain)
    merged.head.classifier = model.head.classifier
    with torch.no_grad():
        for mine, block in zip(model.blocks, merged.blocks, strict=True):
            for name in ("query", "value"):
                layer = getattr(mine.attention, name)
                a, b = layer.lora_A, layer.lora_B
                getattr(block.attention, name).weight.add_(b @ a * (6.0 / 3))
        assert torch.allclose(model(images()), merged(images()), atol=1e-5)


def test_ia3_against_scaled_weights(plain: VisionTransformer) -> None:
    model = adapted(plain, "ia3")
    shake(model)
    scaled = copy.deepcopy(plain)
    scaled.head.classifier = model.head.classifier
    with torch.no_grad():
        for mine, block in zip(model.blocks, scaled.blocks, strict=True):
            for name in ("key", "value"):
                factor = getattr(mine.attention, name).ia3_l["default"]
                layer = getattr(block.attention, name)
                layer.weight.mul_(factor)
                layer.bias.mul_(factor.flatten())
            # The perceptron's hidden features, which contract reads.
            block.contract.weight.mul_(mine.contract.ia3_l["default"])
        assert torch.allclose(model(images()), scaled(images()), atol=1e-5)


@pytest.mark.parametrize("variant", ["lora", "ffalora", "adapter", "prompt", "ia3"])
def test_what_is_added_to_a_model_in_16_bits_is_trained_in_32(
    variant: str, plain: VisionTransformer
) -> None:
    model = adapted(copy.deepcopy(plain).bfloat16(), variant)
    model.get_submodule("head.classifier").requires_grad_(False)
    own = [each for each in model.parameters() if each.requires_grad]
    assert own and {each.dtype for each in own} == {torch.float32}
    shake(model)
    logits = model(images().bfloat16())
    assert logits.dtype == torch.bfloat16
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert all(each.grad.dtype == torch.float32 and each.grad.any() for each in own)


def test_lora_starts_apart_and_within_its_bound(plain: VisionTransformer) -> None:
    model = adapted(plain, "lora", rank=8)
    layers = [getattr(block.attention, name) for block in model.blocks for name in Roles().low_rank]
    values = torch.cat([layer.lora_A for layer in layers]).detach()
    assert 0.99 / math.sqrt(16) < values.abs().max() <= 1 / math.sqrt(16)
    assert len(values.unique()) > 0.99 * values.numel()
    assert not any(layer.lora_B.any() for layer in layers)


def test_lora_gives_the_outputs_and_gradients_of_peft(plain: VisionTransformer) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    ours = adapted(plain, "lora", rank=3, lora_alpha=6.0)
    given = LoraConfig(r=3, lora_alpha=6, target_modules=list(Roles().low_rank))
    theirs = inject_adapter_in_model(given, copy.deepcopy(plain))
    pairs = []
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        for name in Roles().low_rank:
            layer, reference = getattr(mine.attention, name), getattr(other.attention, name)
            pairs.append((layer.lora_A, reference.lora_A["default"].weight))
            pairs.append((layer.lora_B, reference.lora_B["default"].weight))
    with torch.no_grad():
        for own, reference in pairs:
            own.copy_(torch.randn(own.shape) / 4)
            reference.copy_(own)
    assert torch.equal(ours(images()), theirs(images()))
    for model in (ours, theirs):
        F.cross_entropy(model(images()), torch.arange(len(images())) % CLASSES).backward()
    assert all(torch.equal(own.grad, reference.grad) for own, reference in pairs)


# What a variant needs


class Bare(nn.Module):
    """Images to logits, without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ModuleDict({"classifier": nn.Linear(16, CLASSES)})


@pytest.mark.parametrize(
    ("variant", "missing"),
    [
        ("adapter", "blocks and contract"),
        ("prompt", "blocks"),
        ("lora", "query and value"),
        ("ia3", "key and value and contract"),
    ],
)
def test_a_model_that_lacks_what_a_variant_needs(variant: str, missing: str) -> None:
    expected = f"variant {variant} needs {missing}, which this model lacks"
    with pytest.raises(ValueError, match=expected):
        peft.load(variant).check(fedpeft.Config(), Bare())


def test_a_layer_that_is_not_linear_cannot_have_lora() -> None:
    model = VisionTransformer(SPEC, CLASSES)
    model.blocks[1].attention.value = nn.Identity()
    expected = r"variant lora needs blocks\.1\..*value to be an nn.Linear, and it is a Identity"
    with pytest.raises(ValueError, match=expected):
        peft.load("lora").check(fedpeft.Config(), model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_model_of_images_that_ships_can_have_every_variant(variant: str) -> None:
    for name in models.names():
        if models.is_language(name):
            continue
        peft.load(variant).check(fedpeft.Config(), models.skeleton(name, 10))


@pytest.mark.parametrize("variant", ["head", "bias"])
def test_a_model_without_blocks_will_do_for_some(variant: str) -> None:
    peft.load(variant).check(fedpeft.Config(), Bare())
    with pytest.raises(ValueError, match=f"variant {variant} needs head.classifier, which"):
        peft.load(variant).check(fedpeft.Config(), nn.Linear(2, 2))
