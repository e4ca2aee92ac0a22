"""Methods: one file each, with Config, Server and Client. Adding one touches no other file.

What a method file holds:

``Config``
    A frozen Struct of the method's options, each with unit, range and default.
``Server(config, model, shard, seed)``
    ``model`` (its present global model, or None where there is none), ``async round(fleet)`` and
    ``evaluate(inputs, targets)``: metrics by name, numbers or tensors of one element.
``Client(config, model, shard, seed)``
    ``round(peer)``: its part in one round, a plain function that may block. Where clients keep
    models of their own, also ``evaluate(inputs, targets)``: the mean over clients joins the
    server's metrics as ``client_accuracy`` and so on. With ``--local-test`` each is asked about
    its ``shard.test`` too, and the mean joins as ``client_local_accuracy`` and so on.

``seed`` is the node's own: no two nodes draw the same from it. Where a class draws for more than
one purpose, ``testbed.seeds.derive`` gives each a stream. Torch's, numpy's and Python's own
generators are seeded likewise in every node before its class is made.

Server and Client last as long as the run, and a killed run goes on from what ``nodes.checkpoint``
kept of both after each round. What lasts in them from one round to the next must therefore be what
it knows: modules and optimizers that ``__init__`` has made, generators, tensors, numbers, text,
containers of these, and objects of classes that the method's file defines or imports. It says so
where something is not.

What a method's file imports is there before the nodes are forked from one process, and they share
it. What torch imports only as it is used, such as its compiler, a file is to import itself, or each
client spends its round on that.

``Client.received`` (optional)
    Names of attributes, with modules in them, whose trainable parameters are overwritten in every
    round before they are read. They are not kept.
``check_samples(config, samples)`` (optional)
    Raises ValueError where the method cannot train on so many: ``samples`` has each client's count.
    Asked before anything starts, with the least there can be, and again before a node starts.
``check(config, model)`` (optional)
    Raises ValueError where the method cannot train such a model. Asked before anything starts: the
    model is on the meta device, shapes without values.
``adapt(config, model)`` (optional)
    The model as this method trains it, adapters and all. Like loading and importing it is done
    once, before the nodes are forked, and they share what they do not write.
``on_text(given)`` (optional)
    Defaults of options, by name, on a data set of text, in place of Config's. ``given``: the
    options that the run was given, not checked yet, by which they may go.
``public_samples(config)`` (optional)
    How many unlabelled images the server and all clients are to have in common.
``public_source(config)`` (optional)
    Where they come from: "held-out" of the training set, so that no client has them of its own
    (the default), or "glyphs", drawn from a font.
``server_sees(config)`` (optional)
    What the server gets of clients' samples themselves, such as "activations and labels", beside
    what was learnt from them. Tables of several methods say it.
``other_metrics(config)`` (optional)
    Names of metrics that it has beside those of the model, such as "kept", for a run's ``target``.
``peer_to_peer`` (optional)
    True: clients also speak to one another, ``to`` and ``sender`` naming "client-1" and so on,
    over the uplink of one and the downlink of the other.
``asynchronous`` (optional)
    True: rounds do not wait for all that was asked in them (``keep_busy``).
``stageable`` (optional)
    Ways, "up" and "down", of which it says with ``base`` what its messages are the difference from,
    so that payload stages (``methods.payload``) can work on that.
``check_stages(up, down)`` (optional)
    Raises ValueError where stages of these chains make no sense of what it sends.
``staged_shapes(config, model, way)`` (optional)
    Shapes of the tensors that have a ``base`` that way; if it is not there, of all that the model
    learns, as ``adapt`` left it. The model is on the meta device.
``all_reduce(config)`` (optional)
    Says that a round is the mean, weighted by samples, of what ``Client.update(start)`` returns
    first, and that the clients may take it among themselves (``--transport=gloo``); raises
    ValueError with options that speak against it. What ``update`` returns beside it, numbers by
    name, is for ``Server.take(update, fleet)``, which says whether an update may enter;
    ``Server.metrics()`` joins what a client says of the model.
``traffic(config, model)`` (optional)
    Least payload bytes that a client sends and receives in a round, as a pair. With it a run whose
    transfers cannot end within its limits is refused before a node starts.
``client_flops(config, model, image)`` (optional)
    Floating-point operations of a client's part in a round for each sample that it has, by
    ``methods.shared.flops``; ``image`` is a batch of one. Counted once, before nodes are forked.
    Where rounds differ, a list: of rounds 1, 2, ..., and the last one of all that follow.
``class_flops(config, model, image)`` (optional)
    The same for each class of which it has samples.
``fixed_flops(config, model, image)`` (optional)
    The same of what it does however many samples it has, such as with public images.

``methods.shared.local_training.trainable_state`` is what a model learns: its trainable
parameters, and buffers such as those of batch normalisation. A buffer that no client changes is
best not persistent: it is not sent then.

A fleet and a peer are all that a method sees of the network: no sockets, clocks or namespaces.
Split training talks to one client at a time (``send``, ``receive``), averaging to all at once
(``broadcast``, ``gather``).
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # Naming the methods must not cost the seconds that torch takes to import.
    from torch import Tensor

    from methods.payload.coder import Base
    from testbed.transport.wire import Detail, Message

Accept = Callable[["Mapping[str, Tensor]"], object]
"""Asked about a message's tensors; raises ValueError with what is wrong with them."""
Flops = float | Sequence[float]
"""Of every round, or of each, and the last of all that follow."""
VALUES: Mapping[str, Tensor] = {}
"""The base of tensors that mean something by themselves, such as logits: none."""
UPDATE: Mapping[str, Tensor] = {}
"""The base of tensors that are a difference already."""
_NOT_METHODS = {"__init__"}


