"""Hosts that are lost before a run has begun: once they have met, and while links are probed."""

import contextlib
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from machines import CUT, LIMIT_S, Machines, Make, alive, below, said
from several_hosts import TUNNEL_PORT, underlay

from testbed.links.interface import LinkError, Network
from testbed.links.linux import namespaces
from testbed.links.tunnel import silence
from testbed.links.tunnel.clocks import Offset
from testbed.links.tunnel.measurement import measure
from testbed.links.tunnel.meeting import Meeting, listen, meet, new_token
from testbed.links.tunnel.streams import Stream
from testbed.links.tunnel.tunnel import Gone, Tunnel
from testbed.links.userspace import backend as userspace
from testbed.network.topology import Plan, plan
from testbed.processes.channel import Channel
from testbed.processes.worker import Go, Ready, Result, Worker

TOLD_S = 5.0
"""Of a host that is gone."""
TOLD_BESIDE_S = 15.0
"""The same beside other tests."""
FAR = ("--profile=rate 10mbit delay 3000ms", "--clients=2")
PLACE = "--place=server=a,client-1=a,client-2=b"
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


@pytest.fixture
def between(userspace_links: None) -> Iterator[tuple[Plan, Network]]:
    """Two hosts, and the network between them."""
    layout = plan([underlay(0.5)] * 2)
    network = userspace.up(layout)
    yield layout, network
    network.down()


def measured(stream: Stream, host: str) -> str:
    with pytest.raises(LinkError, match="measure the network to host") as failed:
        measure(stream, host, "ab".replace(host, ""), first=host == "a")
    return str(failed.value)


def carried(stream: Stream, host: str) -> str:
    """A tunnel of which no word has come yet."""
    tunnel = Tunnel("ab".replace(host, ""), stream, Offset(), time.monotonic())
    waiter = select.poll()
    waiter.register(tunnel, select.POLLIN)
    until = time.monotonic() + 4 * TOLD_S
    try:
        while time.monotonic() < until:
            tunnel.tend(time.monotonic())
            tunnel.flush()
            waiter.poll(100)
            tunnel.read(time.monotonic)
    except Gone as gone:
        return str(gone)
    return "never"


@pytest.mark.quiet
def test_hosts_that_are_cut_right_after_they_have_met_know_it(between: tuple[Plan, Network]):
    layout, network = between
    nodes = dict(zip("ab", layout.clients, strict=True))
    token = new_token()

    def host(name: str, what: Callable[[Stream, str], str], port: int) -> Worker:
        addresses = {name: (node.address, port) for name, node in nodes.items()}

        def body(channel: Channel) -> Any:
            namespaces.enter(network.endpoint(nodes[name]).namespaces)
            with listen(*addresses[name]) as listener:
                (stream,) = meet(Meeting(name, addresses, listener, token)).values()
            channel.send(Ready())
            assert isinstance(channel.receive(LIMIT_S), Go)
            began_s = time.monotonic()
            return what(stream, name), time.monotonic() - began_s

        return Worker(f"host {name}", body)

    kinds = enumerate((measured, carried), TUNNEL_PORT)
    them = [host(name, what, port) for port, what in kinds for name in "ab"]
    try:
        for each in them:
            each.receive(Ready, LIMIT_S)
        network.shape(nodes["b"], CUT, CUT)
        for each in them:
            each.tell(Go())
        for each in them:
            how, took_s = each.receive(Result, LIMIT_S).value
            print(how, took_s)
            assert "timed out" in how and took_s < TOLD_S
    finally:
        for each in them:
            each.close()


