"""FedCompress: Federated Learning with Adaptive Weight Clustering and Server-Side Distillation.

Tsouvalas et al., ICASSP 2024, arXiv 2401.14211. Every matrix has C values, both ways. q(w, c) is
each weight's nearest of the centroids c of its matrix, which k-means++ finds. A round:

1.  down: w, of C values a matrix
2.  client: local_epochs on the cross-entropy of f(w)
3.  client: cluster_epochs on that of f(q(w, c)); a centroid's gradient is the sum over its members,
    and a weight's that of its place in q, straight through
4.  up: q(w, c); and of the tenth of its samples that it does not train on, its accuracy and the
    features e before the classifier
5.  server: the mean by samples, which has more than C values; C may become C + 1
6.  server: distill_epochs on KL(softmax(f(mean) / T) || softmax(f(q(w, c)) / T)) over unlabelled
    images of something else; q(w, c) is the next round's w. Before round 1 too.

C grows where the rolling mean (three rounds) of the clients' accuracy has risen since the round
before by at most 0.01 / max(1, 2 (C - clusters)), and that of the score by at most ten times as
much; C has held for four rounds, and is below 30. The score is exp(-sum p log p), where p are the
singular values of all clients' e, rows of length 1, over their sum. They are the roots of the
eigenvalues of sum e^T e: with representations=gram that is sent, no sample's features, and the
score is the same.

Payload bytes a client and round, of P weights in M matrices (of linear and convolution layers) and
D other parameters: each way ceil(P ceil(log2 C) / 8), by matrix, + 4 C M + 4 D; where C is adaptive
also 4 n k up, features of n samples, or 4 k^2. The shipped model: 137,360 at C = 8, of 1,214,632.

The paper's claim: communication less by 4.5, the model by 4.14. Its code counts files of float32
values that are zipped: ``deflated_bytes`` among the metrics, of the global model, against the whole
one. Here codes are sent, and not deflated.

From the authors' code: all of the above but the bytes, and the defaults, with these exceptions.
Ours: a transformer's matrices, where they have convolutions alone; batches of 16, where they have
128 and 256, for clients of few samples; Lloyd's steps behind k-means++; glyphs, where they have
StyleGAN's images; representations=gram.
"""

import contextlib
import zlib
from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Fleet, Missed, Peer, Shard
from methods.distillation import TEXTS_AT_ONCE, adam, digest, kd_loss, predict
from methods.shared import flops
from methods.shared.averaging import WeightedMean
from methods.shared.backbone import causal, staged
from methods.shared.beside import only_with
from methods.shared.clustering import FEWEST, MOST, Clustered, clusters_of, layout, rebuilt
from methods.shared.local_training import load_trainable, train, trainable_state
from methods.shared.objective import EVALUATION_BATCH, IGNORED, precise, scores
from testbed.seeds import derive

KIND = "clustered"
REPRESENTATION = "representation"
WINDOW = 3
"""Rounds of a rolling mean, and the fewest after which C grows."""
PATIENCE = 4
"""Rounds that C holds at least."""
RISE = 0.01
"""Rise of accuracy from round to round that is too little; ten times as much of the score."""
HELD_BACK = 10
"""One in so many samples is for validation."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    clusters: Annotated[int, msgspec.Meta(ge=FEWEST, le=MOST)] = 8
    """C of the first round: values that a matrix may have."""
    adaptive: bool = True
    """C grows; else it stays, as compute=modelled asks."""
    representations: Annotated[Literal["embeddings", "gram"], only_with("adaptive", True)] = (
        "embeddings"
    )
    """Sent for the score: features of validation samples, or the product of all with themselves."""
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    """Passes over a client's samples a round, as FedAvg trains."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Adam's in these, which begins anew each round; so do the others."""
    cluster_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    """The same with clustered weights."""
    cluster_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 5e-4
    """Adam's in these."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Samples."""
    public_source: Literal["held-out", "glyphs"] = "glyphs"
    """glyphs: drawn, as that data set's are. held-out: training images that no client then has."""
    public_samples: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 400
    """Public images that the server distils on."""
    distill_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    """The server's passes over them a round."""
    distill_batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    """Public images."""
    distill_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    """The server's Adam's."""
    temperature: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 2.0
    """T."""


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model has no classifier to take features before."""
    staged(model)
    if not causal(model):
        return
    if config.public_source == "glyphs":
        raise ValueError(
            "public_source = 'glyphs': a language model reads text; take public_source=held-out"
        )
    if config.adaptive and config.representations == "embeddings":
        raise ValueError(
            "representations = 'embeddings': a language model has features of each token, which "
            "are more than its weights; take representations=gram, or adaptive=false"
        )


def on_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Texts that no client then has, a score whose bytes are of features and not of tokens, and
    as many values a matrix as a model that is trained already bears."""
    return {
        **{"public_source": "held-out", "representations": "gram"},
        **{"clusters": 24, "local_epochs": 2, "cluster_epochs": 2},
        **{"public_samples": 200, "distill_epochs": 2},
    }


