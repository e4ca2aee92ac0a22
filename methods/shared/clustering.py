"""Clustering of weights: matrices of few values, which are trained, packed and sent.

Of a model with M such matrices, of P weights, and C values for each, ceil(p ceil(log2 C) / 8) bytes
of codes for each of p weights, and 4 C M of values; the other parameters are sent as they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.payload import bits
from methods.shared.layout import check
from methods.shared.local_training import learnt, trainable_state
from methods.shared.objective import precise

FEWEST, MOST = 2, 30
"""Values that a matrix may have: clusters."""
LLOYD_STEPS = 10


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the linear and convolution layers that are trained, by name.

    Those that are an embedding's too have its name.
    """
    own = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    return {
        name: each
        for name, each in model.named_parameters()
        if id(each) in own and each.requires_grad
    }


def nearest(weights: Tensor, values: Tensor) -> Tensor:
    """The place of the nearest of ``values``, ascending (C,), for each weight; int64."""
    return torch.bucketize(weights, (values[1:] + values[:-1]) / 2)


def quantised(weights: Tensor, centroids: Tensor) -> Tensor:
    """Each weight's nearest centroid.

    A centroid's gradient is the sum over its members', a weight's is its centroid's own.
    """
    values = centroids.sort().values
    at = nearest(weights.detach(), values.detach())
    found: Tensor = values[at] + (weights - weights.detach())
    return found


def found_centroids(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` centroids of the weights, by k-means++ and Lloyd's steps: ascending."""
    flat = precise(weights.detach().flatten())
    first = torch.randint(len(flat), (1,), generator=generator)
    values = flat[first]
    far = (flat - values).square()
    # Where all of them are taken already, any will do.
    least = torch.finfo(flat.dtype).tiny
    while len(values) < count:
        # Of weights that diverged no distance is a chance; whoever takes them refuses them by name.
        chances = far.nan_to_num() + least
        value = flat[torch.multinomial(chances, 1, generator=generator)]
        values = torch.cat([values, value])
        far = torch.minimum(far, (flat - value).square())
    for _ in range(LLOYD_STEPS):
        values = values.sort().values
        at = nearest(flat, values)
        sums = torch.zeros_like(values).index_add(0, at, flat)
        members = torch.zeros_like(values).index_add(0, at, torch.ones_like(flat))
        values = torch.where(members > 0, sums / members.clamp_min(1), values)
    return values.sort().values.to(weights.dtype)


class Clustered(nn.Module):
    """A model with centroids for each matrix, which its weights are taken for."""

    def __init__(self, model: nn.Module, clusters: int, generator: torch.Generator) -> None:
        super().__init__()
        self.model = model
        self.centroids = nn.ParameterList(
            nn.Parameter(found_centroids(each, clusters, generator))
            for each in matrices(model).values()
        )

    def forward(self, images: Tensor) -> Tensor:
        own = zip(matrices(self.model).items(), self.centroids, strict=True)
        weights = {name: quantised(weight, centroids) for (name, weight), centroids in own}
        logits: Tensor = functional_call(self.model, weights, (images,))
        return logits

    def strip(self) -> dict[str, Tensor]:
        """Leave the model with its matrices' centroids for weights; what of it is sent."""
        sent = trainable_state(self.model)
        with torch.no_grad():
            own = zip(matrices(self.model).items(), self.centroids, strict=True)
            for (name, weight), centroids in own:
                values = centroids.sort().values
                at = nearest(weight, values)
                weight.copy_(values[at])
                del sent[name]
                sent |= _codes(name, values, at)
        return sent


def _codes(name: str, values: Tensor, at: Tensor) -> dict[str, Tensor]:
    width = _width(len(values))
    packed = at.new_empty(bits.packed_bytes(at.numel(), width), dtype=torch.uint8)
    if not at.is_meta:
        packed = bits.pack(at.flatten().to(torch.uint8), width)
    return {f"{name}.codebook": values, f"{name}.codes": packed}


def _width(clusters: int) -> int:
    """ceil(log2 C)."""
    return (clusters - 1).bit_length()


def layout(model: nn.Module, clusters: int) -> dict[str, Tensor]:
    """The layout of a message of the model with so many clusters, without values."""
    like, width = learnt(model), _width(clusters)
    for name, weight in matrices(model).items():
        del like[name]
        size = bits.packed_bytes(weight.numel(), width)
        like[f"{name}.codebook"] = torch.empty(clusters, dtype=weight.dtype, device="meta")
        like[f"{name}.codes"] = torch.empty(size, dtype=torch.uint8, device="meta")
    return like


def clusters_of(sent: Mapping[str, Tensor]) -> int:
    """C of a message; 0 where it has no matrix."""
    return next((len(each) for name, each in sent.items() if name.endswith(".codebook")), 0)


def rebuilt(model: nn.Module, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors out of a message.

    Raises:
        ValueError: it is none of a model of FEWEST to MOST clusters.
    """
    clusters = clusters_of(sent)
    if not FEWEST <= clusters <= MOST:
        raise ValueError(f"{clusters} clusters: must be from {FEWEST} to {MOST}")
    check(sent, layout(model, clusters))
    found = {name: sent[name] for name in learnt(model) if name in sent}
    for name, weight in matrices(model).items():
        at = bits.unpack(sent[f"{name}.codes"], _width(clusters), weight.numel())
        if int(at.max()) >= clusters:
            raise ValueError(f"{name}.codes has {int(at.max())}, of {clusters} clusters")
        found[name] = sent[f"{name}.codebook"][at.long()].view(weight.shape)
    return found