@pytest.mark.thorough
@pytest.mark.quiet
def test_what_is_said_into_the_silence_does_not_lengthen_it(between: tuple[Plan, Network]):
    layout, network = between
    one, other = layout.clients

    def calls(channel: Channel) -> Any:
        namespaces.enter(network.endpoint(one).namespaces)
        with socket.create_connection((other.address, TUNNEL_PORT), LIMIT_S) as connection:
            silence.end_by(connection)
            time.sleep(2 * silence.SILENT_S)
            assert not silence.lasts(connection)
            channel.send(Ready())
            assert isinstance(channel.receive(LIMIT_S), Go)
            began_s = time.monotonic()
            while not silence.lasts(connection) and time.monotonic() < began_s + 4 * TOLD_S:
                time.sleep(0.1)
                if time.monotonic() > began_s + 0.8 * silence.SILENT_S:
                    connection.send(b"!")
            return time.monotonic() - began_s

    def listens(channel: Channel) -> Any:
        namespaces.enter(network.endpoint(other).namespaces)
        with listen(other.address, TUNNEL_PORT) as listener:
            channel.send(Ready())
            with listener.accept()[0]:
                channel.receive(LIMIT_S)

    with (
        contextlib.closing(Worker("listens", listens)) as called,
        contextlib.closing(Worker("calls", calls)) as caller,
    ):
        called.receive(Ready, LIMIT_S)
        caller.receive(Ready, LIMIT_S)
        network.shape(other, CUT, CUT)
        caller.tell(Go())
        took_s = caller.receive(Result, LIMIT_S).value
        print("known after, s:", took_s)
        assert silence.SILENT_S - 1 < took_s < TOLD_S


def lose(found: Machines, agent: subprocess.Popen[str], how: str) -> float:
    """Lose the second host; when, in seconds of the run."""
    (began,) = found.events("run")
    gone_s = (time.monotonic_ns() - began["origin_ns"]) / 1e9
    if how == "cut":
        found.cut(1)
    else:
        agent.kill()
    return float(gone_s)


def fails(run: subprocess.Popen[str]) -> None:
    text = said(run)
    assert run.returncode == 1, text


@pytest.mark.parametrize(
    ("how", "told_s"),
    [("agent", TOLD_BESIDE_S), pytest.param("cut", TOLD_S, marks=pytest.mark.quiet)],
    ids=["agent", "cut"],
)
def test_a_host_that_is_lost_while_links_are_probed_ends_the_run_within_seconds(
    machines: Make, until: Callable[..., Any], how: str, told_s: float
):
    found = machines()
    agent = found.agent(1)
    run = found.execute(*FAR, PLACE, "--", "true")
    until(lambda: len(found.events("isolated")) == 3, "places of all programs", LIMIT_S, run)
    time.sleep(0.5)  # Of the six that a ping takes over such lines.
    gone_s = lose(found, agent, how)
    fails(run)
    assert not found.events("certified")
    (told,), (closed,) = found.events("host_gone"), found.events("closed")
    print("told and closed after, s:", told["t"] - gone_s, closed["t"] - gone_s)
    assert 0 < told["t"] - gone_s < told_s
    assert closed["reason"].startswith("host b: ") and closed["t"] - gone_s < told_s
    if how == "cut":
        assert not alive(below(agent))


@pytest.mark.parametrize("how", ["agent", "cut"])
def test_a_host_that_is_lost_before_hosts_have_met_ends_the_run_within_seconds(
    machines: Make, until: Callable[..., Any], how: str
):
    found = machines()
    agent = found.agent(1)
    run = found.execute(*FAR, PLACE, "--", "true")
    until(lambda: found.events("run"), "a run", LIMIT_S, run)
    gone_s = lose(found, agent, how)
    fails(run)
    assert not found.events("links")
    (closed,) = found.events("closed")
    print("closed after, s:", closed["t"] - gone_s, closed["reason"])
    assert "host b" in closed["reason"] and closed["t"] - gone_s < TOLD_BESIDE_S


def test_two_hosts_that_do_not_reach_each_other_end_the_run_within_seconds(machines: Make):
    found = machines(3)
    found.agent(1)
    found.agent(2)
    found.part(1, 2)
    run = found.execute("--clients=3", "--place=server=a,client-1=b,client-2=c,client-3=a", "true")
    fails(run)
    (closed,) = found.events("closed")
    print("closed after, s:", closed["t"], closed["reason"])
    assert "host c: " in closed["reason"] and "reach host b" in closed["reason"]
    assert closed["t"] < TOLD_BESIDE_S
