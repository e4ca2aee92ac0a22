"""Spans of what each node did in a round, from the times of its messages.

A client receives from a message's sending to its arrival, computes from there to its own next
sending, and sends from that to the arrival at the other end; the rest of the round it waits. The
server's are the same seen from there, and what it does before its first message and after the last
update is computing too. Where two overlap, each instant counts once, as the first that is going on
in SPANS: a node's four sum up to the round.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from testbed.network.topology import SERVER
from testbed.record import events
from testbed.record.events import Event
from testbed.record.run_summary import Spans, SpansOverClients

SPANS = ("compute", "receive", "send", "wait")
_WAIT = len(SPANS) - 1
_IN_ORDER = ("receive", "compute", "send", "wait")
_OF_A_ROUND = (
    *(events.Message, events.Reduced, events.Missed, events.Round),
    events.RoundStarted,
)
MOST_BEHIND = 1000
"""Rounds before that in which it comes, of which an answer of an asynchronous client is shown."""
MOST_ROWS = 200
"""Beyond as many clients a round's summary has no row for each."""


class Message(NamedTuple):
    """One message as one client sees it; one between two clients is two of these."""

    received_ns: int
    sent_ns: int
    down: bool
    """Whether the client received it."""
    bytes: int
    """All its frames."""
    with_server: bool

    @property
    def own_ns(self) -> int:
        """When the client had to do with it."""
        return self.received_ns if self.down else self.sent_ns


class Span(NamedTuple):
    kind: str
    began_ns: int
    ended_ns: int


class Round:
    """The messages of one round and when it was."""

    def __init__(self) -> None:
        self.messages: dict[str, list[Message]] = defaultdict(list)
        self.told_ns: int | None = None
        """When the supervisor heard of its beginning."""
        self.earlier: dict[str, list[Message]] = defaultdict(list)
        """Of an asynchronous method: the messages of rounds that a client answered here or later,
        and before which it was asked."""
        self.handed_on: dict[str, int] = defaultdict(int)
        """How many of a client's messages later rounds have."""
        self.seconds: float | None = None
        """None while it lasts."""
        self.complete = True
        """Nobody was waited for in vain."""
        self.reduced = False
        """Clients had an all-reduce in it."""
        self.taken = 0
        """How many events there have been of it."""

    @property
    def began_ns(self) -> int:
        """The server's word of it comes a little late: a message may have been sent before."""
        sent = [message.sent_ns for own in self.messages.values() for message in own]
        return min([*sent, *([] if self.told_ns is None else [self.told_ns])], default=0)

    @property
    def ended_ns(self) -> int | None:
        """None while it lasts. The server evaluates after that, and clients may send metrics."""
        return None if self.seconds is None else self.began_ns + round(1e9 * self.seconds)

    def within(self) -> dict[str, list[Message]]:
        """The messages sent before its end."""
        ended_ns = self.ended_ns
        return {
            client: [m for m in own if ended_ns is None or m.sent_ns < ended_ns]
            for client, own in self.messages.items()
        }

    def among_clients(self) -> bool:
        """Whether clients sent one another messages in it, all-reduces aside."""
        return not self.reduced and any(
            not message.with_server for own in self.messages.values() for message in own
        )

    def spans(self) -> dict[str, list[Span]]:
        """Spans by node, the server first, from the round's beginning to its end without a gap.

        Of the clients that took part; empty before the round has ended.
        """
        began_ns, ended_ns = self.began_ns, self.ended_ns
        if ended_ns is None:
            return {}
        found = {SERVER: self._server(began_ns, ended_ns)}
        for client in {**self.messages, **self.earlier}:
            messages = [*self.earlier.get(client, ()), *self.messages.get(client, ())]
            incoming = [message for message in messages if message.down]
            outgoing = [message for message in messages if not message.down]
            arrivals = [message.received_ns for message in incoming]
            computing = _between(arrivals, [message.sent_ns for message in outgoing])
            found[client] = _cut(computing, incoming, outgoing, began_ns, ended_ns)
        return found

    def _server(self, began_ns: int, ended_ns: int) -> list[Span]:
        every = (*self.earlier.values(), *self.messages.values())
        messages = [message for own in every for message in own if message.with_server]
        incoming = [message for message in messages if not message.down]
        outgoing = [message for message in messages if message.down]
        arrivals = [began_ns, *(message.received_ns for message in incoming)]
        departures = [message.sent_ns for message in outgoing]
        if self.complete:
            departures.append(ended_ns)
        return _cut(_between(arrivals, departures), incoming, outgoing, began_ns, ended_ns)


