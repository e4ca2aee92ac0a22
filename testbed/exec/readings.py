"""Readings of a run of programs as it goes: its links' counters, and a summary now and then."""

import time

from testbed.exec.rounds import Rounds
from testbed.links.interface import LinkCounters, Network
from testbed.run.ledger import Ledger
from testbed.run.meters import Meters

TICK_S = 0.1
"""Between two readings of the counters, and of the programs' output."""
MOST_READINGS = 3000
"""From as many ticks on, readings are as much farther apart as the run is longer."""
SUMMARY_S = 1.0
SETTLE_LIMIT_S = 0.5
"""How long what programs have left in their sockets gets to cross the links."""


class Readings:
    """Reads the counters of a network that programs are behind."""

    def __init__(self, network: Network, meters: Meters, ledger: Ledger, rounds: Rounds) -> None:
        self._network, self._meters, self._ledger = network, meters, ledger
        self._rounds = rounds
        self._read: list[LinkCounters] | None = None
        """As they were recorded last."""
        self._began_s = time.monotonic()
        self._read_s = self._kept_s = 0.0

    def take(self) -> None:
        """Read what is due."""
        now_s = time.monotonic()
        apart_s = max(TICK_S, (now_s - self._began_s) / MOST_READINGS)
        if now_s - self._read_s >= apart_s and (found := self._network.counters()) != self._read:
            self._read, self._read_s = found, now_s
            self.record()
        if now_s - self._kept_s >= SUMMARY_S:
            self._kept_s = now_s
            self._ledger.recorder.keep_summary(self._ledger.tally.summary)

    def settle(self) -> None:
        """Wait until nothing moves any more, or for a while."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        before = None
        while (now := self._network.counters()) != before and time.monotonic() < deadline:
            before = now
            time.sleep(TICK_S)

    def record(self) -> None:
        """Record the counters as they are."""
        self._meters.record_wire(self._rounds.open)
