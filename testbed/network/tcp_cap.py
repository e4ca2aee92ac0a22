"""Caps of TCP's throughput by loss, for links that carry streams and no packets.

Mathis, Semke, Mahdavi, Ott: "The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm",
CCR 27(3), 1997. Its p counts halvings of the window per packet, which independent loss comes close
to. Loss in bursts enters by its mean: several losses of one window halve it once, so that TCP can
be faster, and a burst as long as the window costs a timeout, so that it can be slower. It is Reno's
formula, an upper one where every second packet is acknowledged or timeouts come in; CUBIC and BBR
lose less speed. The round trip is that of idle links.
"""

import math

from testbed.network.direction import FRAME_BYTES, Direction
from testbed.network.profiles import LinkProfile


def mathis_kbit(loss: float, rtt_s: float) -> float:
    """Line rate in kbit/s at which one TCP connection settles under random loss.

    ``MSS/RTT * sqrt(3/2)/sqrt(p)``, with a frame for the MSS since rates count frames. Infinite
    without loss (``loss``, a fraction) or without delay.
    """
    if loss <= 0 or rtt_s <= 0:
        return math.inf
    return 8 * FRAME_BYTES / 1000 / rtt_s * math.sqrt(1.5 / loss)


def caps_kbit(server: LinkProfile, client: LinkProfile) -> tuple[float, float]:
    """``mathis_kbit`` of a connection from a client to the server, and back."""
    rtt_s = (server.rtt_ms + client.rtt_ms) / 1000
    return (
        mathis_kbit(_either(client.up, server.down), rtt_s),
        mathis_kbit(_either(server.up, client.down), rtt_s),
    )


def _either(first: Direction, second: Direction) -> float:
    """Chance that one of two lines in a row loses a packet, as a fraction."""
    return 1 - (1 - _loss(first)) * (1 - _loss(second))


def _loss(direction: Direction) -> float:
    # An outage stops the stream; it is no rate at which packets are lost.
    return 0.0 if direction.outage else direction.mean_loss_percent / 100
