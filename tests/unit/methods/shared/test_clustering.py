"""Clustered weights against calculations by hand, k-means against numpy's, and messages' bytes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.shared import clustering
from methods.shared.clustering import Clustered, found_centroids, layout, quantised, rebuilt
from methods.shared.local_training import trainable_state
from nodes.workload import models


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_values_and_gradients_by_hand() -> None:
    weights = torch.tensor([[0.1, 0.9, -1.0], [0.4, 2.0, 0.6]], requires_grad=True)
    centroids = torch.tensor([1.0, -0.5, 0.0], requires_grad=True)
    found = quantised(weights, centroids)
    assert found.tolist() == [[0.0, 1.0, -0.5], [0.0, 1.0, 1.0]]
    gradient = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    found.backward(gradient)
    # Straight through to the weights; of its members' the sum to each centroid.
    assert torch.equal(weights.grad, gradient)
    assert centroids.grad.tolist() == [2.0 + 16.0 + 32.0, 4.0, 1.0 + 8.0]


def test_a_step_through_a_layer_by_hand() -> None:
    """y = q(w, c) x: dL/dc_j is the sum over its members of dL/dq, and dL/dw is dL/dq."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.9, -1.0], [0.4, 2.0, 0.6]]))
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    model = Clustered(nn.Sequential(layer), 3, generator())
    with torch.no_grad():
        model.centroids[0].copy_(torch.tensor([-0.5, 0.0, 1.0]))
    images = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]])
    q = np.array([[0.0, 1.0, -0.5], [0.0, 1.0, 1.0]])
    out = images.numpy() @ q.T + np.array([0.5, -0.5])
    torch.testing.assert_close(model(images), torch.from_numpy(out).float())
    model(images).square().sum().backward()
    of_q = 2 * out.T @ images.numpy()
    np.testing.assert_allclose(layer.weight.grad.numpy(), of_q, rtol=1e-6)
    expected = [of_q[0, 2], of_q[0, 0] + of_q[1, 0], of_q[0, 1] + of_q[1, 1] + of_q[1, 2]]
    np.testing.assert_allclose(model.centroids[0].grad.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(layer.bias.grad.numpy(), 2 * out.sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("diverged", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_weights_that_diverged_have_centroids_too(diverged: float) -> None:
    """A client sends what it has, and the server says which of its tensors is not finite."""
    weights = torch.linspace(-1, 1, 20).view(4, 5)
    weights[1, 2:4] = diverged
    for seed in range(5):
        assert found_centroids(weights, 4, generator(seed)).shape == (4,)
        everywhere = found_centroids(torch.full((4, 5), diverged), 4, generator(seed))
        assert not (everywhere.abs() < abs(diverged)).any()


def test_groups_that_lie_apart_are_found_whatever_is_drawn() -> None:
    """Draws go by the square of the distance and leave none out; Lloyd's steps find the means."""
    noise = torch.randn(4, 50, generator=generator(1)) * 0.01
    weights = (noise + torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None]).flatten()
    expected = weights.view(4, 50).mean(dim=1)
    for seed in range(20):
        order = torch.randperm(200, generator=generator(seed))
        found = found_centroids(weights[order].view(10, 20), 4, generator(seed))
        torch.testing.assert_close(found, expected)


def test_lloyds_steps_end_where_each_centroid_is_its_members_mean() -> None:
    weights = torch.randn(40, 50, generator=generator(3))
    found = found_centroids(weights, 8, generator())
    nearest = np.abs(weights.numpy().ravel()[:, None] - found.numpy()).argmin(axis=1)
    means = [weights.numpy().ravel()[nearest == each].mean() for each in range(8)]
    # Ten steps come near to it.
    np.testing.assert_allclose(found.numpy(), means, atol=0.05)
    assert found.tolist() == sorted(found.tolist())
    error = float((weights - quantised(weights, found)).square().mean())
    # Lloyd and Max: 0.0345 is the least for a normal distribution and eight values.
    assert error < 1.15 * 0.0345


@pytest.mark.parametrize("weights", [torch.zeros(3, 2), torch.tensor([[1.0, 2.0]])])
def test_fewer_values_than_clusters(weights: Tensor) -> None:
    found = found_centroids(weights, 5, generator())
    assert found.shape == (5,)
    assert torch.equal(quantised(weights, found), weights)


def test_a_tie_has_one_answer() -> None:
    assert clustering.nearest(torch.tensor([0.5]), torch.tensor([0.0, 1.0])).tolist() == [0]


@pytest.mark.parametrize(
    ("clusters", "size"),
    [
        (8, 137_360),
        pytest.param(16, 175_368, marks=pytest.mark.thorough),
        *(pytest.param(each, None, marks=pytest.mark.thorough) for each in (2, 5, 30)),
    ],
)
def test_bytes_of_the_shipped_model(clusters: int, size: int | None) -> None:
    model = models.build("vit-glyphs", 10, seed=0)
    weights, others, width = 297_408, 6_250, (clusters - 1).bit_length()
    expected = weights * width // 8 + 4 * clusters * 26 + 4 * others
    assert size in (None, expected)
    sent = Clustered(model, clusters, generator()).strip()
    like = layout(model, clusters)
    for each in (sent, like):
        assert sum(tensor.numel() * tensor.element_size() for tensor in each.values()) == expected
    assert {n: (t.shape, t.dtype) for n, t in sent.items()} == {
        n: (t.shape, t.dtype) for n, t in like.items()
    }
    # What is sent is what the model was left with, and predicted before.
    found, state = rebuilt(model, sent), trainable_state(model)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    for name in clustering.matrices(model):
        assert len(state[name].unique()) <= clusters


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 3))


