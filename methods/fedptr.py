"""FedPTR: projected trajectory regularization (arXiv 2312.14380, December 2023).

FedAvg whose clients are pulled towards where the global model is likely to go. A small synthetic
set S, images x with soft labels y and a step a, is learnt so that training on it imitates the last
global update; then it goes on from the present weights. Round t >= 2, with D = w_t - w_{t-1}:

    v_0 = 0,  v_{m+1} = v_m - a * grad CE(w_{t-1} + v_m; x, y),  M times;
    x, y and a descend on |v_M - D|^2 / |D|^2, through all M steps, match_steps times;
    w~ = w_t after M such steps from there; and a client's loss has mu / 2 * |w - w~|^2 more.

Round 1, and one whose model is the last one's, has no D and is FedAvg's. ``projection`` says who
does it, and what goes down beside the n trained parameters:

    synthetic  the server learns S and sends it        4 n + |S| * (4 * pixels + 4 * classes) + 4
    projected  the server sends w~                     8 n
    client     each client learns an S of its own      4 n

and 4 n up. What is trained is a variant of ``methods/peft/``, as for fedpeft.

There is no public code. From the paper's abstract: the synthetic set at client or server, that it
imitates the last update, the projection, the pull. It claims faster and better convergence where
data are skewed, and no figure is verified; bytes a round are FedAvg's or more. Reconstructed: the
quotient, M, match_steps, Adam at 0.1 on x, y and log a, mu, an image a class; the model in
evaluation, so that batch normalisation's statistics are those of w_t, which w~ leaves alone.
Ours: v is kept apart from w, so that an update too small to show in w is imitated like any other;
a begins each round where M steps are as long as D. y is the softmax of what is learnt. With
projection=client one that missed rounds takes D from the last model that it was sent, and one that
was sent none trains as in round 1. Where S or w~ does not come out finite, w~ is w_t.

Gradients of gradients keep the graphs of M steps: M times a step's activations of |S| images.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from methods import Fleet, Flops, Peer, Shard, fedavg, fedprox
from methods.shared import attention, flops
from methods.shared.backbone import images_only
from methods.shared.local_training import learnt, load_trainable
from testbed.seeds import derive

SYNTHETIC = "synthetic"
PROJECTED = "projected"
NOTHING = "nothing"
"""Follows the model where there is no update to imitate."""
SURENESS = 4.0
"""Of a soft label's own class at first, as a logit over the others."""


