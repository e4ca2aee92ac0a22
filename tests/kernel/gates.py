"""What a measure must show: per measure a function from what was found to a list of problems.

The tolerances are those that every run's certificate and `calibrate` hold links to. A chance is
held to four standard deviations, which one sample in 16,000 exceeds.
"""

import math
from collections.abc import Callable
from typing import Any

RATE = 0.02
"""Share of the rate, also of TCP's goodput."""
TOGETHER = 0.03
"""Share of the rate where several streams or a changing rate make it up."""
RTT, RTT_MS = 0.02, 1.0
DEVIATION = 0.10
QUEUE = 0.10
GAP = 0.10
BYTES = 0.005
SIGMAS = 4.0
TRIES = 3
"""A link that is wrong is wrong every time."""

Problems = list[str]


def near(what: str, value: float, asked: float, share: float, least: float = 0.0) -> Problems:
    allowed = max(share * asked, least)
    if abs(value - asked) <= allowed:
        return []
    return [f"{what}: {value:.3f}, asked {asked:.3f} ± {allowed:.3f}"]


def true(what: str, holds: bool) -> Problems:
    return [] if holds else [what]


def share(what: str, hits: int, of: int, percent: float, inflated: float = 1.0) -> Problems:
    """``hits`` of ``of`` against a chance; ``inflated`` is the variance's factor."""
    chance = percent / 100
    allowed = SIGMAS * math.sqrt(of * chance * (1 - chance) * inflated)
    return near(what, hits, of * chance, 0.0, allowed)


def rates(found: Any) -> Problems:
    return [p for way in ("up", "down") for p in near(way, *_kbit(found[way]), RATE)]


def _kbit(found: Any) -> tuple[float, float]:
    return found["kbit"], found.get("ideal_kbit", found.get("asked_kbit"))


def small_frames(found: Any) -> Problems:
    asked = found["asked_kbit"]
    return near("up", found["up"], asked, RATE) + near("down", found["down"], asked, RATE)


def goodput(found: Any) -> Problems:
    return [p for name, flow in found.items() for p in near(name, *_kbit(flow), RATE)]


def round_trip(found: Any) -> Problems:
    return near("round trip", found["ms"], found["asked_ms"], RTT, RTT_MS)


def loss(found: Any) -> Problems:
    lost, allowed = found["samples"], found["allowed"]
    inside = any(abs(sample - found["expected"]) <= allowed for sample in lost)
    told = found["counted"]["losses"] == sum(lost) and found["counted"]["queue_drops"] == 0
    return true(f"lost {lost}, expected {found['expected']} ± {allowed:.1f}", inside) + true(
        f"counters say {found['counted']}", told
    )


def gilbert_elliott(found: Any) -> Problems:
    """Runs of losses are geometric; the chain's memory inflates the variance of their sum."""
    p, r = 0.01, 0.25
    memory = 1 - p - r
    inflated = (1 + memory) / (1 - memory)
    spread = SIGMAS * math.sqrt(1 - r) / r / math.sqrt(found["runs"])
    return share("lost", found["lost"], found["count"], found["asked_percent"], inflated) + near(
        "mean run of losses", found["mean_run"], 1 / r, 0.0, spread
    )


def jitter(found: Any) -> Problems:
    deviation = near(
        "standard deviation", found["deviation_ms"], found["asked_deviation_ms"], DEVIATION
    )
    return deviation + near("mean", found["mean_ms"], found["asked_mean_ms"], 0.0, 3.0)


def order(found: Any) -> Problems:
    reorders = found["sack_reorders"]
    return [
        *true(f"{reorders} SACK reorders", reorders == 0),
        *true(f"without a rate: {found['free']}", found["free"]["in_order"]),
        *true(f"with a rate: {found['rated']}", found["rated"]["in_order"]),
        *true("packets went missing", found["free"]["came"] == 300 and found["rated"]["came"] > 60),
    ]


def damage(found: Any) -> Problems:
    count = found["count"]
    reorder, duplicate, corrupt = (found[name] for name in ("reorder", "duplicate", "corrupt"))
    only = [
        *true(f"reordering alone: {reorder}", reorder["came"] == count and not reorder["in_order"]),
        *true(f"duplicates alone: {duplicate}", duplicate["damaged"] == duplicate["early"] == 0),
        *true(f"corruption alone: {corrupt}", corrupt["doubled"] == corrupt["early"] == 0),
    ]
    return [
        *only,
        *share("reordered", reorder["early"], count, found["reorder_percent"]),
        *share("duplicated", duplicate["doubled"], count, found["duplicate_percent"]),
        *share("corrupted", corrupt["damaged"], count, found["corrupt_percent"]),
    ]


def queue(found: Any) -> Problems:
    counted, dropped = found["counted"], found["dropped"]
    told = counted["queue_drops"] == dropped > 0 and counted["losses"] == 0
    return near("greatest wait", found["ms"], found["asked_ms"], QUEUE) + true(
        f"{dropped} dropped, counters say {counted}", told
    )


