"""Reach of probes: what they can tell of a line and what not, for launch and for calibrate.

Both ask here, so that they judge a link alike. Each ``why_not`` gives the reason as a clause, or
None where the line can be judged. All of this is pure, and of a line as it is on this machine.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from testbed.network.direction import FRAME_BYTES, FRAME_OVERHEAD_BYTES, SEGMENT_BYTES, Direction

SINGLE_FRAMES_PER_S = 40_000.0
"""What can be sent, carried and taken one by one, of all lines that are filled at the same time.
The userspace links' process reads twice as many at most, on two cores that do nothing else. netem's
kernel carries more, but a process that sends and stamps each packet does not send more. A frame
of a TCP burst costs a fifth of that, and bursts are what a run sends."""
LEAST_ENTERING = 0.1
"""Of the packets that are sent: with fewer a line can hardly be kept full."""

MOST_WINDOW_BYTES = 3 << 20
"""In flight at once: Linux gives a connection 4 MB to send from and 6 MB to receive into."""
PACING_S = 0.001
"""Linux sends what a paced connection may in that time at once, two segments at least."""
LEAST_PACED = 2
SPARE_FRAMES = 5
"""Room that a connection's first packets and its unevenness need in a queue which is shorter than
the delay: there a single loss leaves the line idle."""
MOST_ANSWERS_LOST = 0.1
"""Acknowledgements stand for those before them; with more gone a connection stalls, or none is
made."""
_UDP_IP_BYTES = 28
_ANSWER_BYTES = 66
"""Frame of an acknowledgement."""
_ANSWERED = 20
"""Segments to an acknowledgement where its line is short: usually two, but bursts are answered
once, and of those that wait for the line the last one stands for the others."""

LONGEST_WAIT_S = 30.0
"""A trace may say nothing for hours, a line may be that slow: probes are not waited for longer."""
STREAM_PIECE_S = 0.01
"""A relay fills a queue again when that has become free."""
LEAST_SPAN_MS, LEAST_STREAM_SPAN_MS = 2.0, 20.0
"""Of a burst: in less, what a host is late by is more than the rate may be off. Packets have the
kernel's times of arrival, a stream those at which it was read."""
LEAST_QUEUE_MS = 5.0
"""The same, of the delay of a full queue."""
LEAST_SKIPPED_MS = 2.0
"""A delay that packets skip: those of a shorter one cannot be told from the others."""

RARE = 1e-3
"""Chance below which what came is the link's doing and not that of the losses asked for."""
MISLED = 0.01
"""Chance that a median may have to be that of packets that skipped the delay."""
TELLING = 0.99
"""Of the packets that skip the delay, those that have another one to overtake."""

LEAST_OVERTAKEN = 3.0
"""Packets in the delay: of fewer, one that skips it may by chance have none before it."""
FEW_COPIES_PERCENT = 5.0
"""With more of them it shows that of a packet and its copy either may skip the delay."""

OUTAGE = "an outage lets nothing through"


# How many packets come through, and how many meet the line


def lost_share(direction: Direction, checked: bool = False) -> float:
    """The share of packets lost, and, where they are ``checked``, of those with a flipped bit."""
    kept = 1 - direction.mean_loss_percent / 100
    return 1 - kept * (1 - direction.corrupt_percent / 100) if checked else 1 - kept


def frames_per_packet(direction: Direction) -> float:
    """Frames that come of a packet in the mean: a copy, and what is lost of both.

    A packet with a copy that is lost leaves one of them; else the copy may be lost by itself.
    """
    lost, copies = direction.mean_loss_percent / 100, direction.duplicate_percent / 100
    doubled = lost + (1 - lost) * (2 - lost)
    return copies * doubled + (1 - copies) * (1 - lost)


def entering(direction: Direction) -> float:
    """Frames that take a line's time, of each packet that is sent: not those that skip it."""
    return frames_per_packet(direction) * (1 - direction.reorder_percent / 100)


def frames_per_s(direction: Direction) -> float:
    """Full frames that the line carries, a trace in its fastest step; 0 where it has no rate."""
    return 1000 * (direction.peak_kbit or 0.0) / (8 * FRAME_BYTES)


def sent_per_s(direction: Direction) -> float:
    """Packets that are to be sent for the line to be full."""
    share = max(LEAST_ENTERING, min(1.0, entering(direction)))
    return frames_per_s(direction) / share


def is_too_fast(direction: Direction, lines: float = 1) -> bool:
    """Whether single packets cannot fill so many such lines at once, so that TCP must."""
    return not direction.outage and lines * sent_per_s(direction) > SINGLE_FRAMES_PER_S


