"""What the loopback relay makes of loss, traces and outages, and of links that change.

Times are held against bounds that no machine can beat; only generous limits stand against
slowness.
"""

import contextlib
import select
import socket
import time

import msgspec
import pytest
from relayed import (
    BLOCK,
    FREE,
    LIMIT_S,
    Bench,
    carry,
    echo_s,
    fill,
    line_s,
    link,
    noise,
    rate,
    read_all,
    reset,
)

from testbed.config_error import ConfigError
from testbed.links import choice
from testbed.links.interface import LinkError
from testbed.links.loopback import backend as loopback
from testbed.network.direction import SEGMENT_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile
from testbed.network.schedule import State
from testbed.network.tcp_cap import mathis_kbit
from testbed.network.topology import Plan, plan

OUT = Direction(outage=True)
BURSTS = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=9, bad_loss_percent=40)
"""4 % on average."""


@pytest.fixture
def bench():
    with contextlib.ExitStack() as stack:
        yield lambda *clients, server=None: Bench(stack, clients, server)


def test_loss_enters_as_throughput(bench):
    loss = Direction(delay_ms=20, loss_percent=2)
    b = bench(link(loss, Direction(delay_ms=20)), server=link(FREE, Direction(loss_percent=2)))
    client, server = b.connect()
    cap_mbit = mathis_kbit(1 - 0.98**2, 0.040) / 1000
    assert carry((client, noise(100_000), server))[0] >= line_s(100_000, cap_mbit)
    assert b.counters(1).up.losses == b.counters(1).up.queue_drops == 0
    assert carry((server, noise(2_000_000), client))[0] < line_s(2_000_000, cap_mbit)


def test_shape_holds_from_then_on(bench):
    b = bench(link())
    client, server = b.connect()
    node = b.plan.clients[0]
    assert echo_s(client, server) < 5
    b.network.shape(node, rate(2, delay_ms=200), Direction())
    deadline = time.monotonic() + LIMIT_S
    while echo_s(client, server) < 0.200:
        assert time.monotonic() < deadline, "shape had no effect"
    assert carry((client, noise(50_000), server))[0] >= 0.200 + line_s(50_000, 2)
    b.network.shape(node, Direction(), Direction())
    while echo_s(client, server) >= 0.200:
        assert time.monotonic() < deadline, "shape had no effect"


def test_shape_of_the_server_reaches_every_client(bench):
    b = bench(link(Direction(loss_percent=1)))
    client, server = b.connect()
    b.network.shape(b.plan.server, Direction(), Direction(delay_ms=100))
    deadline = time.monotonic() + LIMIT_S
    while carry((client, b"x", server))[0] < 0.100:
        assert time.monotonic() < deadline, "shape had no effect"
    # Only with that delay has the client's own loss a throughput.
    cap_mbit = mathis_kbit(0.01, 0.100) / 1000
    assert carry((client, noise(50_000), server))[0] >= 0.100 + line_s(50_000, cap_mbit)


def test_bursts_of_loss_cap_by_their_mean_and_as_long_as_they_last(bench):
    lossy = Direction(delay_ms=20, gilbert_elliott=BURSTS)
    b = bench(link(lossy, Direction(delay_ms=20)))
    client, server = b.connect()
    cap_mbit = mathis_kbit(0.04, 0.040) / 1000
    assert carry((client, noise(100_000), server))[0] >= line_s(100_000, cap_mbit)
    node = b.plan.clients[0]
    b.network.shape(node, Direction(delay_ms=20), lossy)
    deadline = time.monotonic() + LIMIT_S
    while carry((client, noise(100_000), server))[0] >= line_s(100_000, cap_mbit):
        assert time.monotonic() < deadline, "the cap holds without loss"
    assert carry((server, noise(100_000), client))[0] >= line_s(100_000, cap_mbit)


# Traces


@pytest.fixture
def trace(tmp_path):
    def write(gap_ms: int) -> str:
        path = tmp_path / f"{gap_ms}.trace"
        path.write_text(f"{gap_ms}\n")
        return str(path)

    return write


def test_a_stream_takes_an_opportunity_a_frame(bench, trace):
    b = bench(link(Direction(trace=trace(10)), Direction(trace=trace(5))))
    client, server = b.connect()
    frames = 40
    payload = noise(frames * SEGMENT_BYTES)
    up, down = carry((client, payload, server), (server, payload, client))
    # The first may come at once, a whole period after the one that nobody used.
    assert (frames - 1) * 0.010 <= up < 5
    assert (frames - 1) * 0.005 <= down < 5


def test_traces_come_and_go_in_flight(bench, trace):
    traced = Direction(trace=trace(20))
    b = bench(link())
    client, server = b.connect()
    node = b.plan.clients[0]
    deadline = time.monotonic() + LIMIT_S
    payload = noise(20 * SEGMENT_BYTES)
    b.network.shape(node, traced, FREE)
    while carry((client, payload, server))[0] < 19 * 0.020:
        assert time.monotonic() < deadline, "the trace had no effect"
    assert carry((client, payload, server))[0] >= 19 * 0.020
    b.network.shape(node, FREE, FREE)
    while carry((client, payload, server))[0] >= 19 * 0.020:
        assert time.monotonic() < deadline, "the trace goes on"


# Outages


class Orders:
    """Tells when the relay has taken every order so far: it takes them in turn.

    Every client but the first begins in an outage, with a connection and a byte that wait for its
    end.
    """

    def __init__(self, b: Bench) -> None:
        self._bench = b
        self._waiting = [(node, b.call(node.index)) for node in b.plan.clients[1:]]
        for _, caller in self._waiting:
            caller.sendall(b"taken")

    def are_taken(self) -> None:
        node, _ = self._waiting.pop()
        self._bench.network.shape(node, FREE, FREE)
        assert self._bench.accepted_says(b"taken")


