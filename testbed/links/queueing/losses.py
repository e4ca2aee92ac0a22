"""Loss models of a line: each packet by itself, in bursts, or all."""

from collections.abc import Callable
from random import Random

from testbed.network.direction import Direction, GilbertElliott

Lost = Callable[[], bool]
"""Decides about the next packet."""


def lost_by(direction: Direction, random: Random) -> Lost | None:
    """The loss model of ``direction``; None where nothing is lost."""
    if direction.outage:
        return lambda: True
    if direction.gilbert_elliott is not None:
        return _InBursts(direction.gilbert_elliott, random)
    if direction.loss_percent:
        chance, draw = direction.loss_percent / 100, random.random
        return lambda: draw() < chance
    return None


class _InBursts:
    """A chain of a good and a bad state that steps once a packet.

    The order is that of netem's loss_gilb_ell: at each packet the chain first draws its next state,
    then the packet is lost with the chance of the state before that step. It begins good.
    """

    __slots__ = ("_draw", "_is_bad", "_loss", "_turn")

    def __init__(self, chain: GilbertElliott, random: Random) -> None:
        self._draw = random.random
        self._is_bad = False
        # Both by state: of going to the other one, of losing a packet.
        self._turn = (chain.good_to_bad_percent / 100, chain.bad_to_good_percent / 100)
        self._loss = (chain.good_loss_percent / 100, chain.bad_loss_percent / 100)

    def __call__(self) -> bool:
        state = self._is_bad
        self._is_bad = state ^ (self._draw() < self._turn[state])
        return self._draw() < self._loss[state]
