"""Round times as summary.json has them: each node's spans, the slowest, the ideal."""

from typing import Any

from testbed.network.capacity import Access
from testbed.network.topology import SERVER
from testbed.record import ideal_rounds, spans


def of_round(
    entry: spans.Round, clients: list[str], links: list[Access], *, asynchronous: bool = False
) -> dict[str, Any]:
    """``links``: of every node, the server first, as the round began; empty where not known.

    An asynchronous method's round waits for none of its clients: it has no slowest and no ideal.
    """
    if asynchronous:
        slowest = dict.fromkeys(("compute_s", "transfer_s", "wait_s"))
        return slowest | _of_all(entry, clients, [])
    return _of_slowest(entry) | _of_all(entry, clients, links)


def _of_slowest(entry: spans.Round) -> dict[str, float]:
    """Seconds of the slowest client's round: computing, on the way, and the rest.

    The slowest is the one whose last message reached the server last. It computes from a
    message's arrival to its own next sending; transfers are from sending to arrival.
    """
    messages = entry.within()
    arrivals = {
        client: max((message.received_ns for message in own if not message.down), default=0)
        for client, own in messages.items()
    }
    compute_ns = transfer_ns = 0
    if arrivals:
        slowest = max(arrivals, key=lambda client: arrivals[client])
        last_down: int | None = None
        for message in sorted(messages[slowest], key=lambda message: message.received_ns):
            transfer_ns += message.received_ns - message.sent_ns
            if message.down:
                last_down = message.received_ns
            elif last_down is not None:
                compute_ns += max(0, message.sent_ns - last_down)
                last_down = None
    seconds = entry.seconds or 0.0
    compute_s, transfer_s = compute_ns / 1e9, transfer_ns / 1e9
    return {
        "compute_s": round(compute_s, 6),
        "transfer_s": round(transfer_s, 6),
        "wait_s": round(max(0.0, seconds - compute_s - transfer_s), 6),
    }


def _of_all(entry: spans.Round, clients: list[str], links: list[Access]) -> dict[str, Any]:
    """Spans of every node in a round, and how long it would have taken on full lines."""
    sums = {node: spans.seconds(found) for node, found in entry.spans().items()}
    server = sums.pop(SERVER, None)
    there = [client for client in clients if client in sums]
    rows = [{"client": client, **sums[client]} for client in there]
    ideal_s = None
    # How fast a ring of unlike lines could be, step after step, nobody has worked out here.
    if there and links and entry.seconds and not entry.reduced:
        messages = entry.within()
        compute_s = {client: sums[client]["compute_s"] for client in there}
        own = dict(zip(clients, links[1:], strict=True))
        ideal_s = round(ideal_rounds.round_s(messages, compute_s, own, links[0]), 6)
    ratio = round(entry.seconds / ideal_s, 4) if ideal_s and entry.seconds else None
    few = len(rows) <= spans.MOST_ROWS
    return {
        "spans": rows if few else [],
        "spans_over_clients": None if few else spans.over_clients(rows),
        "server_spans": server,
        "ideal_s": ideal_s,
        "measured_to_ideal": ratio,
    }