def nothing_comes(*sockets: socket.socket) -> bool:
    return not select.select(sockets, [], [], 0.2)[0]


@pytest.mark.parametrize(("up", "down"), [(OUT, OUT), (OUT, FREE), (FREE, OUT)])
def test_an_outage_stops_streams_and_loses_nothing(bench, up, down):
    b = bench(link(), link(OUT, OUT))
    client, server = b.connect()
    echo_s(client, server)
    orders, node = Orders(b), b.plan.clients[0]
    b.network.shape(node, up, down)
    orders.are_taken()
    # Without acknowledgements the other direction stops as well.
    sent = fill(client), fill(server)
    late = b.call()
    late.sendall(b"late")
    assert nothing_comes(client, server, b.server)
    assert b.network.failure() is None
    b.network.shape(node, FREE, FREE)
    assert b.accepted_says(b"late")
    for sock, size in ((server, sent[0]), (client, sent[1])):
        sock.settimeout(LIMIT_S)
        got = bytearray()
        while len(got) < size:
            got += sock.recv(1 << 18)
        assert got == (BLOCK * (size // len(BLOCK) + 1))[:size]
    echo_s(client, server)


def test_an_outage_of_the_server_stops_everybody(bench):
    b = bench(link(), link(), server=link())
    ends = [b.connect(1), b.connect(2)]
    b.network.shape(b.plan.server, OUT, OUT)
    deadline = time.monotonic() + LIMIT_S
    sent = [0, 0]
    # Until the order is taken bytes come through.
    while True:
        for number, (client, _) in enumerate(ends):
            client.sendall(b"x")
            sent[number] += 1
        if nothing_comes(*(server for _, server in ends)):
            break
        for number, (_, server) in enumerate(ends):
            sent[number] -= len(server.recv(100))
        assert time.monotonic() < deadline
    b.network.shape(b.plan.server, FREE, FREE)
    for number, (_, server) in enumerate(ends):
        while sent[number]:
            sent[number] -= len(server.recv(100))


def test_what_is_in_the_line_arrives_in_an_outage(bench):
    slow = Direction(delay_ms=300)
    b = bench(link(slow), link(OUT, OUT))
    client, server = b.connect()
    orders, node = Orders(b), b.plan.clients[0]
    client.sendall(b"before")
    deadline = time.monotonic() + LIMIT_S
    while not b.counters(1).up.frames:
        assert time.monotonic() < deadline
    b.network.shape(node, msgspec.structs.replace(slow, outage=True), FREE)
    orders.are_taken()
    client.sendall(b"after")
    assert server.recv(100) == b"before"
    assert nothing_comes(server)
    b.network.shape(node, slow, FREE)
    assert server.recv(100) == b"after"


def test_ends_of_a_connection_wait_for_the_end_of_an_outage(bench):
    b = bench(link(), link(OUT, OUT))
    (client, server), (other, other_server) = b.connect(), b.connect()
    orders, node = Orders(b), b.plan.clients[0]
    b.network.shape(node, OUT, OUT)
    orders.are_taken()
    client.sendall(b"last words")
    client.close()
    reset(other_server)
    assert nothing_comes(server, other)
    b.network.shape(node, FREE, FREE)
    assert read_all(server) == b"last words"
    with pytest.raises(ConnectionResetError):
        other.recv(1)


# What a stream cannot have


def refusal(profile: LinkProfile, server: LinkProfile | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        choice.choose("loopback", plan([link(), profile], server))
    return str(error.value)


@pytest.mark.parametrize("field", ["duplicate_percent", "reorder_percent", "corrupt_percent"])
def test_an_impairment_of_packets_is_refused_before_anything_starts(field):
    strange = Direction(delay_ms=10, **{field: 2.5})
    text = refusal(link(up=strange))
    assert f"--links=loopback does not work here: profile 'test': up.{field} = 2.5: " in text
    assert "netem, userspace" in text
    assert f"down.{field} = 2.5" in refusal(link(), server=link(down=strange))
    later = LinkProfile(name="test", schedule=(State(7.5, FREE, FREE), State(9.0, FREE, strange)))
    assert f"profile 'test': schedule at 9 s: down.{field} = 2.5" in refusal(later)


def test_the_network_itself_refuses_it_too(bench):
    strange = Direction(corrupt_percent=1)
    with pytest.raises(LinkError, match="corrupt_percent = 1"):
        loopback.up(plan([link(strange)]))
    b = bench(link())
    with pytest.raises(LinkError, match=r"shape the link of node-1: down\.corrupt_percent = 1"):
        b.network.shape(b.plan.clients[0], FREE, strange)
    echo_s(*b.connect())


def test_auto_passes_over_what_cannot_make_the_links(monkeypatch):
    class Other:
        name = "other"

        def __init__(self, reason: str | None) -> None:
            self.reason = reason

        def probe(self) -> str | None:
            return self.reason

    strange: Plan = plan([link(Direction(duplicate_percent=1))])
    monkeypatch.setattr(choice, "BACKENDS", (loopback, Other(None)))
    backend, why = choice.choose("auto", strange)
    assert backend.name == "other"
    assert "not loopback: profile 'test': up.duplicate_percent = 1: " in why
    assert choice.choose("auto", plan([link()]))[0] is loopback
    assert choice.choose("auto")[0] is loopback
    monkeypatch.setattr(choice, "BACKENDS", (Other("is not here"), loopback))
    with pytest.raises(ConfigError, match=r"not other: is not here; not loopback: .*duplicate"):
        choice.choose("auto", strange)
