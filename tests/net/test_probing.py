"""Probing real links: the certificate tells one that is what was asked from one that is not."""

import contextlib
import os
import signal
import time
from types import SimpleNamespace

import msgspec
import pytest

from testbed.fidelity import prober, tcp_probe
from testbed.fidelity.paths import Arrivals
from testbed.fidelity.prober import Prober
from testbed.links.interface import LinkError
from testbed.links.loopback import backend as loopback
from testbed.network.direction import Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import Plan, plan
from testbed.run.meters import Meters

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


@pytest.fixture(autouse=True)
def one_try(monkeypatch):
    """The limits here are wide, and a wrong link would be wrong each time."""
    monkeypatch.setattr(prober, "TRIES", 1)


def probed(plan: Plan, network):
    owner = Prober(plan, network)
    try:
        return owner.certificate()
    finally:
        owner.close()


def pretending(plan: Plan, profile: LinkProfile) -> Plan:
    """The same nodes, said to stand behind ``profile``."""
    server, *clients = plan.nodes
    return Plan((server, *(msgspec.structs.replace(node, profile=profile) for node in clients)))


@pytest.mark.quiet
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
    found = probed(pretending(layout, OTHER), network)
    assert found.verdict == "fail"
    assert [check.ok for check in found.checks] == [False] * 3


FAST = LinkProfile(
    name="fast",
    up=Direction(rate_kbit=800_000, delay_ms=0.5, queue_ms=20),
    down=Direction(rate_kbit=600_000, delay_ms=0.5, queue_ms=20),
)


@pytest.mark.quiet
def test_a_line_too_fast_for_single_packets_is_probed_by_tcp(build):
    layout, network = build(FAST)
    found = probed(layout, network)
    rates = [check for check in found.checks if check.name == "rate by TCP"]
    assert [check.direction for check in rates] == ["up", "down"]
    for check in rates:
        assert 0.6 * check.expected < check.measured < 1.2 * check.expected
    network.shape(layout.clients[0], FAST.down, LINK.down)
    wrong = probed(layout, network)
    assert [check.ok for check in wrong.checks[1:]] == [False] * 2


def test_a_busy_host_does_not_make_a_link_wrong(build, monkeypatch):
    """What came late the first time comes in time the second."""
    monkeypatch.setattr(prober, "TRIES", 2)
    layout, network = build(LINK)
    tries: list[int] = []

    def probe(plan, network, paths):
        tries.append(len(paths))
        late = len(tries) == 1
        gap_ns = round(8 * 1514 * 1e6 / 4000)
        up = [number * gap_ns * (2 if late else 1) for number in range(50)]
        return [Arrivals([30.0], {"up": up, "down": [n // 2 for n in up]}) for _ in paths]

    monkeypatch.setattr("testbed.fidelity.udp_probe.probe", probe)
    assert probed(layout, network).verdict == "pass"


def test_a_dead_link_fails_and_does_not_hang(build):
    layout, network = build(LINK)
    network.shape(layout.clients[0], Direction(loss_percent=99.9999), Direction(delay_ms=1))
    found = probed(layout, network)
    assert found.verdict == "fail"
    assert found.checks[0].measured is None


@pytest.mark.quiet
def test_the_servers_link_is_probed_by_itself_and_all_is_put_back(build):
    layout, network = build(LINK, LINK, server=LINK)
    shaped = []
    shape = network.shape
    network.shape = lambda node, up, down: (shaped.append((node.name, up)), shape(node, up, down))
    found = probed(layout, network)
    assert [(check.link, check.name, check.direction) for check in found.checks[-3:]] == [
        ("server", "round trip", "both"), ("server", "rate", "down"), ("server", "rate", "up"),
    ]  # fmt: skip
    assert len(found.checks) == 9
    for check in found.checks:
        assert check.measured is not None
        # Through both links a client's round trip would be twice as long.
        assert 0.8 * check.expected < check.measured < 1.5 * check.expected
    assert shaped == [
        ("server", Direction()), ("server", LINK.up), ("client-1", Direction()),
        ("client-1", LINK.up),
    ]  # fmt: skip
    assert len(probed(layout, network).checks) == 9


@pytest.mark.quiet
def test_a_server_link_that_is_not_what_was_asked_fails(build):
    layout, network = build(LINK, server=LINK)
    owner = Prober(layout, network)
    try:
        restore = network.shape
        wrong = Direction(rate_kbit=2000, delay_ms=40)
        network.shape = lambda node, up, down: restore(
            node, *((wrong, wrong) if node.name == "server" else (up, down))
        )
        found = owner.certificate()
    finally:
        owner.close()
    assert [check.ok for check in found.checks if check.link == "server"] == [False] * 3
    assert not [check for check in found.checks if check.link != "server" and not check.ok]


@pytest.mark.quiet
def test_links_that_carry_streams_are_probed_with_streams():
    layout = plan([LINK, LINK], LINK)
    network = loopback.up(layout)
    try:
        found = probed(layout, network)
        assert len(found.checks) == 9
        for check in found.checks:
            assert check.measured is not None
            assert 0.7 * check.expected < check.measured < 1.5 * check.expected
        wrong = probed(pretending(layout, OTHER), network)
        assert [check.ok for check in wrong.checks if check.link == "client-1"] == [False] * 3
    finally:
        network.down()


def test_what_a_probe_left_on_its_way_counts_before_the_run(tmp_path, monkeypatch):
    layout = plan([LINK])
    network = loopback.up(layout)
    # Asked for ten times as fast, it has let a tenth of its bursts through when they are judged.
    fast = Direction(rate_kbit=80_000, delay_ms=10)
    asked = pretending(layout, LinkProfile(name="fast", up=fast, down=fast))
    monkeypatch.setattr(tcp_probe, "LAST_BYTE_S", 0.0)
    recorded = []
    ledger = SimpleNamespace(record=lambda _, event: recorded.append(event))
    try:
        with contextlib.ExitStack() as owned:
            Meters(asked, network, ledger, owned).probe_links(calibrate=True, strict=False)()
        (certified,) = recorded
        assert certified.fidelity.verdict == "fail"
        time.sleep(1.0)  # In which a link of 4 Mbit/s lets half a megabyte through.
        assert msgspec.to_builtins(network.counters()) == certified.counters
    finally:
        network.down()


def test_a_prober_that_is_killed_or_stopped_is_named_and_no_link_is_judged(build, monkeypatch):
    monkeypatch.setattr(prober, "PATIENCE_S", 0.0)
    monkeypatch.setattr(prober, "probe_s", lambda paths: 0.5)
    layout, network = build(LINK)
    for number, words in (
        (signal.SIGKILL, "was killed by SIGKILL"),
        (signal.SIGSTOP, "is stopped"),
    ):
        owner = Prober(layout, network)
        os.kill(owner._worker.child.pid, number)
        found = owner.certificate()
        owner.close()
        assert (found.verdict, found.checks) == ("skipped", [])
        assert found.reason.startswith(f"not probed: the prober {words}")
        assert owner.broken


def test_links_that_nobody_carries_are_no_bad_links(build):
    layout, network = build(LINK)
    os.kill(network._process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LinkError, match="the link process is stopped"):
            probed(layout, network)
    finally:
        os.kill(network._process.pid, signal.SIGCONT)
    assert probed(layout, network).checks[0].measured is not None
    os.kill(network._process.pid, signal.SIGKILL)
    with pytest.raises(LinkError, match="the link process killed by SIGKILL"):
        probed(layout, network)