class Timeline:
    """Takes every event of a run; ``rounds`` by their numbers."""

    def __init__(self) -> None:
        self.rounds: dict[int, Round] = defaultdict(Round)
        self.origin_ns: int | None = None
        """The nodes' clock when the events' ``t`` was 0."""
        self.clients: tuple[str, ...] = ()
        self.asynchronous = False
        self._begun = 0

    def take(self, event: Event) -> None:
        if isinstance(event, events.Run):
            self.clients = tuple(event.client_names)
            self.origin_ns = event.origin_ns
            self.asynchronous = event.asynchronous
        elif isinstance(event, _OF_A_ROUND):
            entry = self.rounds[event.round]
            entry.taken += 1
            if isinstance(event, events.Message):
                _add(entry, event)
                if self.asynchronous and event.node == SERVER:
                    self._add_to_later(event.round, event.peer)
            elif isinstance(event, events.Reduced):
                _reduce(entry, event)
            elif isinstance(event, events.Missed):
                entry.complete = False
            elif isinstance(event, events.Round):
                entry.seconds = event.seconds
            elif self.origin_ns is not None:
                self._begun = event.round
                entry.told_ns = self.origin_ns + round(1e9 * event.t)

    def _add_to_later(self, number: int, client: str) -> None:
        """The client was busy with that round's model in all that have begun since."""
        entry = self.rounds[number]
        own = entry.messages[client]
        # Not twice what it has answered with before.
        new, entry.handed_on[client] = own[entry.handed_on[client] :], len(own)
        for later in range(max(number + 1, self._begun - MOST_BEHIND), self._begun + 1):
            self.rounds[later].taken += 1
            self.rounds[later].earlier[client] += new


def _add(entry: Round, event: events.Message) -> None:
    with_server = SERVER in (event.peer, event.node)
    for client, down in ((event.peer, False), (event.node, True)):
        if client != SERVER:
            times = (event.received_ns, event.sent_ns)
            message = Message(*times, down, event.message_bytes, with_server)
            entry.messages[client].append(message)


def _reduce(entry: Round, event: events.Reduced) -> None:
    """An all-reduce: the client has sent as it begins, and has received as it ends."""
    entry.reduced = True
    began_ns, ended_ns = event.began_ns, event.ended_ns
    size = sum(event.received.values())
    entry.messages[event.node] += [
        Message(began_ns, began_ns, False, 0, False),
        Message(ended_ns, began_ns, True, size, False),
    ]


def seconds(spans: list[Span]) -> Spans:
    """How long in all."""
    sums = dict.fromkeys(_IN_ORDER, 0)
    for span in spans:
        sums[span.kind] += span.ended_ns - span.began_ns
    return _figures(lambda kind: round(sums[kind] / 1e9, 6))


def over_clients(rows: list[Spans]) -> SpansOverClients:
    """The least, the median and the most of each of ``seconds``' figures over clients."""
    values: dict[str, list[float]] = {
        kind: sorted(getattr(row, f"{kind}_s") for row in rows) for kind in _IN_ORDER
    }

    def middle(kind: str) -> float:
        own = values[kind]
        return round((own[len(own) // 2] + own[(len(own) - 1) // 2]) / 2, 6)

    return SpansOverClients(
        min=_figures(lambda kind: values[kind][0]),
        median=_figures(middle),
        max=_figures(lambda kind: values[kind][-1]),
    )


def _figures(of: Callable[[str], float]) -> Spans:
    return Spans(
        receive_s=of("receive"), compute_s=of("compute"), send_s=of("send"), wait_s=of("wait")
    )


def _between(arrivals: list[int], departures: list[int]) -> list[tuple[int, int]]:
    """Intervals from the last arrival before a departure to it; a second departure adds none."""
    found = []
    since: int | None = None
    moments = [(at, False) for at in arrivals] + [(at, True) for at in departures]
    for at, leaves in sorted(moments):
        if not leaves:
            since = at
        elif since is not None:
            found.append((since, at))
            since = None
    return found


def _cut(
    computing: list[tuple[int, int]],
    incoming: list[Message],
    outgoing: list[Message],
    began_ns: int,
    ended_ns: int,
) -> list[Span]:
    """One span after the other, whatever overlaps, from ``began_ns`` to ``ended_ns``."""
    going = (
        computing,
        [(message.sent_ns, message.received_ns) for message in incoming],
        [(message.sent_ns, message.received_ns) for message in outgoing],
    )
    changes = []
    for place, intervals in enumerate(going):
        for begins, ends in intervals:
            begins, ends = max(begins, began_ns), min(ends, ended_ns)
            if begins < ends:
                changes += [(begins, place, 1), (ends, place, -1)]
    changes.sort()
    ongoing = [0, 0, 0, 1]
    found: list[Span] = []
    since = began_ns
    for at, place, step in [*changes, (ended_ns, _WAIT, 0)]:
        if at > since:
            kind = next(kind for kind, count in zip(SPANS, ongoing, strict=True) if count)
            if found and found[-1].kind == kind:
                found[-1] = Span(kind, found[-1].began_ns, at)
            else:
                found.append(Span(kind, since, at))
            since = at
        ongoing[place] += step
    return found
