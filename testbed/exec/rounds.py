"""Rounds of programs, by lines of their output in which a regular expression is found."""

import time
from collections.abc import Callable

from testbed import outside, time_limit
from testbed.exec.output import Line
from testbed.network.topology import SERVER
from testbed.record import events
from testbed.record.events import Event
from testbed.run.ledger import RunFailed

LINE_LIMIT_S = 1.0
"""Of this process's computing, for the search in a line."""


class Rounds:
    """Tells of rounds by the lines of the first node that prints one that matches.

    A line begins one, and ends the one before; the same text of the expression's first group again
    does not.
    """

    def __init__(
        self,
        regex: str | None,
        record: Callable[[str, Event], None],
        clients: Callable[[], tuple[int, int]],
    ) -> None:
        """``clients``: how many have not failed, and how many have."""
        self._regex = None if regex is None else outside.regex(regex)
        self._record, self._clients = record, clients
        self._node: str | None = None
        self._last: str | None = None
        self._count = 0
        self._began_s: float | None = None
        """None where none is open."""

    @property
    def open(self) -> int | None:
        """The number of the round that lasts, from 1."""
        return None if self._began_s is None else self._count

    def take(self, line: Line) -> None:
        """Look for a round in a line.

        Raises:
            RunFailed: that takes too long, as of some expressions it may take for ever.
        """
        if self._regex is None or self._node not in (None, line.node):
            return
        try:
            with time_limit.computing(LINE_LIMIT_S):
                found = self._regex.search(line.text)
        except time_limit.TooLong as error:
            regex, self._regex = self._regex.pattern, None
            raise RunFailed(
                f"round_regex = {regex!r}: {error} for one line of {line.node} "
                f"({len(line.text)} characters); write it without repeats of repeats"
            ) from None
        if found is None:
            return
        self._node = line.node
        number = found[1] if found.re.groups else None
        if number is not None and number == self._last:
            return
        self._last = number
        self.end()
        self._count += 1
        self._began_s = time.monotonic()
        self._record(SERVER, events.RoundStarted(round=self._count))

    def end(self) -> None:
        """End the round that lasts, if one does."""
        if self._began_s is None:
            return
        seconds, self._began_s = round(time.monotonic() - self._began_s, 6), None
        well, failed = self._clients()
        ended = events.Round(
            round=self._count, seconds=seconds, metrics={}, clients_ok=well, clients_failed=failed
        )
        self._record(SERVER, ended)
