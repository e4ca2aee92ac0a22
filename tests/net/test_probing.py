"""Probing real links: the certificate tells one that is what was asked from one that is not."""

import msgspec

from testbed.fidelity import Prober, reason_to_skip
from testbed.profiles import Direction, LinkProfile
from testbed.topology import Plan

LINK = LinkProfile(
    name="asked",
    up=Direction(rate_kbit=4000, delay_ms=20),
    down=Direction(rate_kbit=8000, delay_ms=10),
)


def probed(plan: Plan, network):
    prober = Prober(plan, network)
    try:
        return prober.certificate()
    finally:
        prober.close()


def pretending(plan: Plan, profile: LinkProfile) -> Plan:
    """The same nodes, said to stand behind ``profile``."""
    server, *clients = plan.nodes
    return Plan((server, *(msgspec.structs.replace(node, profile=profile) for node in clients)))


def test_every_link_is_probed_and_what_came_is_near_what_was_asked(build):
    layout, network = build(LINK, LINK)
    found = probed(layout, network)
    assert [(check.link, check.name, check.direction) for check in found.checks] == [
        (client, name, way)
        for client in ("client-1", "client-2")
        for name, way in (("round trip", "both"), ("rate", "up"), ("rate", "down"))
    ]
    for check in found.checks:
        # A busy host may break the gates of a certificate; it cannot bring a wrong link this near.
        assert check.measured is not None
        assert 0.8 * check.expected < check.measured < 1.5 * check.expected
    before = network.counters()
    assert all(link.up.bytes > 50_000 for link in before[1:])


def test_a_link_that_is_not_what_was_asked_fails(build):
    layout, network = build(LINK)
    faster = LinkProfile(
        name="other",
        up=Direction(rate_kbit=8000, delay_ms=60),
        down=Direction(rate_kbit=16_000, delay_ms=10),
    )
    found = probed(pretending(layout, faster), network)
    assert found.verdict == "fail"
    assert [check.ok for check in found.checks] == [False] * 3


def test_a_dead_link_fails_and_does_not_hang(build):
    layout, network = build(LINK)
    network.shape(layout.clients[0], Direction(loss_percent=99.9999), Direction(delay_ms=1))
    found = probed(layout, network)
    assert found.verdict == "fail"
    assert found.checks[0].measured is None


def test_a_shared_server_link_is_not_probed(build):
    layout, network = build(LINK, server=LINK)
    assert "share the server's link" in str(reason_to_skip(layout, network, asked=True))
    layout, network = build(LINK)
    assert reason_to_skip(layout, network, asked=True) is None
    assert "--no-calibrate" in str(reason_to_skip(layout, network, asked=False))
