"""Receive steering: which cores do the TCP work of the nodes' kernels.

What is written to a TUN device is received by the node's kernel inside the write: TCP takes it,
answers, and sends what the answer allows. That is most of a frame's cost, and work that machines
of their own would do. Where a plan's links together may carry more than one core can, the link
process keeps to one core and the devices hand what they are given to the others, as a network card
does that spreads its packets (RPS; a flow stays on one core, so nothing is reordered). Otherwise
the write does it all, which is quicker for a packet alone.
"""

import math
import os
from pathlib import Path

from testbed.links.linux.namespaces import set_sysctl
from testbed.links.userspace.batching import MOST_FRAMES_PER_S
from testbed.network.direction import FRAME_BYTES, WAYS, Direction
from testbed.network.topology import Plan

SYSCTL = "net/core/rps_default_mask"
"""What the devices of a network namespace begin with; from Linux 6.3 on."""


def is_wanted(plan: Plan) -> bool:
    """Whether the clients' links can carry more frames a second, in one direction, than a core."""
    for way in WAYS:
        lines: list[Direction] = [
            getattr(node.profile, way) if node.profile else Direction() for node in plan.clients
        ]
        rates = [line.line_kbit or math.inf for line in lines]
        if sum(rates) * 1000 > MOST_FRAMES_PER_S * 8 * FRAME_BYTES:
            return True
    return False


def choose_cores(plan: Plan) -> tuple[int, set[int]] | None:
    """One for this process, the others for the nodes' kernels; None to leave all as it is."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2 or not is_wanted(plan):
        return None
    # Several runs at once should not meet on one core.
    own = usable[os.getpid() % len(usable)]
    return own, set(usable) - {own}


def receive_on(cores: set[int]) -> bool:
    """Have devices of the present network namespace that are made from now on do so.

    False where the kernel lacks the setting or keeps it from users.
    """
    if not os.access(f"/proc/sys/{SYSCTL}", os.W_OK):
        return False
    set_sysctl(SYSCTL, mask(cores))
    return True


def mask(cores: set[int]) -> str:
    """The mask as the kernel reads it: hexadecimal, in words of 32 bits, the highest first."""
    bits = sum(1 << core for core in cores)
    words = [bits >> shift & 0xFFFFFFFF for shift in range(0, bits.bit_length(), 32)]
    return ",".join(f"{word:08x}" for word in reversed(words))


def backlog_drops() -> int | None:
    """Packets that the kernel had no room for on their way to another core, on this machine.

    None where it does not tell, as in containers without most of /proc.
    """
    try:
        rows = Path("/proc/net/softnet_stat").read_text().splitlines()
    except OSError:
        return None
    return sum(int(row.split()[1], 16) for row in rows)