def explained(
    ways: Sequence[Direction],
    sent: int,
    least: int = 1,
    checked: bool = False,
    served: bool = False,
) -> bool:
    """Whether losses as asked for let fewer than ``least`` of the packets through now and then.

    ``ways``: that each of them crosses. Chains of losses count with their bursts. ``checked``:
    those with a flipped bit are lost too; ``served``: those that skip the line do not count.
    """
    if any(direction.outage for direction in ways):
        return True
    least = min(least, sent)
    chains = [_chain(direction, checked, served) for direction in ways]
    # Of all the chains together: shares of the states, what comes in each, and how they turn.
    starts, comes, steps = (functools.reduce(np.kron, part) for part in zip(*chains, strict=True))
    # By state and how many came so far; more than that are no longer followed.
    chance = np.zeros((len(starts), least))
    chance[:, 0] = starts
    for _ in range(sent):
        now = chance * (1 - comes)[:, None]
        now[:, 1:] += chance[:, :-1] * comes[:, None]
        chance = steps.T @ now
    return float(chance.sum()) > RARE


def _chain(
    direction: Direction, checked: bool, served: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The good and the bad state: how often it is there, what comes through, how it goes on."""
    kept = 1 - direction.corrupt_percent / 100 if checked else 1.0
    kept *= 1 - direction.reorder_percent / 100 if served else 1.0
    loss = direction.gilbert_elliott
    if loss is None:
        comes = kept * (1 - direction.mean_loss_percent / 100)
        return np.array([1.0]), np.array([comes]), np.array([[1.0]])
    p, r = loss.good_to_bad_percent / 100, loss.bad_to_good_percent / 100
    lost = np.array([loss.good_loss_percent, loss.bad_loss_percent]) / 100
    return np.array([r, p]) / (p + r), kept * (1 - lost), np.array([[1 - p, p], [r, 1 - r]])


def lost_words(ways: Sequence[Direction], checked: bool = False) -> str:
    """ "none came, as may be where 40 % are lost" """
    kept = math.prod(1 - lost_share(direction, checked) for direction in ways)
    return f"too few came, as may be where {100 * (1 - kept):.3g} % are lost"


# An idle line


def why_not_awaited(seconds: float) -> str | None:
    """Why nothing that takes so long is sent."""
    if seconds <= LONGEST_WAIT_S:
        return None
    return f"it takes up to {seconds:.3g} s, and is waited for {LONGEST_WAIT_S:g} s"


def why_not_delay(ways: Sequence[Direction], packets: int) -> str | None:
    """Why the median of so many packets that cross all ``ways`` may not be their delay."""
    if any(direction.outage for direction in ways):
        return OUTAGE
    kept = 1.0
    for direction in ways:
        # Of a packet and its copy the earlier one counts.
        copies = 1 + direction.duplicate_percent / 100
        kept *= (1 - direction.reorder_percent / 100) ** copies
    if _binomial_tail(packets, 1 - kept, math.ceil(packets / 2)) <= MISLED:
        return None
    return f"too many packets skip the delay: {100 * (1 - kept):.3g} %"


def why_not_exact_delay(ways: Sequence[Direction], packets: int) -> str | None:
    """Why a delay cannot be told where no more than a host's lateness is allowed, or None."""
    if any(direction.trace is not None for direction in ways):
        return "a packet waits for the trace's next chance"
    return why_not_delay(ways, packets)


def _binomial_tail(trials: int, chance: float, least: int) -> float:
    """That ``least`` or more of the trials come out."""
    if chance <= 0:
        return 0.0
    return sum(
        math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
        for count in range(least, trials + 1)
    )


# A line that is kept full


def why_not_full(direction: Direction) -> str | None:
    """Why nothing keeps the line full."""
    if direction.outage:
        return OUTAGE
    if direction.line_kbit is None:
        return "has no rate"
    share = entering(direction)
    if share < LEAST_ENTERING:
        return f"{100 * (1 - share):.3g} % of packets are lost or skip the line"
    return None


def why_not_singly(direction: Direction, lines: int = 1) -> str | None:
    """Why single packets do not keep so many such lines full."""
    reason = why_not_full(direction)
    if reason is not None or not is_too_fast(direction, lines):
        return reason
    each = "" if lines == 1 else f" for each of {lines} lines"
    alone, with_lost = frames_per_s(direction), sent_per_s(direction)
    count = alone if lines * alone > SINGLE_FRAMES_PER_S else with_lost
    return f"{count:.0f} frames a second{each} are too many to be sent one by one"


def why_not_tcp(direction: Direction, back: Direction) -> str | None:
    """Why a TCP connection cannot fill a line, or None; ``back``: its acknowledgements' way."""
    if direction.outage or back.outage:
        return OUTAGE
    if direction.mean_loss_percent:
        return "TCP is bounded by loss"
    if direction.reorder_percent or direction.corrupt_percent or direction.duplicate_percent:
        return "TCP is bounded by impairments of packets"
    if direction.trace is not None:
        return "TCP is bounded by the trace's changes"
    if lost_share(back, checked=True) > MOST_ANSWERS_LOST:
        return "TCP is bounded by the loss of its acknowledgements"
    if direction.line_kbit is None:
        return None
    answers_kbit = frames_per_s(direction) / _ANSWERED * 8 * _ANSWER_BYTES / 1000
    if back.carried_kbit is not None and answers_kbit > back.carried_kbit:
        return "TCP is bounded by the line of its acknowledgements"
    queued, flying = queue_frames(direction), flying_frames(direction, back)
    burst = max(LEAST_PACED, frames_per_s(direction) * PACING_S)
    if queued < (burst if queued >= flying else max(burst, SPARE_FRAMES)):
        return "the queue has no room for a connection's bursts"
    if flying * SEGMENT_BYTES > MOST_WINDOW_BYTES:
        return "the delay holds more than a TCP connection's buffers"
    return None


def why_not_stream(direction: Direction) -> str | None:
    """Why a relayed stream cannot fill a line, or None."""
    if direction.carried_kbit != direction.line_kbit:
        return "bounded by the packet limit"
    if direction.line_kbit and queue_frames(direction) < frames_per_s(direction) * STREAM_PIECE_S:
        return "the queue is shorter than the pieces in which a relay passes on a stream"
    return None


def flying_frames(direction: Direction, back: Direction) -> float:
    """Frames in both delays, while the line is full."""
    flying_ms = direction.delay_ms + direction.jitter_ms + back.delay_ms
    return frames_per_s(direction) * flying_ms / 1000


def queue_frames(direction: Direction) -> float:
    assert direction.limit_packets is not None
    held_ms = direction.delay_ms + direction.jitter_ms
    return direction.limit_packets - frames_per_s(direction) * held_ms / 1000


def why_not_burst(
    direction: Direction, packets: int, shaken: int, least_span_ms: float = LEAST_SPAN_MS
) -> str | None:
    """Why the packets of one burst, of which jitter may space ``shaken``, do not tell a rate."""
    if direction.outage:
        return OUTAGE
    line_kbit = direction.line_kbit
    assert line_kbit is not None
    skipped_ms = direction.delay_ms - direction.jitter_ms
    if direction.reorder_percent and skipped_ms < LEAST_SKIPPED_MS:
        return f"packets that skip {direction.delay_ms:.3g} ms cannot be told from the others"
    if direction.reorder_percent == 100:
        return "all packets skip the line"
    taken_ms = 1000 * packets / SINGLE_FRAMES_PER_S
    if direction.reorder_percent and taken_ms > skipped_ms:
        return (
            f"of {packets} packets at once those that skip {direction.delay_ms:.3g} ms may wait as "
            "long for this machine"
        )
    frame_ms = 8 * FRAME_BYTES / line_kbit
    served = packets * entering(direction)
    if served <= shaken + 1 and shaken:
        return f"jitter may space all {served:.3g} packets that are in it at once"
    span_ms = (served - shaken - 1) * frame_ms
    if span_ms < least_span_ms:
        return f"it takes {served:.3g} packets at once, {max(0.0, span_ms):.2g} ms of the line"
    return None


def why_not_gaps(direction: Direction) -> str | None:
    """Why the gaps between packets of a full line are not its own."""
    if direction.trace is not None:
        return "a trace has no gap of its own"
    return why_not_followed(direction)


def why_not_followed(direction: Direction) -> str | None:
    """Why the numbers of packets do not tell which followed each other out of a line."""
    if direction.corrupt_percent and direction.duplicate_percent:
        return "a flipped bit hides which copies a packet has"
    if direction.corrupt_percent > 100 * (1 - LEAST_ENTERING):
        return f"bits flip in {direction.corrupt_percent:g} % of packets"
    return None


def why_not_queue(direction: Direction) -> str | None:
    """Why the delay of the full queue is not its own."""
    if direction.trace is not None:
        return "how long a full queue takes is the trace's own"
    queue_ms = 1000 * queue_frames(direction) / frames_per_s(direction)
    if queue_ms < LEAST_QUEUE_MS:
        return f"its {max(0.0, queue_ms):.2g} ms are no more than what a host may be late by"
    return None


# Single packets


def why_not_share(direction: Direction, share: str) -> str | None:
    """Why an impairment of packets cannot be told by its share."""
    bursts, copies = direction.gilbert_elliott is not None, direction.duplicate_percent > 0
    if share == "loss" and bursts and copies:
        return "of what is lost in bursts copies stand for a part"
    if share == "loss" and copies and direction.corrupt_percent:
        return "a flipped bit hides which copies a packet has"
    if share == "duplicates" and bursts:
        return "losses in bursts hit a packet together with its copy"
    if share == "reordering" and direction.duplicate_percent > FEW_COPIES_PERCENT:
        return "copies skip the delay as well"
    return None


def why_not_overtaken(direction: Direction, per_s: float) -> str | None:
    """Why packets that skip the delay may have none before them, at so many packets a second."""
    flying = per_s * max(0.0, direction.delay_ms - direction.jitter_ms) / 1000
    stays = (1 - direction.reorder_percent / 100) * (1 - lost_share(direction, checked=True))
    if flying >= LEAST_OVERTAKEN and 1 - (1 - stays) ** flying >= TELLING:
        return None
    return f"of {flying:.2g} packets in the delay at once too few are overtaken"


def payload_share(packet_bytes: int, more_bytes: int = FRAME_OVERHEAD_BYTES) -> float:
    """The share of a packet's bits behind IP's and UDP's headers and ``more_bytes``."""
    return (packet_bytes - _UDP_IP_BYTES) / (packet_bytes + more_bytes)
