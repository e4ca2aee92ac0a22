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

from methods import VALUES, Fleet, Peer, Shard
from methods.shared.objective import IGNORED, loss
from methods.split_model.coding import PLAIN, Codings
from methods.split_model.order import AtOnce, Order


class Batch(NamedTuple):
    inputs: Tensor
    targets: Tensor


def sizes(samples: int, epochs: int, batch_size: int) -> list[int]:
    """Samples of each batch that ``batches`` makes."""
    whole, rest = divmod(samples, batch_size)
    return epochs * ([batch_size] * whole + [rest] * bool(rest))


def batches(
    shard: Shard, epochs: int, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """The shard's samples, shuffled anew each epoch."""
    for _ in range(epochs):
        order = torch.randperm(len(shard.targets), generator=generator)
        for chosen in order.split(batch_size):
            yield Batch(shard.inputs[chosen], shard.targets[chosen])


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
    tokens = head(batch.inputs)
    coded, rebuilt = codings.up.code(tokens.detach())
    if tail is None:
        peer.send("smashed", {**coded, "labels": batch.targets}, base=VALUES)
    else:
        peer.send("smashed", coded, base=VALUES)
        back = tokens[:, :1] if class_token else tokens
        message = peer.receive("smashed", like={"tokens": back}, base=VALUES)
        answer = message.tensors["tokens"].requires_grad_()
        loss(tail(answer), batch.targets).backward()
        assert answer.grad is not None
        peer.send("gradient", {"tokens": answer.grad}, base=VALUES)
    down = codings.down
    message = peer.receive("gradient", like=down.like(tokens), accept=down.check, base=VALUES)
    gradient = down.decode(message.tensors, tokens)
    if codings.correction:
        gradient = gradient + codings.correction * (tokens.detach() - rebuilt)
    tokens.backward(gradient)


def labels_of(targets: Tensor) -> Tensor:
    """The labels of one of such samples (n, ...): (1, ...), on the meta device."""
    return torch.empty((1, *targets.shape[1:]), dtype=torch.int64, device="meta")


async def serve(
    fleet: Fleet,
    client: str,
    part: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    arriving: list[Tensor],
    *,
    labels: Tensor | None,
    order: Order | None = None,
    codings: Codings = PLAIN,
) -> None:
    """The server's end of all of a client's batches.

    ``optimizer``: of ``part``; None leaves it as it is. ``arriving``: what each batch's tokens are
    to be like. ``labels``: what those of one sample are to be like, (1, ...); None: none come.
    ``order``: where ``part`` is not the client's alone.

    Raises:
        Missed: the client's part will not come, or cannot be taken.
    """
    order = order or AtOnce()
    part.train()
    for like in arriving:
        expected = codings.up.like(like)
        if labels is not None:
            expected["labels"] = labels.expand(len(like), *labels.shape[1:])
        message = await fleet.receive(
            client, "smashed", like=expected, accept=codings.up.check, base=VALUES
        )
        arrived = message.tensors
        tokens = codings.up.decode(arrived, like).requires_grad_()
        async with order.turn(client):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
            output = part(tokens)
            if labels is None:
                await fleet.send(client, "smashed", {"tokens": output}, base=VALUES)
                answer = await fleet.receive(
                    client, "gradient", like={"tokens": output}, base=VALUES
                )
                output.backward(answer.tensors["tokens"])
            else:
                truth, classes = arrived["labels"], output.shape[-1]
                asked = truth[truth != IGNORED]
                if not len(asked) or not 0 <= int(asked.min()) <= int(asked.max()) < classes:
                    raise fleet.refuse(client, f"a label outside 0 to {classes - 1}, or none")
                loss(output, truth).backward()
            if optimizer is not None:
                optimizer.step()
        assert tokens.grad is not None
        gradient, _ = codings.down.code(tokens.grad)
        await fleet.send(client, "gradient", gradient, base=VALUES)