def drops_apart(found: Any) -> Problems:
    counted = found["counted"]
    missing = found["count"] - found["came"]
    told = counted["queue_drops"] + counted["losses"] == missing
    return [
        *true(f"{missing} missing, counters say {counted}", told),
        *true("no drop of a full queue", counted["queue_drops"] > 100),
        *share("lost", counted["losses"], found["count"], found["percent"]),
    ]


def between_clients(found: Any) -> Problems:
    asked = found["asked_kbit"]
    return [
        *near("round trip", found["ms"], found["asked_ms"], RTT, RTT_MS),
        *near("by the receiver's downlink", found["by_downlink_kbit"], asked, RATE),
        *near("by the sender's uplink", found["by_uplink_kbit"], asked, RATE),
        *true("the server's link was crossed", found["server_untouched"]),
    ]


def server_link(found: Any) -> Problems:
    return near("round trip", found["ms"], found["asked_ms"], RTT, RTT_MS) + near(
        "both clients together", *_kbit(found), TOGETHER
    )


def shape_in_flight(found: Any) -> Problems:
    return [
        *true(f"{found['came']} of 120 came in order", found["came"] == 120 and found["in_order"]),
        *near("in the line before", *_kbit(found["before"]), RATE),
        *near("after", *_kbit(found["after"]), RATE),
        *near("one way", found["ms"], found["asked_ms"], RTT, RTT_MS),
    ]


def outage(found: Any) -> Problems:
    counted = found["counted"]
    return [
        *true(f"{found['during']} passed", found["during"] == 0),
        *true(f"{found['after']} came after", found["after"] == found["count"]),
        *true(f"counters say {counted}", counted["losses"] == counted["frames"] == found["count"]),
    ]


def trace(found: Any) -> Problems:
    counted, dropped = found["counted"], found["dropped"]
    told = counted["queue_drops"] == dropped > 0 and counted["losses"] == 0
    return [
        *true(f"{dropped} dropped, counters say {counted}", told),
        *near("mean", *_kbit(found["mean"]), RATE),
        *near("slow second", *_kbit(found["slow"]), TOGETHER),
        *near("fast second", *_kbit(found["fast"]), TOGETHER),
        *true(f"failed: {found['failure']}", found["failure"] is None),
    ]


def counters(found: Any) -> Problems:
    problems = []
    for way in ("up", "down"):
        count, size = found["sent"][way]
        counted = {"frames": count, "bytes": count * (size + 14), "queue_drops": 0, "losses": 0}
        problems += true(f"{way}: {found[way]}, sent {counted}", found[way] == counted)
    stream = found["stream"]
    segments = math.ceil(stream["payload"] / 1448)
    ideal = stream["payload"] + segments * 66
    problems += near("bytes of a TCP stream", stream["bytes"], ideal, BYTES)
    largest = stream["bytes"] / stream["frames"]
    return problems + true(f"{largest:.0f} bytes a frame of TCP", largest <= 1514)


def gaps(found: Any) -> Problems:
    """Of the slower direction, where the interpreter's own time is a small part of a gap."""
    off = found["down"]["gap_deviation_p95"]
    return true(f"95 % of gaps within {off:.3f} of the right one, at most {GAP}", off <= GAP)


def device(found: Any) -> Problems:
    told = found["counted"] == found["device"]
    return true(f"counters say {found['counted']}, wire0 says {found['device']}", told)


GATES: dict[str, Callable[[Any], Problems]] = {
    gate.__name__: gate
    for gate in (
        rates,
        small_frames,
        goodput,
        round_trip,
        loss,
        gilbert_elliott,
        jitter,
        order,
        damage,
        queue,
        drops_apart,
        between_clients,
        server_link,
        shape_in_flight,
        outage,
        trace,
        counters,
    )
}
"""By the name of the measure."""
KERNEL_GATES: dict[str, Callable[[Any], Problems]] = {"rates": gaps, "counters": device}
"""Of netem alone: `userspace` sends each packet by an interpreter whose system calls are forty
times slower in User-Mode Linux, and its devices count TCP's super-packets."""

BARE_RTT_MS, BARE_KBIT = 0.6, 15_000
"""Without any shape: a fifth of what a round trip may be off by, for timers come late as well, and
more than twice what fills the fastest link here."""


def unfit(misses: list[Any]) -> str | None:
    """Why a measure that missed its gates does not speak against the link, or None."""
    if len(misses) < TRIES:
        return f"no time to measure {TRIES} times"
    for bare in (miss["bare"] for miss in misses):
        if bare["round_trip_ms"] > BARE_RTT_MS or bare["kbit"] < BARE_KBIT:
            return (
                f"without any shape a round trip took {bare['round_trip_ms']:.2f} ms "
                f"(at most {BARE_RTT_MS}) and {bare['kbit']:.0f} kbit/s passed (at least "
                f"{BARE_KBIT}): this kernel was too slow to tell"
            )
    return None


def problems(backend: str, measure: str, found: Any) -> Problems:
    """Every gate of a measure that what was found does not pass."""
    gates = [table[measure] for table in (GATES, KERNEL_GATES) if measure in table]
    if backend != "netem":
        gates = gates[:1]
    return [problem for gate in gates for problem in gate(found)]