class Config(fedprox.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    mu: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.1
    """Weight of the pull to the projected weights."""
    projection: Literal["synthetic", "projected", "client"] = "synthetic"
    """The server learns synthetic images, and sends them or the weights that they lead to; or each
    client learns its own."""
    ipc: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """Synthetic images a class."""
    unrolled_steps: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    """M: steps on them that stand for a round; memory grows with it."""
    match_steps: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 20
    """Of the images' learning a round."""
    match_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    """Adam's, on pixels, labels' logits and the step's logarithm."""


class Server(fedprox.Server):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.config = config
        self.last: Mapping[str, Tensor] = {}
        """The weights before the last round."""
        self.imitation = None
        if config.projection != "client":
            self.imitation = Imitation(config, model, shard.inputs, derive(seed, SYNTHETIC))

    async def announce(self, state: Mapping[str, Tensor], fleet: Fleet) -> Mapping[str, Tensor]:
        if self.imitation is None:
            return await super().announce(state, fleet)
        before, self.last = self.last, state
        change = difference(self.model, before, state)
        follows = self.config.projection if change else NOTHING
        sent = await fleet.broadcast(self.kind, state, base="held", follows=follows)
        if change:
            # The model is on its way meanwhile.
            self.imitation.learn(self.model, before, change)
            found = self.imitation.tensors()
            if follows == PROJECTED:
                found = project(self.config, self.model, state, found)
            await fleet.broadcast(follows, found)
        return sent


class Client(fedprox.Client):
    config: Config

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.aim: Mapping[str, Tensor] | None = None
        """The projected weights, within a round."""
        self.last: Mapping[str, Tensor] = {}
        """The model that it was sent last, where it learns by itself."""
        self.imitation = None
        if config.projection == "client":
            self.imitation = Imitation(config, model, shard.inputs, derive(seed, SYNTHETIC))
        self.like = outline(config, model, shard.inputs)

    def round(self, peer: Peer) -> None:
        self.number = peer.round
        message = peer.receive(self.kind, like=learnt(self.model), base="held")
        start = message.tensors
        load_trainable(self.model, start)
        if self.imitation is not None:
            self.aim = self.foreseen(start, self.imitation)
        else:
            self.aim = self.told(start, message.details.get("follows"), peer)
        end, details = self.update(start)
        self.aim = None
        peer.send(self.kind, end, to="server", base=start, **details)

    def told(
        self, start: Mapping[str, Tensor], follows: object, peer: Peer
    ) -> Mapping[str, Tensor] | None:
        """The projected weights by what the server sends; None: there are none this round."""
        if follows == NOTHING:
            return None
        if follows != self.config.projection:
            raise peer.refuse(f"{follows!r} follows, expected {self.config.projection} or nothing")
        if follows == PROJECTED:
            return peer.receive(PROJECTED, like=trained(self.model)).tensors
        found = peer.receive(SYNTHETIC, like=self.like).tensors
        return project(self.config, self.model, start, found)

    def foreseen(
        self, start: Mapping[str, Tensor], imitation: "Imitation"
    ) -> Mapping[str, Tensor] | None:
        """The same by what the client learns itself."""
        before, self.last = self.last, start
        change = difference(self.model, before, start)
        if not change:
            return None
        imitation.learn(self.model, before, change)
        return project(self.config, self.model, start, imitation.tensors())

    def optimizer(self, start: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """fedprox's, drawn towards the projected weights; fedavg's where there are none."""
        if self.aim is None:
            return fedavg.new_optimizer(self.config, self.model, self.number)
        return super().optimizer(self.aim)


class Imitation:
    """A synthetic set, kept from round to round, and its learning."""

    def __init__(self, config: Config, model: nn.Module, images: Tensor, seed: int) -> None:
        """``images``: any (n, channels, height, width), of the shape to have."""
        self.config = config
        like, device = outline(config, model, images), next(model.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(like["images"].shape, generator=generator).to(device)
        count = like["labels"].shape[1]
        own = torch.arange(len(self.images)) // config.ipc
        self.scores = (SURENESS * F.one_hot(own, count).float()).to(device)
        """Logits of the soft labels."""
        self.step = torch.zeros(1, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of it that others need."""
        return {"images": self.images, "labels": self.scores.softmax(dim=1), "step": self.step}

    def learn(
        self, model: nn.Module, start: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> None:
        """Learn to change weights from ``start`` by ``change``."""
        config = self.config
        length = norm(change)
        first = unrolled(model, start, self.tensors() | {"step": torch.ones_like(self.step)}, 1)
        step = length / (config.unrolled_steps * norm(first))
        learning = [self.images.clone(), self.scores.clone(), step.log().view(1)]
        for each in learning:
            each.requires_grad_()
        optimizer = torch.optim.Adam(learning, lr=config.match_learning_rate)
        times = [self.images] * config.match_steps
        for _ in flops.each_size(times) if self.images.is_meta else times:
            loss = mismatch(config, model, start, change, *learning)
            for each, gradient in zip(learning, torch.autograd.grad(loss, learning), strict=True):
                each.grad = gradient
            optimizer.step()
        images, scores, step = (each.detach() for each in learning)
        self.step = torch.zeros_like(self.step)
        if finite([images, scores, step.exp()]):
            self.images, self.scores, self.step = images, scores, step.exp()


def mismatch(
    config: Config,
    model: nn.Module,
    start: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    images: Tensor,
    scores: Tensor,
    log_step: Tensor,
) -> Tensor:
    """|v_M - D|^2 / |D|^2, 0-dim, through whose M steps gradients flow back to the set."""
    found = {"images": images, "labels": scores.softmax(dim=1), "step": log_step.exp()}
    moved = unrolled(model, start, found, config.unrolled_steps, create_graph=True)
    length = norm(change)
    # Each is divided, and not the sum: squares of a tiny update would be 0.
    parts = [((moved[name] - change[name]) / length).square().sum() for name in change]
    return torch.stack(parts).sum()


def unrolled(
    model: nn.Module,
    start: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    count: int,
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """How far ``count`` steps on a synthetic set lead from ``start``, v by parameter."""
    model.eval()
    moved = {name: torch.zeros_like(each) for name, each in trained(model).items()}
    with attention.ByProducts():
        for _ in range(count):
            weights = {name: start[name] + each for name, each in moved.items()}
            for each in weights.values():
                if not each.requires_grad:
                    each.requires_grad_()
            logits = functional_call(model, weights, (found["images"],))
            gradients = torch.autograd.grad(
                F.cross_entropy(logits, found["labels"]),
                list(weights.values()),
                create_graph=create_graph,
                materialize_grads=True,
            )
            moved = {
                name: each - found["step"] * gradient
                for (name, each), gradient in zip(moved.items(), gradients, strict=True)
            }
    return moved


def project(
    config: Config, model: nn.Module, start: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights that M steps on a synthetic set lead to; those of ``start`` if they diverge."""
    moved = unrolled(model, start, found, config.unrolled_steps)
    ahead = {name: start[name] + each for name, each in moved.items()}
    if not finite(ahead.values()):
        ahead = {name: start[name].clone() for name in ahead}
    return ahead


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are; those that there are none of, too."""
    return all(each.is_meta or bool(each.isfinite().all()) for each in tensors)


def difference(
    model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Change by an update, by trained parameter; empty: none, or nothing was before."""
    change = {name: after[name] - before[name] for name in trained(model) if before}
    return change if change and bool((norm(change) > 0).all()) else {}


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Norm of all values together, 0-dim, whose squares the dtype need have no room for."""
    parts = [each.double().square().sum() for each in tensors.values()]
    return torch.stack(parts).sum().sqrt().to(next(iter(tensors.values())).dtype)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters by name, which are projected; buffers are not."""
    return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}


def outline(config: Config, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The like of a synthetic set, by the shape of ``images``."""
    one = torch.zeros(1, *images.shape[1:], device=next(model.parameters()).device)
    model.eval()
    with torch.no_grad():
        count = model(one).shape[1]
    size = count * config.ipc
    return {
        "images": torch.empty(size, *one.shape[1:], device="meta"),
        "labels": torch.empty(size, count, device="meta"),
        "step": torch.empty(1, device="meta"),
    }


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model reads ids, or lacks what the variant or privacy needs."""
    images_only(model)
    fedprox.check(config, model)


stageable = fedprox.stageable
check_samples = fedprox.check_samples
adapt = fedprox.adapt
client_flops = fedprox.client_flops


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways the model, as in round 1."""
    return fedprox.traffic(config, model)


def fixed_flops(config: Config, model: nn.Module, image: Tensor) -> Flops:
    """Operations of all rounds, and from round 2 on of the client's part in the projection."""
    always = fedprox.fixed_flops(config, model, image)
    if config.projection == PROJECTED:
        return always
    start = trained(model)
    found = Imitation(config, model, image, seed=0).tensors()
    with flops.Counter() as counter:
        project(config, model, start, found)
    if config.projection == "client":
        change = {name: torch.ones_like(each) for name, each in start.items()}
        once, twice = (_learning(config, model, image, change, steps) for steps in (1, 2))
        counter.flops += once + (config.match_steps - 1) * (twice - once)
    return [always, always + counter.flops]


def _learning(
    config: Config, model: nn.Module, image: Tensor, change: Mapping[str, Tensor], steps: int
) -> int:
    """Operations of so many of match_steps, and of what goes before them."""
    imitation = Imitation(msgspec.structs.replace(config, match_steps=steps), model, image, seed=0)
    with flops.Counter() as counter:
        imitation.learn(model, trained(model), change)
    return int(counter.flops)
