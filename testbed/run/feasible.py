"""Feasibility of a run: whether its transfers can end within its limits."""

from typing import NamedTuple

from testbed.network.capacity import line
from testbed.network.topology import Node, Plan
from testbed.units import human_seconds


class Traffic(NamedTuple):
    """Least payload bytes that a client sends (up) and receives (down) in a round."""

    up: int
    down: int
    among_clients: bool = False
    """Both at the same time and between clients, so that none of it is on the server's link."""


def refusal(
    plan: Plan,
    traffic: Traffic,
    rounds: int,
    round_timeout_s: float,
    time_limit_s: float,
    deadline_s: float | None = None,
) -> str | None:
    """Why the run cannot end in time, with the arithmetic; None where it can.

    A round takes a client at least both its transfers, one after the other, at the most that TCP
    can carry; the server's own link carries those of all clients. Among clients it is both at once.
    With a deadline slow clients are left out of a round, but not all.
    """
    if deadline_s is not None:
        fastest_s, node = min(
            ((_client_s(node, traffic), node) for node in plan.clients), key=lambda pair: pair[0]
        )
        if fastest_s <= deadline_s:
            return None
        return (
            f"no client can meet deadline_s = {deadline_s:g}: a round takes at least "
            f"{human_seconds(fastest_s)}, for {_sums(plan, node, traffic)}. Raise the deadline, "
            "take a method or options that send less, or a faster profile"
        )
    candidates = [(_client_s(node, traffic), node) for node in plan.clients]
    if plan.server.profile is not None and not traffic.among_clients:
        candidates.append((_server_s(plan, traffic), plan.server))
    slowest_s, node = max(candidates, key=lambda pair: pair[0])
    whole_s = rounds * slowest_s
    if slowest_s <= round_timeout_s and whole_s <= time_limit_s:
        return None
    limit = f"round_timeout_s = {round_timeout_s:g}"
    times = f"a round takes at least {human_seconds(slowest_s)}"
    if whole_s > time_limit_s:
        limit = f"time_limit_s = {time_limit_s:g}"
        times = (
            f"{rounds} rounds of at least {human_seconds(slowest_s)} take {human_seconds(whole_s)}"
        )
    return (
        f"cannot end within {limit}: {times}, for {_sums(plan, node, traffic)}. Raise the limit, "
        "take a method or options that send less, fewer rounds, or a faster profile"
    )


def _client_s(node: Node, traffic: Traffic) -> float:
    assert node.profile is not None
    up_s = line(node.profile.up).transfer_s(traffic.up)
    down_s = line(node.profile.down).transfer_s(traffic.down)
    return max(up_s, down_s) if traffic.among_clients else up_s + down_s


def _server_s(plan: Plan, traffic: Traffic) -> float:
    """Up is what the server sends."""
    assert plan.server.profile is not None
    profile, clients = plan.server.profile, len(plan.clients)
    return max(
        line(profile.up).transfer_s(clients * traffic.down),
        line(profile.down).transfer_s(clients * traffic.up),
    )


def _sums(plan: Plan, node: Node, traffic: Traffic) -> str:
    """ "client-3 (nb-iot) sends 213 kB at 59.3 kbit/s and receives ..." """
    assert node.profile is not None
    up, down = traffic.up, traffic.down
    if node is plan.server:
        up, down = (len(plan.clients) * size for size in (down, up))
    parts = []
    for verb, size, direction in (
        ("sends", up, node.profile.up),
        ("receives", down, node.profile.down),
    ):
        goodput = direction.ideal_goodput_kbit
        at = f" at {goodput:.4g} kbit/s of payload" if goodput else ""
        parts.append(f"{verb} {size:,} bytes{at}")
    return f"{node.name} ({node.profile.name}) {' and '.join(parts)}"