class Shard(NamedTuple):
    """Data of a node: its own, none at the server, and what all have in common."""

    inputs: Tensor
    """Images, float32 (n, channels, height, width) in 0..1, or ids of text, int64 (n, tokens)."""
    targets: Tensor
    """Labels, int64 (n,), or the ids that come next, int64 (n, tokens)."""
    public: Tensor
    """Inputs without targets, (m, ...), the same for every node, in one order."""
    client: int
    """The client's number, from 1; 0 is the server."""
    test: tuple[Tensor, Tensor] | None = None
    """Images and labels of the client's own that are held back, not to be trained on; None: the run
    asks for none (``--local-test``)."""


class Missed(Exception):
    """A client's part of this round will not come; the text is the reason, already recorded."""


class Fleet(Protocol):
    """The server's view of its clients in the present round."""

    @property
    def round(self) -> int:
        """Its number, from 1."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Those of the round that are still in the run."""

    @property
    def everyone(self) -> tuple[str, ...]:
        """All who are there and not missed yet, whether this round takes them or not.

        One that it does not take enters the round with the first message that it is sent.
        """

    @property
    def joined(self) -> int:
        """How many are in the run, whether this round takes them or not."""

    @property
    def sampling_rate(self) -> float:
        """The share drawn of those who could take part when the round began; above 0."""

    @property
    def samples(self) -> Mapping[str, int]:
        """Training samples of each client, at least 1."""

    async def send(
        self,
        client: str,
        kind: str,
        tensors: Mapping[str, Tensor],
        *,
        base: Base | None = None,
        **details: Detail,
    ) -> None:
        """Queue a message for one client. Raises Missed where it has left.

        ``base``: with VALUES, payload stages work on the tensors.
        """

    async def broadcast(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        *,
        clients: Sequence[str] | None = None,
        base: Base | None = None,
        **details: Detail,
    ) -> Mapping[str, Tensor]:
        """Queue the same message for every client; the tensors are encoded once.

        ``clients``: for these, such as ``everyone``; None: for the round's.
        ``base``: "held", and payload stages work on the difference from what each client was sent
        last of this kind, or VALUES, and they work on the tensors. Returned is what clients have
        then: the tensors, but for what stages lose.
        """

    async def receive(
        self,
        client: str,
        kind: str,
        like: Mapping[str, Tensor] | None = None,
        *,
        accept: Accept | None = None,
        base: Base | None = None,
    ) -> Message:
        """The client's next message of this kind and round.

        ``accept``: where names or lengths depend on values, or values have bounds. ``base``: as the
        client's ``send`` has it.

        Raises Missed where the client left, the round's limit passed, or the message cannot be
        taken: with ``like``, its tensors differ from that in names, shapes or dtypes; with either,
        they are not finite; ``accept`` raises ValueError.
        """

    def refuse(self, client: str, reason: str) -> Missed:
        """An error to raise: what this client sent cannot be taken; recorded with why."""

    def gather(
        self,
        kind: str,
        like: Mapping[str, Tensor] | None = None,
        *,
        clients: Sequence[str] | None = None,
        accept: Accept | None = None,
        base: Base | None = None,
    ) -> AsyncIterator[Message]:
        """One message of this kind from every client, as they arrive; missed ones are left out.

        ``clients``: from these, whatever they did before; None: from the round's.
        """

    def keep_busy(
        self, kind: str, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> AsyncIterator[Message]:
        """Answers as they come, also to what earlier rounds asked; ``message.round`` says which.

        Whoever is free is sent ``tensors`` and works on them, at most as many at once as the run
        takes in a round, each at most once a round. Leave the loop to end the round: who is still
        at work answers in a later one. It ends by itself at the round's limit, and where nobody is
        at work. For asynchronous methods. Answers have UPDATE as their base.
        """


class Peer(Protocol):
    """A client's view of the server, and of its neighbours, in the present round."""

    @property
    def round(self) -> int:
        """Its number, from 1."""

    def send(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        *,
        to: str = "server",
        base: Base | None = None,
        **details: Detail,
    ) -> None:
        """Queue a message; its tensors must not change until the receiver has answered it.

        ``base``: what the server has of each tensor, such as the model that it sent, and payload
        stages work on the difference; VALUES, and they work on the tensors; None, and none does.
        To a neighbour that is lost or away nothing is sent.
        """

    def receive(
        self,
        kind: str,
        like: Mapping[str, Tensor] | None = None,
        *,
        sender: str = "server",
        accept: Accept | None = None,
        base: Base | None = None,
    ) -> Message:
        """The sender's next message of this kind and round; ``like`` and the rest as for a Fleet.

        Raises Missed where a neighbour's does not come within four fifths of the round's limit,
        and at once where the neighbour is lost or away, as the server says. Where the server's
        cannot be taken, the round is over for this client, and the server is told why.
        """

    def refuse(self, reason: str, *, sender: str = "server") -> Exception:
        """An error to raise: what the sender sent cannot be taken.

        The server is told; a neighbour is missed, and the error is Missed.
        """


def names() -> list[str]:
    """Every method there is: one file, one method."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_METHODS
    )


@dataclass(frozen=True)
class Method:
    """The parts of a method's file, and what stands in for those that it leaves out."""

    Config: Any
    Server: Any
    Client: Any
    check: Callable[..., None] = lambda config, model: None
    check_samples: Callable[..., None] = lambda config, samples: None
    adapt: Callable[..., Any] = lambda config, model: model
    on_text: Callable[..., Mapping[str, Any]] = lambda given: {}
    public_samples: Callable[..., int] = lambda config: 0
    public_source: Callable[..., str] = lambda config: "held-out"
    server_sees: Callable[..., str] = lambda config: ""
    other_metrics: Callable[..., tuple[str, ...]] = lambda config: ()
    peer_to_peer: bool = False
    asynchronous: bool = False
    stageable: tuple[str, ...] = ()
    check_stages: Callable[..., None] = lambda up, down: None
    staged_shapes: Callable[..., Sequence[Sequence[int]]] | None = None
    all_reduce: Callable[..., None] | None = None
    traffic: Callable[..., tuple[int, int]] | None = None
    client_flops: Callable[..., Flops] | None = None
    class_flops: Callable[..., Flops] = lambda config, model, image: 0.0
    fixed_flops: Callable[..., Flops] = lambda config, model, image: 0.0


def load(name: str) -> Method:
    """The method of that file."""
    module = vars(importlib.import_module(f"{__name__}.{name}"))
    parts = [each.name for each in fields(Method)]
    return Method(**{part: module[part] for part in parts if part in module})
