"""The host's part of the certificate: whether this machine had time for what it stood for.

A node that waited for a core while its device would have been done, or packets that left their link
late, lengthen rounds as the network and the devices would not. Pure: figures in, words out.
"""

import math
from collections.abc import Mapping

from msgspec import UNSET

from testbed.clock import MAX_DILATION
from testbed.fidelity.paths import RTT_TOLERANCE_MS
from testbed.network.direction import SEGMENT_BYTES
from testbed.network.topology import SERVER
from testbed.record.events import Facts, Fidelity, Verdict, known
from testbed.record.reading import SUPERVISOR
from testbed.record.run_summary import Certificate, Computed, Host, Judged, Summary

LATE_SHARE = 0.05
"""Of the time of all rounds, by which a node may be late in them."""
AGAIN_SHARE = 0.01
"""Of the bytes on the wire, that TCP may send again though nothing was lost."""
CROWDED_SHARE = 0.65
"""Of the rounds' time, in which an elastic clock may go on though threads wait for a core. With a
free machine it is a third or less, with one other program at work half, and rounds are then up to
a tenth longer; with five programs all, and a fourth."""
AIMED_SHARE = 0.02
"""What a dilation is chosen for."""
SPARE = 0.6
"""Share of this machine's time that is planned with."""
LEAST_S = 1e-6
"""What times are recorded to; what took less stands there as 0."""
ELASTIC_LINKS = ("userspace", "loopback")
"""Backends that can go by an elastic clock."""
NONE_GONE: Mapping[str, str] = {}
_LINKS_LATENESS = "lateness_p99_ms"


def judge(
    summary: Summary,
    links: Facts,
    busy_cores: float | None = None,
    gone: Mapping[str, str] = NONE_GONE,
) -> Host:
    """Hold a run that has ended against what it was to be; ``links``: their closing facts.

    ``gone``: hosts of several that are, and how that is known.
    """
    if summary.programs:
        return _of_programs(summary, links, gone)
    rounds_s = _rounds_s(summary)
    if not rounds_s:
        return _skipped("no round was finished")
    rows = rows_with_lateness(summary)
    if not rows:
        return _skipped("this system does not say how long a process waits for a core")
    latest = max(rows, key=late_s)
    share = late_s(latest) / rounds_s
    links_late_ms = _lateness_ms(links)
    needed = enough(summary, links)
    failures = [f"host {name} is gone: {why}" for name, why in gone.items()]
    if share > LATE_SHARE:
        failures.append(_late(summary, latest, share))
    if stopped := _stopped(summary, rounds_s):
        failures.append(stopped)
    if links_late_ms is not None and links_late_ms > RTT_TOLERANCE_MS:
        failures.append(_late_links(links_late_ms))
    if summary.elastic and (again := _sent_again_for_nothing(summary)) > AGAIN_SHARE:
        failures.append(
            f"TCP sent {100 * again:.1f} % of all bytes again that were not lost, since packets "
            f"stood still with the clock; {100 * AGAIN_SHARE:g} are allowed"
        )
    if (crowded := _crowded_s(links) / rounds_s) > CROWDED_SHARE:
        failures.append(
            f"for {min(100, 100 * crowded):.0f} % of the rounds' time more programs were at work "
            f"than this machine has cores, whatever they were; {100 * CROWDED_SHARE:g} are allowed"
        )
    figures = (latest.node, round(share, 4), links_late_ms, needed, busy_cores)
    if failures:
        return Host("fail", "; ".join(failures), *figures)
    packets = "" if links_late_ms is None else f", packets {links_late_ms:.1f} ms late"
    reason = f"{latest.node} was late for {100 * share:.1f} % of the rounds' time{packets}"
    return Host("pass", reason, *figures)


def _of_programs(summary: Summary, links: Facts, gone: Mapping[str, str]) -> Host:
    """The same of programs, of which all that is known is how long threads waited for a core."""
    took_s = {row.node: row.seconds for row in summary.programs if row.seconds}
    shares = {
        row.node: row.run_delay_s / took_s[row.node]
        for row in summary.processes
        if row.node in took_s and row.run_delay_s is not None
    }
    if not shares:
        return _skipped("no program has run")
    node = max(shares, key=lambda name: shares[name])
    share, links_late_ms = shares[node], _lateness_ms(links)
    cores = (summary.environment and summary.environment.cores) or 0
    waited = f"threads of {node} waited for a core for {100 * share:.1f} % of its time"
    failures = [f"host {name} is gone: {why}" for name, why in gone.items()]
    if share > LATE_SHARE:
        nodes = _count(len(summary.programs), "node")
        failures.append(f"{waited} ({nodes} on {_count(cores, 'core')})")
    still = {name: summary.stopped.get(name, 0.0) / seconds for name, seconds in took_s.items()}
    stillest = max(still, key=lambda name: still[name])
    if still[stillest] > LATE_SHARE:
        failures.append(_stood_still(stillest, summary.stopped[stillest]))
    if links_late_ms is not None and links_late_ms > RTT_TOLERANCE_MS:
        failures.append(_late_links(links_late_ms))
    figures = (node, round(share, 4), links_late_ms, None, None)
    if failures:
        return Host("fail", "; ".join(failures), *figures)
    packets = "" if links_late_ms is None else f", packets {links_late_ms:.1f} ms late"
    return Host("pass", f"{waited}{packets}", *figures)


def _stopped(summary: Summary, rounds_s: float) -> str | None:
    """Words for who stood still for longer than a node may be late."""
    node = max(summary.stopped, key=lambda name: summary.stopped[name], default=None)
    if node is None or summary.stopped[node] <= LATE_SHARE * rounds_s:
        return None
    return _stood_still("the run itself" if node == SUPERVISOR else node, summary.stopped[node])


