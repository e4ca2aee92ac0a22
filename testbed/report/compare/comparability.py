"""Comparability of runs: why some of those that are held against one another should not be."""

from __future__ import annotations

from collections.abc import Sequence

from testbed.metrics import Target, words
from testbed.record.run_summary import Summary
from testbed.report.compare import different_networks
from testbed.report.compare.comparison import Run, metrics_of, names, parted
from testbed.report.text import few


def notes(found: Sequence[Run], target: Target | None = None) -> list[str]:
    """Reasons why these runs are not comparable, in sentences; ``target``: the one asked for."""
    taught, ran = parted(found)
    said = _of_programs(taught, ran)
    said += [] if target else _of_metrics(taught)
    said += _of_copies(found)
    backends = sorted({run.summary.links for run in found if run.summary.links})
    if len(backends) > 1:
        text = f"Runs over {' and '.join(backends)} links are not comparable with one another"
        if "loopback" in backends:
            text += ": over loopback links bytes on the wire are an estimate"
        said.append(f"{text}.")
    modes = {run.summary.compute.mode for run in taught}
    if len(modes) > 1:
        said.append(
            "Runs of real and of modelled compute are not comparable with one another: minutes are "
            "of this machine in the one, of a device in the other."
        )
    machines = {_machine(run.summary) for run in found}
    if len(machines) > 1 and (ran or "real" in modes):
        said.append(
            f"The runs were made on {len(machines)} different machines "
            f"({'; '.join(sorted(machines))}), which shows in the minutes of real compute."
        )
    said += _of_connections(taught)
    # Methods' names are mostly the same in these.
    folders = [run.folder.name for run in found]
    said += different_networks.notes([run.summary for run in found], folders)
    told = [each for part in (taught, ran) for each in zip(names(part), part, strict=True)]
    wrong = [name for name, run in told if run.summary.fidelity.links.verdict == "fail"]
    if wrong:
        said.append(f"Links were not as their profiles say in {few(wrong)}.")
    late = [name for name, run in told if run.summary.fidelity.host.verdict == "fail"]
    if late:
        said.append(f"The machine had no time for all nodes in {few(late)}.")
    called = [name for name, run in told if run.summary.fidelity.strangers.verdict == "fail"]
    if called:
        said.append(f"Bytes of strangers are among those of {few(called)}.")
    return said


def _of_copies(found: Sequence[Run]) -> list[str]:
    """A note where several folders have one run's record, which a spread would count as repeats."""
    places: dict[tuple[str, ...], list[str]] = {}
    for run in found:
        if run.summary.run_id is not None:
            own = run.summary.run_id, run.summary.command or ""
            places.setdefault(own, []).append(str(run.folder))
    return [
        f"{few(own)} have the record of one run, {name}: none is a repeat of another."
        for (name, *_), own in places.items()
        if len(own) > 1
    ]


def _of_programs(taught: Sequence[Run], ran: Sequence[Run]) -> list[str]:
    """Notes on runs of programs: among those of methods, and those in which one failed."""
    said = []
    if taught and ran:
        said.append(
            f"No metric and no payload is known of programs ({few(names(ran))}): they are held "
            "against methods by time and bytes on the wire alone, and are on no front."
        )
        paced = [name for name, run in zip(names(taught), taught, strict=True) if _paced(run)]
        if paced:
            said.append(
                f"Minutes of {few(paced)} are of a clock that stands still or goes slower while "
                "nodes compute; programs' seconds are of this machine's own."
            )
    failed = [
        f"{name} ({run.summary.reason})"
        for name, run in zip(names(ran), ran, strict=True)
        if run.summary.status != "ok"
    ]
    if failed:
        said.append(f"Seconds and bytes are of what programs got to in {few(failed)}.")
    return said


def _paced(run: Run) -> bool:
    return run.summary.elastic or run.summary.dilation != 1


def _of_metrics(found: Sequence[Run]) -> list[str]:
    """A note where runs are shown by different metrics."""
    named: dict[str, list[str]] = {}
    for name, metric in zip(names(found), metrics_of(found, None), strict=True):
        named.setdefault(metric, []).append(name)
    if len(named) < 2:
        return []
    told = "; ".join(f"{words(metric)} in {few(own)}" for metric, own in named.items())
    return [
        f"Runs are shown by different metrics, and so not compared at one target: {told}. "
        "--target=METRIC=VALUE compares all by one."
    ]


def _of_connections(found: Sequence[Run]) -> list[str]:
    """A note where some runs' connections have keys and others' have none."""
    named: dict[str, list[str]] = {}
    for name, run in zip(names(found), found, strict=True):
        named.setdefault(run.summary.secure or "none", []).append(name)
    if len(named) < 2:
        return []
    told = "; ".join(f"{word} in {few(own)}" for word, own in sorted(named.items()))
    return [f"Connections had keys of different kinds, which cost bytes and time: {told}."]


def _machine(summary: Summary) -> str:
    own = summary.environment
    if own is None:
        return "None cores, None MB, None"
    return f"{own.cores} cores, {own.memory_mb} MB, {own.kernel}"
