"""A relay on 127.0.0.1 that shapes the byte stream: no privileges, no kernel feature, any Unix.

For CI smoke tests, containers and macOS. Each client calls a port of its own; for each connection
the relay opens one to the server and passes both directions on in chunks, each charged as the
frames it would be. Only the stream is shaped: TCP's own packets never meet the link, so loss
enters as the throughput that it would leave, and bytes on the wire are an estimate.

All ports are the kernel's choice, so runs beside each other never meet. All listen from the moment
they are chosen, the server's too, which is handed to it as a descriptor: a port that is only bound
goes to the next program that asks for exactly this one with SO_REUSEADDR.
"""

import socket

from testbed.links.interface import Endpoint, LinkCounters, LinkError
from testbed.links.loopback.listeners import HOST
from testbed.links.loopback.relay import relay
from testbed.links.process import CounterTable, Facts, LinkProcess
from testbed.network.direction import Direction
from testbed.network.schedule import State
from testbed.network.topology import Node, Plan
from testbed.processes.channel import Channel

name = "loopback"

BACKLOG = 4096
PROBE_LIMIT_S = 2.0
_OF_PACKETS = ("duplicate_percent", "reorder_percent", "corrupt_percent")


def probe() -> str | None:
    """None where a byte passes over a connection on 127.0.0.1."""
    step = f"listen on {HOST}"
    try:
        with socket.create_server((HOST, 0)) as listener:
            listener.settimeout(PROBE_LIMIT_S)
            step = f"connect to {HOST}"
            with socket.create_connection(listener.getsockname(), PROBE_LIMIT_S) as one:
                other, _ = listener.accept()
                with other:
                    other.settimeout(PROBE_LIMIT_S)
                    one.sendall(b"?")
                    other.recv(1)
            return None
    except OSError as error:
        reason = error.strerror or str(error)
        return f"{step}: {reason}; bring the loopback interface up: ip link set lo up"


def unsupported(plan: Plan) -> str | None:
    """The property of a link of the plan that no stream can have, or None."""
    for node in plan.nodes:
        if node.profile is None:
            continue
        beginning = State(0.0, node.profile.up, node.profile.down)
        for state in (beginning, *node.profile.schedule):
            found = _of_packets(state.up, state.down)
            if found is not None:
                when = "" if state is beginning else f"schedule at {state.at_s:g} s: "
                return f"profile {node.profile.name!r}: {when}{found}"
    return None


def up(plan: Plan) -> "LoopbackNetwork":
    """Start the relay.

    Raises:
        LinkError: naming the step that failed.
    """
    reason = unsupported(plan)
    if reason is not None:
        raise LinkError(reason)
    return LoopbackNetwork(plan)


class LoopbackNetwork:
    """Owns the relay process."""

    def __init__(self, plan: Plan) -> None:
        try:
            listener = socket.create_server((HOST, 0))
        except OSError as error:
            ports = f"{len(plan.nodes)} ports on {HOST}"
            raise LinkError(f"open {ports}: {error.strerror}") from error
        listener.listen(BACKLOG)
        listener.setblocking(False)
        server = listener.getsockname()[:2]

        def run(channel: Channel, counters: CounterTable) -> Facts:
            listener.close()
            return relay(plan, channel, counters, server)

        self._listener = listener
        try:
            self._process = LinkProcess(len(plan.nodes), run, 30 + 0.01 * len(plan.nodes))
        except BaseException:
            listener.close()
            raise
        self._ports: list[int] = [server[1], *self._process.facts["ports"]]
        self.facts: dict[str, object] = {
            "backend": name,
            "privileges": self._process.facts["privileges"],
            "wire_bytes": "estimated from the relayed stream",
            "loss": "none; the rate of a client's connections together is capped at what one TCP "
            "connection reaches by MSS/RTT*sqrt(3/2)/sqrt(p) (Mathis et al. 1997), with p the mean "
            "where losses come in bursts: an upper approximation of Reno",
            "jitter": "of each chunk of the stream, without overtaking",
            "outage": "the stream stops; nothing is lost, new connections wait",
            "not_modelled": "slow start, connection set-up, the capacity acknowledgements take, "
            "retransmission and its timeouts (a stream resumes at once when an outage ends)",
        }
        self.record: dict[str, object] = {}

    def endpoint(self, node: Node) -> Endpoint:
        listener = None if node.index else self._listener.fileno()
        return Endpoint((), HOST, self._ports[node.index], listener)

    def shape(self, node: Node, up: Direction, down: Direction) -> None:
        reason = _of_packets(up, down)
        if reason is not None:
            raise LinkError(f"shape the link of {node.name}: {reason}")
        self._process.shape(node.index, up, down)

    def counters(self) -> list[LinkCounters]:
        return self._process.counters.read()

    def fileno(self) -> int:
        return self._process.channel.fileno()

    def failure(self) -> str | None:
        return self._process.failure()

    def halted(self) -> str | None:
        return self._process.halted()

    def down(self) -> dict[str, object]:
        self._listener.close()
        return self._process.down()


def _of_packets(up: Direction, down: Direction) -> str | None:
    for way, direction in (("up", up), ("down", down)):
        for field in _OF_PACKETS:
            value = getattr(direction, field)
            if value:
                return (
                    f"{way}.{field} = {value!r}: a stream has no packets to duplicate, reorder or "
                    "corrupt; leave it out, or take links that carry packets (netem, userspace)"
                )
    return None
