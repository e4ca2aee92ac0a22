"""A node's coder: the chains of its messages, and what lasts of them from round to round.

An update goes up as what it differs by from the model that the client was sent. Down, what a client
has is known only if it answered what it was sent last: it is sent the difference from that, and
everybody else the whole, of the same values. What a lossy chain could not say is in the next
difference. A chain of weights codes them themselves, and for all alike.

Both ends of a message draw from the same seed: of the run, the way, the client (up), the round, and
which of its kind the message is in that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from methods import VALUES
from methods.payload.chain import Chain, Memory, Size, is_coded
from testbed.seeds import derive

Base = Mapping[str, Tensor] | Literal["held"]
"""What a message is the difference from; "held": what its receiver was sent last of that kind."""


class Coded(NamedTuple):
    """Tensors to send, and what the sender remembers once they are sent."""

    tensors: Mapping[str, Tensor]
    memory: Memory


class Lasting:
    """Knowledge of a coder that lasts from one round to the next; kept with the method's state."""

    def __init__(self) -> None:
        self.memory: dict[str, Memory] = {}
        """Of what goes up, by kind."""
        self.spoke: dict[str, int] = {}
        """By kind, the round which that is of."""
        self.held: dict[str, dict[str, Tensor]] = {}
        """By kind: at a client what it was sent last, at the server what those have who have it."""
        self.holders: dict[str, list[str]] = {}
        """By kind, clients that answered what was sent last."""
        self.sent: dict[str, int] = {}
        """By kind, in which round that was."""
        self.counts: dict[str, list[int]] = {}
        """By way, client and kind: the last round, and how many messages were in it."""


class Coder:
    """Codes what one node sends and decodes what it receives."""

    def __init__(self, up: Chain, down: Chain, seed: int) -> None:
        """``seed``: the run's."""
        self.up, self.down = up, down
        self._seed = seed
        self.lasting = Lasting()

    def encode(
        self, kind: str, number: int, tensors: Mapping[str, Tensor], base: Base | None, client: str
    ) -> Coded:
        """A client's message up."""
        if base is None or base == "held" or not self.up:
            return Coded(tensors, {})
        seed = self._seed_of("up", client, kind, number)
        # Values that mean something by themselves have nothing to do with those of another batch.
        memory = None
        if base is not VALUES:
            missed = number - self.lasting.spoke.get(kind, number) - 1
            memory = self.up.aged(self.lasting.memory.get(kind, {}), max(0, missed))
        return Coded(*self.up.encode(tensors, base, seed, memory))

    def remember(self, kind: str, number: int, coded: Coded) -> None:
        """It has been sent."""
        if coded.memory:
            self.lasting.memory[kind], self.lasting.spoke[kind] = coded.memory, number

    def decode(
        self,
        way: Literal["up", "down"],
        kind: str,
        number: int,
        tensors: Mapping[str, Tensor],
        like: Mapping[str, Tensor],
        base: Base | None,
        client: str,
    ) -> tuple[dict[str, Tensor], list[Size]]:
        """A message that has arrived, and its bytes before and after each stage.

        Raises:
            ValueError: it is not like that.
        """
        chain = self.up if way == "up" else self.down
        if base is None or not chain:
            return dict(tensors), []
        if base == "held" and not is_coded(tensors):
            return self._hold(kind, dict(tensors)), []
        of = self.lasting.held.get(kind, {}) if base == "held" else base
        if base == "held" and self._by_difference and not of:
            raise ValueError("a difference from what was never sent")
        seed = self._seed_of(way, client, kind, number)
        found = chain.decode(tensors, like, of, seed)
        sizes = chain.sizes(tensors, like)
        return (self._hold(kind, found) if base == "held" else found), sizes

    def _hold(self, kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._by_difference:
            self.lasting.held[kind] = tensors
        return tensors

    @property
    def _by_difference(self) -> bool:
        """Whether what goes down to all is what it differs by from what they hold."""
        return self.down.lossy and not self.down.of_weights

    def encode_values(
        self, kind: str, number: int, tensors: Mapping[str, Tensor], client: str = ""
    ) -> Mapping[str, Tensor]:
        """The server's message down, to one client or all, whose values need no base."""
        if not self.down:
            return tensors
        return self.down.encode(tensors, {}, self._seed_of("down", client, kind, number))[0]

    def encode_model(
        self, kind: str, number: int, tensors: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor]]:
        """A message to all: the difference, for ``holders``, and the whole, for all others.

        Without a difference the whole is for everybody. The whole is what everybody then has.
        """
        if not self.down:
            return None, tensors
        seed = self._seed_of("down", "", kind, number)
        if not self._by_difference:
            for_all, _ = self.down.encode(tensors, {}, seed)
            if not self.down.lossy:
                return for_all, tensors
            return for_all, self.down.decode(for_all, tensors, {}, seed)
        base = self.lasting.held.get(kind)
        coded = None
        if base is None:
            whole = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        else:
            coded, _ = self.down.encode(tensors, base, seed)
            whole = self.down.decode(coded, tensors, base, seed)
        self.lasting.held[kind], self.lasting.sent[kind] = whole, number
        return coded, whole

    def may_take(self, kind: str, client: str) -> bool:
        """Whether a client can decode what ``encode_model`` coded."""
        return not self._by_difference or client in self.lasting.holders.get(kind, [])

    def sent(self, kind: str) -> None:
        """All have been sent it: from now on those have it who answer."""
        self.lasting.holders[kind] = []

    def answered(self, client: str, number: int) -> None:
        """An answer came to what a client was sent in that round, which it therefore has."""
        for kind, sent in self.lasting.sent.items():
            if sent == number and client not in self.lasting.holders[kind]:
                self.lasting.holders[kind].append(client)

    def _seed_of(self, way: str, client: str, kind: str, number: int) -> int:
        key = f"{way} {client} {kind}"
        last, count = self.lasting.counts.get(key, (number, 0))
        count = count + 1 if last == number else 1
        self.lasting.counts[key] = [number, count]
        # What goes down may go to all: its count is the same at each of them.
        return derive(self._seed, "stages", client if way == "up" else "", number, kind, count)


def none() -> Coder:
    """A coder without stages."""
    return Coder(Chain([]), Chain([]), 0)