def check_samples(config: Config, samples: list[int]) -> None:
    """Raises ValueError where nothing is left to train on beside what validates."""
    if min(samples) < 2:
        raise ValueError(f"fedcompress holds back a client's samples, and one has {min(samples)}")


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model itself, of which all is trained.

    Raises:
        ValueError: it has no values, and C would follow from them.
    """
    if config.adaptive and any(each.is_meta for each in model.parameters()):
        raise ValueError(
            "adaptive = True: C follows what clients' models know, which compute=modelled has not; "
            "take adaptive=false"
        )
    return model


def public_samples(config: Config) -> int:
    return config.public_samples


def public_source(config: Config) -> str:
    return config.public_source


def other_metrics(config: Config) -> tuple[str, ...]:
    return ("clusters", "deflated_bytes", *(("score",) if config.adaptive else ()))


def server_sees(config: Config) -> str:
    seen = config.adaptive and config.representations == "embeddings"
    return "features of validation samples" if seen else ""


# Representations


def features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the classifier, rows of length 1 (n, width), and the logits (n, classes).

    Of text a row a token, (n T, width), and logits (n, T, classes).
    """
    inputs: list[Tensor] = []
    classifier = staged(model).head.classifier
    hook = classifier.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model.eval()
    with torch.no_grad(), hook:
        batch = TEXTS_AT_ONCE if causal(model) else EVALUATION_BATCH
        logits = torch.cat([model(some) for some in images.split(batch)])
    return F.normalize(precise(torch.cat(inputs).flatten(0, -2)), dim=1), logits


def gram(rows: Tensor) -> Tensor:
    """Their product with themselves, (width, width)."""
    return rows.T @ rows


def score(product: Tensor) -> float:
    """exp(-sum p log p), where p are the shares of the roots of its eigenvalues in their sum."""
    roots = torch.linalg.eigvalsh(product.double()).clamp_min(0).sqrt()
    shares = roots / roots.sum()
    return float(torch.special.entr(shares).sum().exp())


def grows(first: int, clusters: int, held: int, accuracy: list[float], score: list[float]) -> bool:
    """Whether C grows after rounds of such accuracies and scores, of which it ``held`` in so many.

    ``first``: C of the first round.
    """
    if clusters >= MOST or held < PATIENCE or len(accuracy) < WINDOW:
        return False
    rise = RISE / max(1, 2 * (clusters - first))
    return _risen(accuracy) <= rise and _risen(score) <= 10 * rise


def _risen(of: list[float]) -> float:
    return fmean(of[-WINDOW:]) - fmean(of[:-1][-WINDOW:])


# A round


