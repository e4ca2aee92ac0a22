"""A run's folder as its report needs it, of a killed or unfinished run too."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from testbed import files
from testbed.config_error import ConfigError, excerpt
from testbed.record import events, recovery, spans
from testbed.record.events import Event
from testbed.record.reading import EVENTS, Damaged
from testbed.record.run_summary import Summary
from testbed.record.spans import Span
from testbed.record.summary import SummaryBuilder

MOST_TRACEBACKS = 3
AS_IT_SHOULD = "exited with 0"
BYTES = 1
"""Place of bytes among a direction's counters."""


class Round(NamedTuple):
    """One round that began."""

    number: int
    began_ns: int
    ended_ns: int
    """Of its evaluation; of the last event, if it did not end."""
    finished: bool
    spans: dict[str, list[Span]]
    """By node, of those that took part."""
    last: str | None
    """The client whose last message came last."""


class Reading(NamedTuple):
    """The links' counters at a moment of a run of programs."""

    t: float
    """Seconds since the command."""
    bytes: list[tuple[int, int]]
    """Of each node, the server first, up and down."""


class Story(NamedTuple):
    """The story that a report tells."""

    summary: Summary
    """As summary.json, and of the same moment as the rest."""
    config: dict[str, Any]
    rounds: list[Round]
    overtaken: dict[str, list[str]]
    """By client, why it did not take part in some round."""
    tracebacks: list[tuple[str, str]]
    """(node, traceback), the first of them."""
    exits: Counter[tuple[str, str]]
    """(node, how it ended) of those that did not end as they should."""
    links: events.Links | None
    """The last ones; None before there were any."""
    shaped: dict[str, list[events.Shaped]]
    """By node, how its link of netem has changed since."""
    readings: list[Reading]
    """Of a run of programs; a method's has rounds."""
    torn_lines: int
    """Lines of events.jsonl that are no event: the last one of a killed run."""


def read(folder: Path) -> Story:
    """Read events.jsonl.

    Raises:
        ConfigError: ``folder`` is no run's, or its events are not of this version.
    """
    path = folder / EVENTS
    try:
        with files.opened(path) as file, refusing(f"RUN {folder}: {EVENTS}"):
            return gather(recovery.sifted(file))
    except OSError as error:
        raise ConfigError(
            f"RUN {folder}: cannot read {path.name} ({error.strerror}); name the folder of a run, "
            "such as one that `cli.py results` lists"
        ) from error


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Within, figures that no run has end in one sentence that names ``what`` is read.

    Raises:
        ConfigError: it could not be made sense of.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        kind = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
        why = f"{kind}{excerpt(error)}"
        raise ConfigError(f"{what} is not as this version writes it ({why})") from error


def gather(record: Iterable[Event | None]) -> Story:
    """The story of these events; None is a torn line."""
    teller = _Teller()
    torn = 0
    for event in record:
        if event is None:
            torn += 1
        else:
            teller.take(event)
    return teller.story(torn)


class _Teller:
    def __init__(self) -> None:
        self._tally = SummaryBuilder()
        self._timeline = spans.Timeline()
        self._config: dict[str, Any] = {}
        self._begun: set[int] = set()
        self._last_ns = 0
        """When the last message came."""
        self._overtaken: dict[str, list[str]] = defaultdict(list)
        self._tracebacks: list[tuple[str, str]] = []
        self._exits: Counter[tuple[str, str]] = Counter()
        self._links: events.Links | None = None
        self._shaped: dict[str, list[events.Shaped]] = defaultdict(list)
        self._readings: list[Reading] = []
        self._has_programs = False
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            events.Run: self._on_run,
            events.Certified: self._on_reading,
            events.Wire: self._on_reading,
            events.Links: self._on_links,
            events.Shaped: self._on_shaped,
            events.Message: self._on_message,
            events.RoundStarted: self._on_round_started,
            events.Overtaken: self._on_overtaken,
            events.Failed: self._on_failed,
            events.Ended: self._on_ended,
        }

    def take(self, event: Event) -> None:
        self._tally.take(event)
        self._timeline.take(event)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _on_run(self, event: events.Run) -> None:
        self._config = event.config
        self._has_programs = bool(events.known(event.programs))

    def _on_reading(self, event: events.Certified | events.Wire) -> None:
        if self._has_programs:
            counted = [(up[BYTES], down[BYTES]) for up, down in event.counters]
            self._readings.append(Reading(event.t, counted))

    def _on_links(self, event: events.Links) -> None:
        self._links = event
        self._shaped.clear()

    def _on_shaped(self, event: events.Shaped) -> None:
        if self._links and self._links.qdiscs:
            self._shaped[event.node].append(event)

    def _on_message(self, event: events.Message) -> None:
        self._last_ns = max(self._last_ns, event.received_ns)

    def _on_round_started(self, event: events.RoundStarted) -> None:
        self._begun.add(event.round)

    def _on_overtaken(self, event: events.Overtaken) -> None:
        self._overtaken[event.node].append(event.reason)

    def _on_failed(self, event: events.Failed) -> None:
        if len(self._tracebacks) < MOST_TRACEBACKS:
            self._tracebacks.append((event.node, event.traceback))

    def _on_ended(self, event: events.Ended) -> None:
        if event.how != AS_IT_SHOULD:
            self._exits[event.node, event.how] += 1

    def story(self, torn_lines: int) -> Story:
        return Story(
            self._tally.summary(),
            self._config,
            [self._round(number) for number in sorted(self._begun)],
            dict(self._overtaken),
            self._tracebacks,
            self._exits,
            self._links,
            dict(self._shaped),
            self._readings,
            torn_lines,
        )

    def _round(self, number: int) -> Round:
        entry = self._timeline.rounds[number]
        finished = entry.seconds is not None
        began_ns = entry.began_ns
        if not finished:
            # Its spans are those until the last that is known.
            entry.seconds = max(1, self._last_ns - began_ns) / 1e9
        ended_ns = max(began_ns + 1, entry.ended_ns or 0)
        return Round(number, began_ns, ended_ns, finished, entry.spans(), _last(entry))


def _last(entry: spans.Round) -> str | None:
    arrivals = {
        client: max((message.received_ns for message in found if not message.down), default=0)
        for client, found in entry.within().items()
    }
    if not any(arrivals.values()):
        return None
    return max(arrivals, key=lambda client: arrivals[client])
