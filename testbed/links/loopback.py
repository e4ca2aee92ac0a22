"""A relay on 127.0.0.1 that shapes the byte stream: no privileges, no kernel feature, any Unix.

For CI smoke tests, containers and macOS. Each client calls a port of its own; for each connection
the relay opens one to the server and passes both directions on in chunks, each charged as the
frames it would be. Only the stream is shaped: TCP's own packets never meet the link, so loss
enters as the throughput that it would leave, and bytes on the wire are an estimate.

All ports are the kernel's choice, so runs beside each other never meet. The server's is held by
a socket that is bound and does not listen, with SO_REUSEADDR: the kernel hands the port to nobody
else (checked on Linux), yet the server, which sets the same option as ZeroMQ and asyncio do, can
bind it. What remains: a program that asks for exactly this port, with SO_REUSEADDR, before the
server does.
"""

import socket

from testbed.links import Endpoint, LinkCounters, LinkError
from testbed.links.process import LinkProcess
from testbed.links.relay import HOST, relay
from testbed.profiles import Direction
from testbed.topology import Node, Plan

name = "loopback"


def probe() -> str | None:
    """None where a port on 127.0.0.1 can be had."""
    try:
        with socket.create_server((HOST, 0)):
            return None
    except OSError as error:
        return f"listen on {HOST}: {error.strerror}; bring the loopback interface up"


def up(plan: Plan) -> "LoopbackNetwork":
    """Start the relay.

    Raises:
        LinkError: naming the step that failed.
    """
    return LoopbackNetwork(plan)


class LoopbackNetwork:
    """Owns the relay process."""

    def __init__(self, plan: Plan) -> None:
        self._process = LinkProcess(len(plan.nodes), lambda c, table: relay(plan, c, table))
        try:
            line = self._process.wait_up(timeout_s=30 + 0.01 * len(plan.nodes))
        except LinkError:
            self._process.down()
            raise
        self._ports: list[int] = line["ports"]
        self.facts: dict[str, object] = {
            "backend": name,
            "wire_bytes": "estimated from the relayed stream",
            "loss": "none; rates capped at MSS/RTT*sqrt(3/2)/sqrt(p) (Mathis et al. 1997)",
            "not_modelled": "slow start, connection set-up, the capacity acknowledgements take",
        }

    def endpoint(self, node: Node) -> Endpoint:
        return Endpoint((), HOST, self._ports[node.index])

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        self._process.shape(node.index, up, down)

    def counters(self) -> list[LinkCounters]:
        return self._process.counters.read()

    def fileno(self) -> int:
        return self._process.channel.fileno()

    def failure(self) -> str | None:
        return self._process.failure()

    def down(self) -> dict[str, object]:
        return self._process.down()
