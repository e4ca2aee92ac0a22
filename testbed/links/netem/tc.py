"""A link of netem as the ``tc`` command would make it, for people who read that."""

from collections.abc import Iterator

from testbed.links.netem.qdisc import CERTAIN, Installed, Netem
from testbed.links.process import DOWN, UP
from testbed.network.direction import WAYS

_HOOKS = {UP: "ingress", DOWN: "egress"}


def link(node: int, both: tuple[Installed, Installed]) -> Iterator[str]:
    """Every command for a node's link, in the link namespace, where its devices are."""
    yield f"tc qdisc add dev link{node} clsact"
    for way, installed in enumerate(both):
        device = f"{WAYS[way]}{node}"
        yield (
            f"tc filter add dev link{node} {_HOOKS[way]} protocol all prio 1 u32 match u32 0 0 "
            f"action mirred egress redirect dev {device}"
        )
        yield from add(device, installed)


def add(device: str, installed: Installed) -> Iterator[str]:
    """The qdiscs of a direction's device."""
    if installed.trace is None:
        yield f"tc qdisc add dev {device} root handle 1: netem {parameters(installed.netem)}"
        return
    yield f"tc qdisc add dev {device} root handle 1: htb default 1"
    yield (
        f"tc class replace dev {device} parent 1: classid 1:1 htb rate RATE  "
        f"# every 100 ms that of {installed.trace!r}"
    )
    yield f"tc qdisc add dev {device} parent 1:1 handle 2: netem {parameters(installed.netem)}"


def change(device: str, before: Installed, after: Installed) -> Iterator[str]:
    """Commands from one to the other while packets are in the line."""
    if (before.trace is None) != (after.trace is None):
        yield f"tc qdisc del dev {device} root"
        yield from add(device, after)
        return
    place = "root handle 1:" if after.trace is None else "parent 1:1 handle 2:"
    yield f"tc qdisc change dev {device} {place} netem {parameters(after.netem)}"


def parameters(netem: Netem) -> str:
    """Parameters that ``tc`` reads back to the same numbers of the kernel's."""
    words = [f"limit {netem.limit}", f"delay {_time(netem.latency_ns)}"]
    if netem.jitter_ns:
        words[1] += f" {_time(netem.jitter_ns)}"
    if netem.gemodel is not None:
        p, r, h, k1 = netem.gemodel
        words.append("loss gemodel " + " ".join(map(_percent, (p, r, CERTAIN - h, k1))))
    elif netem.loss:
        words.append(f"loss {_percent(netem.loss)}")
    for name in ("duplicate", "corrupt", "reorder"):
        if chance := getattr(netem, name):
            words.append(f"{name} {_percent(chance)}")
    if netem.gap:
        words.append(f"gap {netem.gap}")
    words.append(f"rate {_rate(netem.rate_bytes)}")
    return " ".join(words)


def _time(nanoseconds: int) -> str:
    for unit, size in (("ms", 1_000_000), ("us", 1000)):
        if nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds}ns"


def _percent(chance: int) -> str:
    """The shortest that tc rounds to this chance."""
    for digits in range(12):
        text = f"{100 * chance / CERTAIN:.{digits}f}"
        if round(float(text) / 100 * CERTAIN) == chance:
            break
    return f"{text}%"


def _rate(rate_bytes: int) -> str:
    bits = 8 * rate_bytes
    return f"{bits // 1000}kbit" if bits % 1000 == 0 else f"{bits}bit"
