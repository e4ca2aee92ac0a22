"""Round times as summary.json has them: each node's spans, the slowest, the ideal."""

from msgspec import structs

from testbed.network.capacity import Access
from testbed.network.topology import SERVER
from testbed.record import ideal_rounds, spans
from testbed.record.run_summary import RoundSummary


def fill(
    row: RoundSummary,
    entry: spans.Round,
    clients: list[str],
    links: list[Access],
    *,
    asynchronous: bool = False,
) -> None:
    """Give ``row`` its times.

    ``links``: of every node, the server first, as the round began; empty where not known. An
    asynchronous method's round waits for none of its clients: it has no slowest and no ideal. Of
    a round that is not over nobody knows who is the slowest.
    """
    if entry.seconds is not None and not asynchronous:
        _fill_slowest(row, entry)
    _fill_all(row, entry, clients, [] if asynchronous else links)


def _fill_slowest(row: RoundSummary, entry: spans.Round) -> None:
    """Seconds of the slowest client's round: computing, on the way, and the rest.

    Each instant counts once, however many messages are on their way in it. The slowest is the one
    that the server heard of last.
    """
    row.compute_s = row.transfer_s = 0.0
    row.wait_s = entry.seconds or 0.0
    heard = {
        client: max((m.received_ns for m in own if m.with_server and not m.down), default=0)
        for client, own in entry.within().items()
    }
    every = entry.spans()
    if heard and every:
        own = spans.seconds(every[max(heard, key=lambda client: heard[client])])
        row.compute_s, row.wait_s = own.compute_s, own.wait_s
        row.transfer_s = round(own.receive_s + own.send_s, 6)


def _fill_all(
    row: RoundSummary, entry: spans.Round, clients: list[str], links: list[Access]
) -> None:
    """Spans of every node in a round, and how long it would have taken on full lines."""
    sums = {node: spans.seconds(found) for node, found in entry.spans().items()}
    server = sums.pop(SERVER, None)
    there = [client for client in clients if client in sums]
    few = len(there) <= spans.MOST_ROWS
    rows = [structs.replace(sums[client], client=client) for client in there]
    row.spans = rows if few else []
    row.spans_over_clients = None if few else spans.over_clients(rows)
    row.server_spans = server
    row.ideal_s = row.measured_to_ideal = None
    # How fast unlike lines among clients could be, all at once or step after step around a ring,
    # nobody has worked out here.
    among = entry.reduced or entry.among_clients()
    if there and links and entry.seconds and not among:
        messages = entry.within()
        compute_s = {client: sums[client].compute_s for client in there}
        own = dict(zip(clients, links[1:], strict=True))
        row.ideal_s = round(ideal_rounds.round_s(messages, compute_s, own, links[0]), 6)
        if row.ideal_s:
            row.measured_to_ideal = round(entry.seconds / row.ideal_s, 4)
