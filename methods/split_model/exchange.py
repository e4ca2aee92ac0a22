"""Exchange of one batch of split training, at both ends.

Labels shared, one round trip: the client sends its head's output and the labels ("smashed"), the
server answers with the loss's gradient of that output ("gradient"). Labels private, two round
trips: the server's output goes back ("smashed"), the client's tail computes the loss and sends its
gradient ("gradient"), and the server answers with that of its own input ("gradient").

What a head puts out, and its gradient, travel as ``codings`` says; what a tail is given and its
gradient as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

# ``backward`` with a gradient that is given takes it: imported here, and not by every node.
import torch.fx.experimental.symbolic_shapes
from torch import Tensor, nn
from torch.nn import functional as F

from methods import VALUES, Fleet, Peer, Shard
from methods.split_model.coding import PLAIN, Codings
from methods.split_model.order import AtOnce, Order


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor


def sizes(samples: int, epochs: int, batch_size: int) -> list[int]:
    """Samples of each batch that ``batches`` makes."""
    whole, rest = divmod(samples, batch_size)
    return epochs * ([batch_size] * whole + [rest] * bool(rest))


def batches(
    shard: Shard, epochs: int, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """The shard's samples, shuffled anew each epoch."""
    for _ in range(epochs):
        order = torch.randperm(len(shard.labels), generator=generator)
        for chosen in order.split(batch_size):
            yield Batch(shard.images[chosen], shard.labels[chosen])


def train_on(
    peer: Peer,
    head: nn.Module,
    tail: nn.Module | None,
    batch: Batch,
    *,
    class_token: bool = False,
    codings: Codings = PLAIN,
) -> None:
    """The client's end: leaves the batch's gradients in the parameters of its parts.

    ``class_token``: the server sends back the first token of each image alone.
    """
    tokens = head(batch.images)
    coded, rebuilt = codings.up.code(tokens.detach())
    if tail is None:
        peer.send("smashed", {**coded, "labels": batch.labels}, base=VALUES)
    else:
        peer.send("smashed", coded, base=VALUES)
        back = tokens[:, :1] if class_token else tokens
        message = peer.receive("smashed", like={"tokens": back}, base=VALUES)
        answer = message.tensors["tokens"].requires_grad_()
        F.cross_entropy(tail(answer), batch.labels).backward()
        assert answer.grad is not None
        peer.send("gradient", {"tokens": answer.grad}, base=VALUES)
    down = codings.down
    message = peer.receive("gradient", like=down.like(tokens), accept=down.check, base=VALUES)
    gradient = down.decode(message.tensors, tokens)
    if codings.correction:
        gradient = gradient + codings.correction * (tokens.detach() - rebuilt)
    tokens.backward(gradient)


async def serve(
    fleet: Fleet,
    client: str,
    part: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    arriving: list[Tensor],
    *,
    private: bool,
    order: Order | None = None,
    codings: Codings = PLAIN,
) -> None:
    """The server's end of all of a client's batches.

    ``optimizer``: of ``part``; None leaves it as it is. ``arriving``: what each batch's tokens are
    to be like. ``private``: no labels come with them. ``order``: where ``part`` is not the client's
    alone.

    Raises:
        Missed: the client's part will not come, or cannot be taken.
    """
    order = order or AtOnce()
    part.train()
    for like in arriving:
        expected = codings.up.like(like)
        if not private:
            expected["labels"] = torch.empty(len(like), dtype=torch.int64, device="meta")
        message = await fleet.receive(
            client, "smashed", like=expected, accept=codings.up.check, base=VALUES
        )
        arrived = message.tensors
        tokens = codings.up.decode(arrived, like).requires_grad_()
        async with order.turn(client):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
            output = part(tokens)
            if private:
                await fleet.send(client, "smashed", {"tokens": output}, base=VALUES)
                answer = await fleet.receive(
                    client, "gradient", like={"tokens": output}, base=VALUES
                )
                output.backward(answer.tensors["tokens"])
            else:
                labels, classes = arrived["labels"], output.shape[1]
                if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                    raise fleet.refuse(client, f"a label outside 0 to {classes - 1}")
                F.cross_entropy(output, labels).backward()
            if optimizer is not None:
                optimizer.step()
        assert tokens.grad is not None
        gradient, _ = codings.down.code(tokens.grad)
        await fleet.send(client, "gradient", gradient, base=VALUES)
