"""Clocks of several hosts in one record: what nodes say of times, by the driver's clock.

A host's nodes go by the driver's clock as it was known when the run began. Both clocks drift; by
what is known of them since, each second anew, a time is put right as it is written. Pure.
"""

from collections.abc import Mapping
from typing import NamedTuple

from testbed.record.events import Event, Message, Reduced


class HostClock(NamedTuple):
    """Error of the times that a host's nodes tell."""

    behind_s: float
    """By how much they are less than the driver's clock has it."""
    error_s: float
    """Bound of the error of that."""


EXACT = HostClock(0.0, 0.0)
"""The driver's own."""


class HostClocks:
    """Puts times right by the host of the node that they are of."""

    def __init__(self, host_of: Mapping[str, str]) -> None:
        """``host_of``: by each node's name the host that has it."""
        self._host_of = host_of
        self.clocks: Mapping[str, HostClock] = {}
        """As of now, by host; those that are not there are right."""

    def correct(self, node: str, event: Event) -> None:
        """Change the times in ``node``'s event, of which it has none that are the driver's.

        ``sent_ns`` of a message is by its sender's clock, the others are by the node's own.
        """
        if isinstance(event, Message):
            event.sent_ns += self._behind_ns(event.peer)
            event.received_ns += self._behind_ns(node)
        elif isinstance(event, Reduced):
            behind_ns = self._behind_ns(node)
            event.began_ns += behind_ns
            event.connected_ns += behind_ns
            event.ended_ns += behind_ns

    def _behind_ns(self, node: str) -> int:
        return round(1e9 * self.clocks.get(self._host_of.get(node, ""), EXACT).behind_s)


def since_began(offset_s: float, error_s: float, ahead_s: float, dilation: float) -> HostClock:
    """The clock of a host whose nodes were told ``ahead_s``, in seconds of the run's.

    ``offset_s``: its monotonic clock less the driver's, and the bound of the error of that;
    ``ahead_s``: the driver's less its own, as it was known when the run began, by which they go.
    """
    return HostClock((-offset_s - ahead_s) / dilation, error_s / dilation)