def test_stripping_changes_no_output() -> None:
    clustered, images = Clustered(small(), 4, generator()), torch.rand(3, 1, 4, 4)
    before = clustered(images)
    clustered.strip()
    torch.testing.assert_close(clustered.model(images), before)
    plain = small()
    assert not torch.allclose(plain(images), before)
    assert torch.equal(plain[2].weight, clustered.model[2].weight)


def test_frozen_matrices_are_left_alone() -> None:
    model = small()
    model[0].requires_grad_(False)
    clustered = Clustered(model, 4, generator())
    before = model[0].weight.clone()
    assert set(clustered.strip()) == {
        *("2.weight", "2.bias", "3.bias", "3.weight.codes", "3.weight.codebook")
    }
    assert torch.equal(model[0].weight, before)


def test_training_makes_a_clustered_model_better() -> None:
    images, labels = torch.rand(30, 1, 4, 4, generator=generator(1)), torch.arange(30) % 3
    clustered = Clustered(small(), 3, generator())
    optimizer = torch.optim.Adam(clustered.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(clustered(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"3.weight.codebook": torch.zeros(31), "0.weight.codebook": torch.zeros(31)}, "31 clus"),
        ({"3.weight.codebook": torch.zeros(1), "0.weight.codebook": torch.zeros(1)}, "1 clusters"),
        ({"3.weight.codebook": torch.zeros(4)}, "expected torch.float32[5]"),
        ({"3.weight.codes": torch.zeros(3, dtype=torch.uint8)}, "expected torch.uint8[21]"),
        ({"3.weight.codes": torch.full((21,), 255, dtype=torch.uint8)}, "has 7, of 5 clusters"),
        ({"3.weight": torch.zeros(3, 18)}, "tensors differ in '3.weight'"),
    ],
)
def test_messages_that_cannot_be_are_refused(change: dict[str, Tensor], reason: str) -> None:
    model = small()
    sent = Clustered(model, 5, generator()).strip()
    rebuilt(model, sent)
    with pytest.raises(ValueError) as refused:
        rebuilt(model, sent | change)
    assert reason in str(refused.value)
    with pytest.raises(ValueError, match="0 clusters: must be from 2 to 30"):
        rebuilt(model, {})
