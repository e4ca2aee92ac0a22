"""Standstill of an elastic clock that nobody keeps: no limit of the run's own would end it."""

import math
import time

from testbed import clock
from testbed.links.interface import LinkError, Network

LIMIT_S = 30.0
"""Of this machine, that a halted link process may stop the clock for."""
LOOK_S = 5.0


class Standstill:
    """Watches whether the clock goes on."""

    def __init__(self) -> None:
        self.wait_s = math.inf if clock.virtual() is None else LOOK_S
        """Seconds of this machine after which to look again."""
        self._seen_s = clock.monotonic()
        self._since_s = time.monotonic()

    def check(self, network: Network) -> None:
        """Raises LinkError where the run's clock will not go on."""
        now_s, here_s = clock.monotonic(), time.monotonic()
        if now_s != self._seen_s:
            self._seen_s, self._since_s = now_s, here_s
        if clock.virtual() is None or here_s - self._since_s < LIMIT_S:
            return
        if halted := network.halted():
            raise LinkError(f"{halted}, and with it for {LIMIT_S:g} s the run's clock")