def held_back(samples: int) -> int:
    """How many of a client's samples it does not train on."""
    return max(1, samples // HELD_BACK)


def representation(config: Config, model: nn.Module, samples: int) -> dict[str, Tensor]:
    """The representation of so many validation samples as it is sent, without values."""
    width = staged(model).head.classifier.in_features
    rows = width if config.representations == "gram" else samples
    return {config.representations: torch.empty(rows, width, device="meta")}


class Server:
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.images = shard.public
        self.seeding = torch.Generator().manual_seed(derive(seed, "clusters"))
        self.shuffling = torch.Generator().manual_seed(derive(seed, "distillation"))
        self.clusters = config.clusters
        self.held = 0
        """Rounds that C was what it is."""
        self.accuracy: list[float] = []
        """The clients' on their validation samples, in each round."""
        self.score: list[float] = []
        """That of their representations, likewise."""
        self.sent: dict[str, Tensor] = {}
        """The weights that the next round begins with, as they are sent."""

    async def round(self, fleet: Fleet) -> None:
        # 1. Everybody gets the clustered weights; 2. and 3. are the clients'.
        if not self.sent:
            self.sent = self.compress()
        await fleet.broadcast(KIND, self.sent)
        # 4. and 5. Updates enter the mean as they come; where none came, the model stays.
        mean, validation = WeightedMean(), WeightedMean()
        like, accept = layout(self.model, self.clusters), partial(rebuilt, self.model)
        async for update in fleet.gather(KIND, like=like, accept=accept):
            samples = fleet.samples[update.sender]
            with contextlib.suppress(Missed):
                if self.config.adaptive:
                    await self.hear(fleet, update.sender, held_back(samples), validation)
                mean.add(rebuilt(self.model, update.tensors), weight=samples)
        if found := mean.result():
            load_trainable(self.model, found)
            if self.config.adaptive:
                self.adapt(**validation.result())
            # 6. The mean has more values than that, and learns to have fewer.
            self.sent = self.compress()

    async def hear(self, fleet: Fleet, client: str, samples: int, into: WeightedMean) -> None:
        """Take in a client's representation. Raises Missed where none comes."""
        like = representation(self.config, self.model, samples)
        told = await fleet.receive(client, REPRESENTATION, like=like)
        accuracy = told.details.get("accuracy")
        if not isinstance(accuracy, float) or not 0 <= accuracy <= 1:
            raise fleet.refuse(client, f"accuracy = {accuracy!r}: must be a number from 0 to 1")
        (found,) = told.tensors.values()
        if self.config.representations == "embeddings":
            found = gram(found)
        # The mean of what is theirs by sample: their sum, but for a factor that does not matter.
        into.add({"accuracy": torch.tensor(accuracy), "product": found / samples}, weight=samples)

    def adapt(self, accuracy: Tensor, product: Tensor) -> None:
        """Let C grow where more rounds with the present one promise little."""
        self.held += 1
        self.accuracy.append(float(accuracy))
        self.score.append(score(product))
        if grows(self.config.clusters, self.clusters, self.held, self.accuracy, self.score):
            self.clusters, self.held = self.clusters + 1, 0

    def compress(self) -> dict[str, Tensor]:
        """Cluster the model's weights so that it predicts what it did; what is sent of it."""
        config = self.config
        labels = predict(self.model, self.images)
        student = Clustered(self.model, self.clusters, self.seeding)
        digest(
            student,
            self.images,
            labels,
            lambda scores, soft: kd_loss(scores, soft, config.temperature) / config.temperature**2,
            adam(student, config.distill_learning_rate),
            epochs=config.distill_epochs,
            batch_size=config.distill_batch_size,
            generator=self.shuffling,
        )
        return student.strip()

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        metrics = scores(self.model, inputs, targets)
        if self.score:
            metrics["score"] = self.score[-1]
        values = [each.flatten().view(torch.uint8) for each in trainable_state(self.model).values()]
        deflated = len(zlib.compress(b"".join(each.numpy().tobytes() for each in values)))
        return metrics | {"clusters": self.clusters, "deflated_bytes": deflated}


class Client:
    received = ("model",)

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.shard = shard
        self.shuffling = torch.Generator().manual_seed(derive(seed, "batches"))
        self.seeding = torch.Generator().manual_seed(derive(seed, "clusters"))
        self.order_seed = derive(seed, "validation")

    def round(self, peer: Peer) -> None:
        # 1. Start from the server's weights.
        sent = peer.receive(KIND, accept=partial(rebuilt, self.model)).tensors
        load_trainable(self.model, rebuilt(self.model, sent))
        # 2. Train all but what validates; 3. and then with clustered weights.
        config, (own, validation) = self.config, self.split()
        self.train(self.model, own, config.local_epochs, config.learning_rate)
        clustered = Clustered(self.model, clusters_of(sent), self.seeding)
        self.train(clustered, own, config.cluster_epochs, config.cluster_learning_rate)
        # 4. Send the values and which weight has which, and what the model makes of the rest.
        peer.send(KIND, clustered.strip())
        if config.adaptive:
            found, logits = features(self.model, validation.inputs)
            counts = validation.targets != IGNORED
            right = (logits.argmax(dim=-1) == validation.targets)[counts].float().mean()
            kind = config.representations
            told: dict[str, Tensor] = {kind: gram(found) if kind == "gram" else found}
            peer.send(REPRESENTATION, told, accuracy=float(right))

    def train(self, model: nn.Module, shard: Shard, epochs: int, learning_rate: float) -> None:
        train(
            model,
            shard,
            adam(model, learning_rate),
            epochs=epochs,
            batch_size=self.config.batch_size,
            generator=self.shuffling,
        )

    def split(self) -> tuple[Shard, Shard]:
        """Samples to train on, and those to validate with: the same in every round."""
        images, labels = self.shard.inputs, self.shard.targets
        generator = torch.Generator().manual_seed(self.order_seed)
        order = torch.randperm(len(labels), generator=generator)
        held = held_back(len(labels))
        trained, rest = (
            self.shard._replace(inputs=images[some], targets=labels[some])
            for some in (order[held:], order[:held])
        )
        return trained, rest


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Both ways the weights in the fewest clusters; up the least representation besides."""

    def size(like: Mapping[str, Tensor]) -> int:
        return sum(each.numel() * each.element_size() for each in like.values())

    down = size(layout(model, config.clusters))
    return down + config.adaptive * size(representation(config, model, 1)), down


def client_flops(config: Config, model: nn.Module, image: Tensor) -> float:
    """Each epoch: the model forward and backward; forward alone of what validates."""
    validates = 1 / HELD_BACK
    epochs = config.local_epochs + config.cluster_epochs
    trained = (1 - validates) * epochs * flops.step(model, image, model)
    return trained + config.adaptive * validates * flops.forward(model, image)
