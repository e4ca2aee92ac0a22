"""A Direction as one netem qdisc, in the kernel's own units, asked for and read back.

Rate, delay, jitter and loss stand in one qdisc: that is what keeps packets in order under jitter
(``netem_enqueue`` of net/sched/sch_netem.c counts from the last packet's time only where a rate is
set), so an unlimited line has the greatest rate that fits, and not none. Every parameter is sent
with every change, since the kernel keeps the old value of an attribute that is missing.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from testbed.links.interface import LinkError
from testbed.network.direction import FRAME_BYTES, MTU_BYTES, Direction
from testbed.network.traces import Trace

CERTAIN = 2**32 - 1
"""The kernel's probability 1."""
UNLIMITED_BYTES = 2**32 - 1
"""Rate of a line without limit, in bytes/s: a full frame takes 0.35 µs."""
UNLIMITED_PACKETS = 1_000_000
"""Limit of a line where nothing can queue; bounds what a long delay holds."""

_GREATEST = {
    "latency_ns": 2**63 - 1,
    "jitter_ns": 2**31 - 1,
    "limit": 2**32 - 1,
    "rate_bytes": 2**63 - 1,
}
_COARSEST_RATE = 0.01
"""Rounding to whole bytes/s may change a rate by this share."""


class Netem(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of one netem qdisc; chances as shares of 2**32 - 1."""

    latency_ns: int = 0
    jitter_ns: int = 0
    limit: int = UNLIMITED_PACKETS
    rate_bytes: int = UNLIMITED_BYTES
    """Bytes/s."""
    loss: int = 0
    gemodel: tuple[int, int, int, int] | None = None
    """p, r, h and k1 of struct tc_netem_gemodel: h is the chance that a packet *survives* the bad
    state, k1 the chance that it is lost in the good one."""
    duplicate: int = 0
    gap: int = 0
    """1: each packet may be reordered; 0: none is."""
    reorder: int = 0
    corrupt: int = 0


class Installed(msgspec.Struct, frozen=True):
    """The qdisc on one direction's device, and the trace that its line follows."""

    netem: Netem
    """As the kernel said it, of which a trace has no rate."""
    trace: str | None = None
    """The file that an HTB class above it follows."""


def netem(direction: Direction | None) -> Netem:
    """The qdisc of a direction; None and a trace have no rate here.

    Raises:
        LinkError: a value is beyond what netem can hold.
    """
    if direction is None:
        return Netem()
    limit = direction.limit_packets
    gemodel = direction.gilbert_elliott
    asked = Netem(
        latency_ns=round(direction.delay_ms * 1e6),
        jitter_ns=round(direction.jitter_ms * 1e6),
        limit=UNLIMITED_PACKETS if limit is None else limit,
        rate_bytes=_rate_bytes(direction.rate_kbit),
        loss=CERTAIN if direction.outage else _chance(direction.loss_percent),
        gemodel=None
        if gemodel is None or direction.outage
        else (
            _chance(gemodel.good_to_bad_percent),
            _chance(gemodel.bad_to_good_percent),
            _chance(100 - gemodel.bad_loss_percent),
            _chance(gemodel.good_loss_percent),
        ),
        duplicate=_chance(direction.duplicate_percent),
        gap=1 if direction.reorder_percent else 0,
        reorder=_chance(direction.reorder_percent),
        corrupt=_chance(direction.corrupt_percent),
    )
    for field, greatest in _GREATEST.items():
        value = getattr(asked, field)
        if value > greatest:
            raise LinkError(f"netem {field} = {value}: the kernel holds at most {greatest}")
    return asked


def trace_rate_bytes(kbit: float) -> int:
    """A trace's rate, which counts IP packets, as bytes/s of frames.

    Raises:
        LinkError: as ``netem``.
    """
    rate_bytes = max(1, round(kbit * 125 * FRAME_BYTES / MTU_BYTES))
    if rate_bytes > UNLIMITED_BYTES:
        raise LinkError(f"trace: {kbit:.0f} kbit/s is beyond {UNLIMITED_BYTES * 8 // 1000}")
    return rate_bytes


def check_trace(chances: Trace) -> None:
    """Refuse a trace that steps of whole bytes/s cannot follow.

    Raises:
        LinkError: it is too slow, or too fast.
    """
    steps = chances.steps()
    ends_ms = [from_ms for from_ms, _ in steps[1:]] + [chances.period_ms]
    asked = had = 0.0
    for (from_ms, kbit), end_ms in zip(steps, ends_ms, strict=True):
        asked += kbit * 125 * FRAME_BYTES / MTU_BYTES * (end_ms - from_ms)
        had += trace_rate_bytes(kbit) * (end_ms - from_ms)
    if abs(had - asked) > _COARSEST_RATE * asked:
        raise LinkError(
            f"trace: netem counts whole bytes per second, and {chances.mean_kbit:.3g} kbit/s is "
            "too little for that"
        )


def options(asked: Netem) -> dict[str, Any]:
    """TCA_OPTIONS for pyroute2, with the names that ``teach`` gives it."""
    attributes: list[tuple[str, Any]] = [
        ("TCA_NETEM_LATENCY64", asked.latency_ns),
        ("TCA_NETEM_JITTER64", asked.jitter_ns),
        ("TCA_NETEM_CORR", {}),
        ("TCA_NETEM_REORDER", {"prob_reorder": asked.reorder}),
        ("TCA_NETEM_CORRUPT", {"prob_corrupt": asked.corrupt}),
        ("TCA_NETEM_RATE", {"rate": min(asked.rate_bytes, 2**32 - 1)}),
    ]
    if asked.rate_bytes >= 2**32:
        attributes.append(("TCA_NETEM_RATE64", asked.rate_bytes))
    if asked.gemodel is not None:
        p, r, h, k1 = asked.gemodel
        chain = {"p": p, "r": r, "h": h, "k1": k1}
        attributes.append(("TCA_NETEM_LOSS", {"attrs": [("NETEM_LOSS_GE", chain)]}))
    return {
        "limit": asked.limit,
        "loss": asked.loss,
        "gap": asked.gap,
        "duplicate": asked.duplicate,
        "attrs": attributes,
    }


def found(answer: Mapping[str, Any]) -> Netem:
    """The qdisc that the kernel says it has, from a decoded TCA_OPTIONS."""
    attributes = {name: value for name, value in answer["attrs"]}
    loss = attributes.get("TCA_NETEM_LOSS")
    chain = dict(loss["attrs"]).get("NETEM_LOSS_GE") if loss else None
    rate = attributes.get("TCA_NETEM_RATE", {"rate": 0})["rate"]
    return Netem(
        latency_ns=attributes["TCA_NETEM_LATENCY64"],
        jitter_ns=attributes["TCA_NETEM_JITTER64"],
        limit=answer["limit"],
        rate_bytes=attributes.get("TCA_NETEM_RATE64") or rate,
        loss=answer["loss"],
        gemodel=(chain["p"], chain["r"], chain["h"], chain["k1"]) if chain else None,
        duplicate=answer["duplicate"],
        gap=answer["gap"],
        reorder=attributes["TCA_NETEM_REORDER"]["prob_reorder"],
        corrupt=attributes["TCA_NETEM_CORRUPT"]["prob_corrupt"],
    )


def difference(asked: Netem, had: Netem) -> str | None:
    """Each field in which the kernel's qdisc is not the one asked for, or None."""
    differing = [
        f"{field} asked {getattr(asked, field)}, found {getattr(had, field)}"
        for field in Netem.__struct_fields__
        if getattr(asked, field) != getattr(had, field)
    ]
    return ", ".join(differing) or None


def teach() -> None:
    """Have pyroute2 know the netem attributes that its own table ends before.

    Its plugin also sends ``rate`` a second time as TCA_RATE, and has delays in ticks of 64 ns.
    """
    from types import SimpleNamespace

    from pyroute2.netlink import nla
    from pyroute2.netlink.rtnl import TC_H_ROOT
    from pyroute2.netlink.rtnl.tcmsg import plugins, sched_netem

    class Options(sched_netem.options):  # type: ignore[misc]
        nla_map = (
            *sched_netem.options.nla_map[:5],
            ("TCA_NETEM_LOSS", "netem_loss"),
            ("TCA_NETEM_RATE", "netem_rate"),
            ("TCA_NETEM_ECN", "hex"),
            ("TCA_NETEM_RATE64", "uint64"),
            ("TCA_NETEM_PAD", "hex"),
            ("TCA_NETEM_LATENCY64", "int64"),
            ("TCA_NETEM_JITTER64", "int64"),
        )

        class netem_loss(nla):  # type: ignore[misc]
            nla_map = (
                ("NETEM_LOSS_UNSPEC", "none"),
                ("NETEM_LOSS_GI", "hex"),
                ("NETEM_LOSS_GE", "gemodel"),
            )

            class gemodel(nla):  # type: ignore[misc]
                fields = (("p", "I"), ("r", "I"), ("h", "I"), ("k1", "I"))

    plugins["netem"] = SimpleNamespace(
        parent=TC_H_ROOT, options=Options, get_parameters=lambda keywords: keywords["options"]
    )


def _chance(percent: float) -> int:
    return round(percent / 100 * CERTAIN)


def _rate_bytes(rate_kbit: float | None) -> int:
    if rate_kbit is None:
        return UNLIMITED_BYTES
    exact = rate_kbit * 125
    rounded = round(exact)
    if abs(rounded - exact) > _COARSEST_RATE * exact:
        raise LinkError(
            f"rate_kbit = {rate_kbit}: netem counts whole bytes per second, and {exact:.3g} is too "
            f"few for that; {0.5 / _COARSEST_RATE / 125} kbit/s and more is always near enough"
        )
    return rounded
