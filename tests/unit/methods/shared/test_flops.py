"""FLOPs by torch's formulae, against arithmetic and against torch's own counter."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from methods import fedavg, sfprompt, split, splitfed
from methods.shared import flops
from nodes.workload.models import ModelSpec, VisionTransformer

SPEC = ModelSpec(side=8, patch=2, width=8, depth=3, heads=2)
CLASSES = 3
IMAGE = torch.zeros(1, 1, 8, 8)
T, D = SPEC.tokens, SPEC.width
EMBED = 2 * 16 * 4 * D
LINEAR = 2 * T * D * (4 * D + 2 * 2 * D)
"""Four projections and a perceptron of twice the width."""
ATTENTION = 2 * 2 * T * T * D
CLASSIFIER = 2 * D * CLASSES


def model(spec: ModelSpec = SPEC) -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(spec, CLASSES)


def test_a_forward_pass_by_hand() -> None:
    expected = EMBED + SPEC.depth * (LINEAR + ATTENTION) + CLASSIFIER
    assert flops.forward(model(), IMAGE) == expected


@pytest.mark.parametrize(("number", "expected"), [(1, 7), (2, 3), (3, 5), (90, 5)])
def test_the_last_round_told_stands_for_all_that_follow(number: int, expected: int) -> None:
    assert flops.of_round([7, 3, 5], number) == expected
    assert flops.of_round(4.5, number) == 4.5


def test_a_step_by_hand() -> None:
    whole = model()
    # Backward is twice forward, but for the gradient of the images, which nobody wants.
    expected = 2 * EMBED + 3 * (SPEC.depth * (LINEAR + ATTENTION) + CLASSIFIER)
    assert flops.step(whole, IMAGE, whole) == expected
    assert flops.step(whole, IMAGE, whole, input_gradient=True) == expected + EMBED


def test_a_step_of_what_is_partly_frozen() -> None:
    whole = model()
    whole.requires_grad_(False)
    assert flops.step(whole, IMAGE, whole) == flops.forward(whole, IMAGE)
    whole.head.classifier.requires_grad_(True)
    assert flops.step(whole, IMAGE, whole) == flops.forward(whole, IMAGE) + CLASSIFIER
    # A gradient that passes through frozen weights costs what theirs would not.
    tokens = torch.zeros(1, T, D)
    through = 2 * LINEAR + 3 * ATTENTION
    assert flops.step(whole.blocks[0], tokens, input_gradient=True) == through


@pytest.mark.parametrize("batch", [1, 3])
def test_torchs_counter_agrees(batch: int) -> None:
    whole, images = model(), IMAGE.expand(batch, -1, -1, -1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        whole(images).sum().backward()
    assert flops.step(whole, images, whole) == counter.get_total_flops()


def test_samples_cost_the_same_one_by_one() -> None:
    whole = model()
    assert flops.step(whole, IMAGE.expand(7, -1, -1, -1), whole) == 7 * flops.step(
        whole, IMAGE, whole
    )


def test_counting_leaves_the_model_alone() -> None:
    whole = model()
    before = [parameter.clone() for parameter in whole.parameters()]
    flops.step(whole, IMAGE, whole)
    assert all(parameter.grad is None for parameter in whole.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, whole.parameters(), strict=True))


@pytest.mark.thorough
def test_counting_does_not_import_a_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from methods.shared import flops\n"
        "from nodes.workload.models import ModelSpec, VisionTransformer\n"
        "model = VisionTransformer(ModelSpec(depth=1), 2)\n"
        "assert flops.step(model, torch.zeros(1, 1, 16, 16), model) > 0\n"
        "sys.exit(bool({'torch._inductor', 'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


# What methods say of their clients


def test_fedavg_steps_through_the_whole_model() -> None:
    config = fedavg.Config(local_epochs=3)
    whole = model()
    assert fedavg.client_flops(config, whole, IMAGE) == 3 * flops.step(whole, IMAGE, whole)


@pytest.mark.parametrize("method", [split, splitfed])
def test_split_clients_step_through_their_own_side(method: object) -> None:
    config = split.Config(head_blocks=1, local_epochs=2)
    head = 2 * EMBED + 3 * (LINEAR + ATTENTION)
    assert method.client_flops(config, model(), IMAGE) == 2 * head  # type: ignore[attr-defined]
    config = split.Config(head_blocks=1, tail_blocks=1, labels="private", local_epochs=2)
    tail = 3 * (LINEAR + ATTENTION + CLASSIFIER)
    found = method.client_flops(config, model(), IMAGE)  # type: ignore[attr-defined]
    assert found == 2 * (head + tail)


def test_sfprompt_clients_never_compute_the_body() -> None:
    config = sfprompt.Config(
        head_blocks=0, tail_blocks=0, gamma=0.25, local_epochs=2, split_epochs=3, prompt_length=4
    )
    found = sfprompt.client_flops(config, sfprompt.adapt(config, model()), IMAGE)
    forward = EMBED + CLASSIFIER
    # Update and split pass: of the classifier the weights' gradient and the tokens', of the
    # embedding nothing. Scores: forward alone.
    step = EMBED + 3 * CLASSIFIER
    assert found == 2 * step + forward + 0.25 * 3 * step
    config = sfprompt.Config(head_blocks=0, gamma=1.0, local_epochs=0, split_epochs=1)
    assert sfprompt.client_flops(config, sfprompt.adapt(config, model()), IMAGE) == step


def test_a_block_in_the_head_is_what_costs_sfprompts_clients_most() -> None:
    small = ModelSpec(side=32, patch=8, width=48, depth=6, heads=4, mlp_ratio=4)
    image = torch.zeros(1, 1, 32, 32)
    full = model(small)
    whole = flops.step(full, image, full)
    shares = []
    for head in (0, 1):
        config = sfprompt.Config(head_blocks=head)
        shares.append(
            sfprompt.client_flops(config, sfprompt.adapt(config, model(small)), image) / whole
        )
    assert shares[0] < 0.1 < shares[1]