def _stood_still(who: str, seconds: float) -> str:
    return f"{who} stood still for {seconds:.1f} s, as by a signal or a debugger"


def _late_links(links_late_ms: float) -> str:
    return (
        f"one packet of a hundred left its link {links_late_ms:.1f} ms late or more, of which "
        f"{RTT_TOLERANCE_MS:g} are allowed"
    )


def _sent_again_for_nothing(summary: Summary) -> float:
    """Share of the wire's bytes that TCP sent again, beyond what lines lost or dropped."""
    again = lost = 0
    for client in summary.per_client:
        told = (client.retransmitted.up, client.retransmitted.down)
        again += sum(each.bytes for each in told if each is not None)
        lost += client.losses.both + client.queue_drops.both
    return max(0, again - SEGMENT_BYTES * lost) / max(1, summary.bytes.wire.both)


def cure(summary: Summary) -> str | None:
    """The option that gives each node the time it needs, where the verdict is that it had not."""
    if summary.programs:
        # They go by this machine's clock.
        return None
    several = "host" in summary.link_facts
    can_wait = summary.links in ELASTIC_LINKS and not several
    if summary.dilation == 1 and not summary.elastic and can_wait:
        return "--dilation=elastic"
    needed = known(summary.fidelity.host.dilation_needed)
    if needed is None or needed > MAX_DILATION:
        return None
    if several:
        # Of several hosts no trial round says more than this one did.
        return f"--dilation={needed:g}" if needed > summary.dilation else None
    # An elastic clock that was crowded: what ran beside it is not in the nodes' own figures.
    return f"--dilation={needed:g}" if needed > summary.dilation else "--dilation=auto"


def _skipped(reason: str) -> Host:
    return Host("skipped", reason, None, None, None, None, None)


def _late(summary: Summary, row: Computed, share: float) -> str:
    """ "client-7 waited 41 % of the rounds' time for a core (20 clients on 2 cores)" """
    compute = summary.compute
    device = compute.server_device_class if row.node == SERVER else compute.device_class
    does = f"waited {100 * share:.0f} % of the rounds' time for a core"
    if compute.mode == "modelled" or device:
        does = f"was behind its device for {100 * share:.0f} % of the rounds' time"
    cores = (summary.environment and summary.environment.cores) or 0
    return f"{row.node} {does} ({_count(summary.clients, 'client')} on {_count(cores, 'core')})"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def enough(summary: Summary, links: Facts) -> float:
    """A dilation with which such a run's nodes and links would be on time.

    What a node was busy for on this machine, waiting for a core included, is to be no more than its
    device needs and a little of the rounds as they should have been; the links' lateness, which is
    this machine's, no more than is allowed. A tenth or a whole number, rounded up.
    """
    dilation = summary.dilation
    rows = rows_with_lateness(summary)
    worst_s = max(map(late_s, rows), default=0.0)
    rounds_s = max([_rounds_s(summary) - worst_s, LEAST_S, *map(device_s, rows)])
    found = 1.0
    for row in rows:
        if late_s(row) > 0:
            busy_s = dilation * (device_s(row) + late_s(row))
            found = max(found, busy_s / (device_s(row) + AIMED_SHARE * rounds_s) / SPARE)
        cpu_s, device = known(row.cpu_s) or 0.0, max(known(row.device_s) or 0.0, LEAST_S)
        if cpu_s > device:
            # A device that is faster than a core can be shown by nothing else.
            found = max(found, cpu_s / device / SPARE)
    late_ms = (_lateness_ms(links) or 0.0) * dilation
    if late_ms > RTT_TOLERANCE_MS:
        found = max(found, late_ms / RTT_TOLERANCE_MS / SPARE)
    return rounded_up(found)


def rounded_up(dilation: float) -> float:
    """The factor rounded up to a tenth below 10, to a whole number beyond."""
    return math.ceil(10 * dilation) / 10 if dilation < 10 else float(math.ceil(dilation))


def _rounds_s(summary: Summary) -> float:
    return float(sum(entry.seconds or 0.0 for entry in summary.rounds))


def _crowded_s(links: Facts) -> float:
    found = links.get("crowded_ms")
    return found / 1000 if isinstance(found, int | float) else 0.0


def _lateness_ms(links: Facts) -> float | None:
    found = links.get(_LINKS_LATENESS)
    return found if isinstance(found, int | float) else None


def rows_with_lateness(summary: Summary) -> list[Computed]:
    """Rows of the nodes whose lateness is known."""
    return [row for row in summary.compute.nodes if row.late_s is not None]


def late_s(row: Computed) -> float:
    """Seconds that this machine took longer than a node's device; 0 where it is not known."""
    return row.late_s or 0.0


def device_s(row: Computed) -> float:
    """Seconds that a node's computing takes its device."""
    return float(known(row.device_s if row.modelled_s is UNSET else row.modelled_s) or 0.0)


def combined(links: Fidelity, host: Host, strangers: Judged) -> Certificate:
    """All parts of the certificate: the worst verdict with its reason, and the links' checks."""
    parts = [Judged(part.verdict, part.reason) for part in (links, host, strangers)]
    order: tuple[Verdict, ...] = ("fail", "skipped", "pass")
    worst = min(parts, key=lambda part: order.index(part.verdict))
    return Certificate(
        verdict=worst.verdict,
        reason=worst.reason,
        checks=links.checks,
        not_probed=links.not_probed,
        links=parts[0],
        host=host,
        strangers=parts[2],
    )
