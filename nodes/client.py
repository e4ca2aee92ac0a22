"""A client's process: wait for a round, take part in it, until the server says stop."""

from typing import Protocol

from methods import Peer as MethodPeer
from nodes.peer import Overtaken, Peer, Stopped
from testbed import meter
from testbed.channel import Channel
from testbed.config import RunConfig
from testbed.transport import ClientTransport


class MethodClient(Protocol):
    def round(self, peer: MethodPeer) -> None: ...


def participate(
    config: RunConfig, method: MethodClient, name: str, samples: int, channel: Channel
) -> None:
    """Take part in every round that the server begins."""
    address = channel.receive(timeout_s=30)
    report = channel.send
    transport = ClientTransport(name, address["host"], address["port"], report)
    peer = Peer(transport, report, timeout_s=config.join_timeout_s + config.round_timeout_s)
    report({"event": "ready", "samples": samples})
    try:
        peer.join(samples, config.join_timeout_s)
        while True:
            peer.await_round()
            try:
                method.round(peer)
            except Overtaken as reason:
                report({"event": "overtaken", "reason": str(reason)})
            report({"event": "usage", **meter.usage()})
    except Stopped:
        transport.close()
