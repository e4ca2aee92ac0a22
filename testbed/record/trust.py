"""The certificate in one line: whether minutes and bytes can be trusted, and else what to type."""

from typing import NamedTuple

from testbed.fidelity.underlay_checks import HOSTS_NETWORK
from testbed.network import profiles
from testbed.record import host_load
from testbed.record.run_summary import Summary


class _Doubt(NamedTuple):
    """A reason not to trust a run's minutes."""

    certain: bool
    """They are wrong; else nothing shows that they are right."""
    reason: str
    cure: str | None
    """What to type."""


def line(summary: Summary) -> str:
    """The line, of a run that has ended.

    Bytes are counted where they pass, whatever became of the links and of the host's time, but
    with those of strangers.
    """
    found = _of_links(summary), _of_host(summary), _of_strangers(summary)
    doubts = [doubt for doubt in found if doubt]
    estimated = summary.links == "loopback"
    if not doubts:
        clients = summary.clients
        where = f"{clients} {'device' if clients == 1 else 'devices'} on {summary.profile}"
        but = "; those on the wire are an estimate (loopback links)" if estimated else ""
        return f"trust: minutes and bytes are those of {where}{but}{_left_out(summary)}"
    count = "bytes yes, but on the wire an estimate (loopback links)" if estimated else "bytes yes"
    if summary.fidelity.strangers.verdict == "fail":
        count = "bytes no"
    minutes = "no" if any(doubt.certain for doubt in doubts) else "not known"
    reasons = "; ".join(doubt.reason for doubt in doubts)
    cures = " and ".join(doubt.cure for doubt in doubts if doubt.cure)
    return f"trust: {count}; minutes {minutes}: {reasons}{cures and f'; type: {cures}'}"


def _of_links(summary: Summary) -> _Doubt | None:
    links = summary.fidelity.links
    if links.verdict == "fail":
        reason = f"links are not as their profiles say ({links.reason})"
        missed = [check.name for check in summary.fidelity.checks if not check.ok]
        # Of what lies between hosts, a measurement of the links on one of them says nothing.
        hosts_alone = missed and all(name.startswith(HOSTS_NETWORK) for name in missed)
        return _Doubt(True, reason, None if hosts_alone else _calibrate(summary.profile or ""))
    if links.verdict == "skipped":
        cure = "--calibrate" if "--no-calibrate" in links.reason else None
        return _Doubt(False, f"the links were not checked ({links.reason})", cure)
    return None


def _calibrate(profile: str) -> str:
    """The command that measures these links by themselves; ``profile`` may be a mix."""
    names = [part.partition(":")[0] for part in profile.split(",")]
    known = set(names) <= set(profiles.names())
    return f"python cli.py calibrate --profile={','.join(names) if known else 'YOUR-OWN.toml'}"


def _of_host(summary: Summary) -> _Doubt | None:
    host = summary.fidelity.host
    if host.verdict == "fail":
        return _Doubt(True, host.reason, host_load.cure(summary))
    if host.verdict == "skipped":
        return _Doubt(False, host.reason, None)
    return None


def _of_strangers(summary: Summary) -> _Doubt | None:
    strangers = summary.fidelity.strangers
    return _Doubt(True, strangers.reason, None) if strangers.verdict == "fail" else None


def _left_out(summary: Summary) -> str:
    left = summary.fidelity.not_probed
    if not left:
        return ""
    return f" ({len(left)} of the links' checks could not be made: see the report)"
