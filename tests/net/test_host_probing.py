"""Probing links of a run on two hosts, each of which has a prober of its own nodes' ends."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from testbed.fidelity import host_prober, prober
from testbed.fidelity.checks import Certificate
from testbed.fidelity.host_prober import Answer, HostProber, Order
from testbed.links.interface import LinkError
from testbed.links.process import Shape
from testbed.links.tunnel.meeting import Meeting, listen, new_token
from testbed.links.userspace import backend as userspace
from testbed.network.direction import Direction
from testbed.network.hosts import Host, placed
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Ready, Refusal, Result, Stop, Worker

pytestmark = pytest.mark.quiet

LIMIT_S = 60.0
LINK = LinkProfile(
    name="asked",
    up=Direction(rate_kbit=4000, delay_ms=20),
    down=Direction(rate_kbit=8000, delay_ms=10),
)
OTHER = LinkProfile(
    name="other",
    up=Direction(rate_kbit=8000, delay_ms=60),
    down=Direction(rate_kbit=16_000, delay_ms=10),
)
PLACE = "server=a,client-1=a,client-2:3=b"


def spread(*links: LinkProfile, server: LinkProfile | None = None) -> Plan:
    machines = [Host(name, 1, 0) for name in "ab"]
    return placed(plan(list(links), server), machines, place=PLACE)


def host(layout: Plan, pretended: Plan, meeting: Meeting) -> Callable[[Channel], Any]:
    """A host's part: its network, made of ``layout``, whose links are said to be ``pretended``."""

    def body(channel: Channel) -> None:
        network = userspace.up(layout, meeting)
        own = HostProber(pretended, network, meeting.host)
        channel.send(Ready())
        try:
            while not isinstance(order := channel.receive(), Stop):
                if isinstance(order, Shape):
                    if layout.nodes[order.node].host == meeting.host:
                        network.shape(layout.nodes[order.node], order.up, order.down)
                    continue
                own.tell(order)
                channel.send(own.answer(order, LIMIT_S))
        finally:
            own.close()
            network.down()

    return body


@pytest.fixture
def probed(userspace_links: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``probed(layout, pretended)``: the certificate of two hosts' links."""
    monkeypatch.setattr(prober, "TRIES", 1)
    with contextlib.ExitStack() as owned:

        def make(layout: Plan, pretended: Plan | None = None) -> Certificate:
            token = new_token()
            listeners = {name: owned.enter_context(listen("127.0.0.1")) for name in "ab"}
            addresses = {name: each.getsockname() for name, each in listeners.items()}
            hosts = []
            for name, listener in listeners.items():
                meeting = Meeting(name, addresses, listener, token)
                body = host(layout, pretended or layout, meeting)
                kinds = {"orders": Order | Shape | Stop}
                kinds["answers"] = Answer | Ready | Result | Refusal
                hosts.append(Worker(f"host {name}", body, **kinds))
                owned.callback(hosts[-1].close)
            for each in hosts:
                each.receive(Ready, LIMIT_S)

            def ask(order: Order, limit_s: float) -> list[Answer]:
                for each in hosts:
                    each.tell(order)
                kind = host_prober.Came if isinstance(order, host_prober.Finish) else None
                return [each.receive(kind or host_prober.Did, limit_s) for each in hosts]

            def shape(node: Any, up: Direction, down: Direction) -> None:
                for each in hosts:
                    each.tell(Shape(node.index, up, down))

            return host_prober.certificate(pretended or layout, shape, ask, [])

        yield make


def test_links_of_two_hosts_are_probed_from_an_end_on_each(probed: Any) -> None:
    found = probed(spread(LINK, LINK, LINK))
    assert [(check.link, check.name, check.direction) for check in found.checks] == [
        (client, name, way)
        for client in ("client-1", "client-2", "client-3")
        for name, way in (("round trip", "both"), ("rate", "up"), ("rate", "down"))
    ]
    for check in found.checks:
        # A busy host may break the gates of a certificate; it cannot bring a wrong link this near.
        assert check.measured is not None
        assert 0.8 * check.expected < check.measured < 1.5 * check.expected


def test_a_link_on_either_host_that_is_not_what_was_asked_fails(probed: Any) -> None:
    found = probed(spread(LINK, LINK, LINK), spread(OTHER, LINK, OTHER))
    wrong = {check.link for check in found.checks if not check.ok}
    assert found.verdict == "fail" and {"client-1", "client-3"} <= wrong


def test_the_servers_own_link_is_probed_behind_the_first_client(probed: Any) -> None:
    found = probed(spread(LINK, LINK, LINK, server=OTHER))
    own = [check for check in found.checks if check.link == "server"]
    assert [check.direction for check in own] == ["both", "down", "up"]
    for check in found.checks:
        assert check.measured is not None
        assert 0.8 * check.expected < check.measured < 1.5 * check.expected


FAST = LinkProfile(
    name="fast",
    up=Direction(rate_kbit=600_000, delay_ms=0.5, queue_ms=20),
    down=Direction(rate_kbit=600_000, delay_ms=0.5, queue_ms=20),
)


def test_a_line_too_fast_for_single_packets_is_filled_from_the_other_host(probed: Any) -> None:
    found = probed(spread(LINK, FAST, LINK))
    rates = {c.direction: c.measured for c in found.checks if c.name == "rate by TCP"}
    assert rates.keys() == {"up", "down"}
    assert all(rate is not None and 0.3 * 600_000 < rate < 720_000 for rate in rates.values())


def test_a_prober_that_is_killed_is_named(build: Any) -> None:
    layout, network = build(LINK)
    own = HostProber(layout, network, "")
    try:
        own.tell(host_prober.Open(False, [0]))
        assert own.answer(host_prober.Open(False, [0]), LIMIT_S) == host_prober.Did()
        os.kill(own._worker.child.pid, signal.SIGKILL)
        with pytest.raises(LinkError, match="not probed: the prober was killed by SIGKILL"):
            while not own.drain():
                select.select([own], [], [], LIMIT_S)
    finally:
        own.close()


def test_packets_that_skip_a_line_are_not_told_from_others_by_two_hosts_clocks() -> None:
    mixed = LINK.up.__class__(rate_kbit=4000, delay_ms=20, reorder_percent=10)
    link = LinkProfile(name="mixed", up=mixed, down=LINK.down)
    near, far, _ = host_prober.paths_of(spread(link, link, link), 1.0)[0]
    assert near.why_not("up") is None
    assert "clocks" in (far.why_not("up") or "")
    assert far.why_not("down") is None and far.bursts()["up"] == 0
