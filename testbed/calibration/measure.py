"""Measurement from profiles to rows: plans each one, builds networks, measures, judges."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from testbed.calibration.gates import Row
from testbed.calibration.judge import judge
from testbed.calibration.plan import schedule
from testbed.calibration.probes import Schedule
from testbed.calibration.runner import Job, conduct
from testbed.calibration.sizing import CLIENTS
from testbed.links import choice
from testbed.links.interface import Backend
from testbed.network import mix
from testbed.network import profiles as shipped
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.run.config import choose
from testbed.units import human_seconds

TOGETHER_KBIT = 100_000.0
"""Profiles are measured side by side as long as all their lines together carry no more."""
MOST_TOGETHER = 8
ALL = "all"


class Calibration(msgspec.Struct):
    """The findings of `calibrate`."""

    links: str
    """The backend, and why."""
    seconds: float
    rows: list[Row]
    facts: list[dict[str, Any]]
    """Of each network that was up: what its backend said of it at first, and at the end."""

    @property
    def passed(self) -> bool:
        """Whether no gate is missed, and each profile has one that holds."""
        judged = {row.link for row in self.rows if row.ok}
        return all(row.ok is not False and row.link in judged for row in self.rows)


def named(texts: tuple[str, ...]) -> list[LinkProfile]:
    """The profiles that ``--profile`` names: each once, in their order.

    A text is a name or a path, several after commas, or "all"; the counts of a mix ("4g:12") say
    nothing here.

    Raises:
        ConfigError: a profile that does not load.
    """
    found: list[LinkProfile] = []
    for name in (piece.name for text in texts for piece in mix.parse(text)):
        if name == ALL:
            found += [shipped.load(one) for one in shipped.names()]
        else:
            found.append(shipped.load(name))
    # Files of the same link have one name, whoever wrote them.
    return list({profile.name: profile for profile in found}.values())


def calibrate(
    profiles: list[LinkProfile],
    links: str,
    seconds: float,
    say: Callable[[str], None],
    check: Callable[[int, Backend], None],
) -> Calibration:
    """Measure ``profiles`` over ``links``, each within about ``seconds``; ``say`` hears the plan.

    ``check`` is told before anything starts how many nodes there will be at once, and of which
    links.

    Raises:
        ConfigError: ``links`` is unknown or does not work here, or as ``check`` does.
        LinkError: a network could not be built, or failed.
    """
    choose("links", links, ["auto", *(backend.name for backend in choice.BACKENDS)])
    backend, why = choice.choose(links, plan(profiles))
    schedules = [schedule(profile, seconds, backend.name == "loopback") for profile in profiles]
    groups = grouped(schedules)
    check(1 + CLIENTS * max(map(len, groups)), backend)
    began_s = time.monotonic()
    result = Calibration(why, 0.0, [], [])
    say(why)
    for group in groups:
        for one in group:
            say(_described(one))
        found, facts = _measure(backend, group)
        result.rows += found
        result.facts.append(facts)
    order = {profile.name: index for index, profile in enumerate(profiles)}
    result.rows.sort(key=lambda row: order[row.link])
    result.seconds = time.monotonic() - began_s
    return result


def grouped(schedules: list[Schedule]) -> list[list[Schedule]]:
    """Which profiles are measured side by side: the quickest to measure with each other."""
    groups: list[list[Schedule]] = []
    for one in sorted(schedules, key=lambda one: one.seconds):
        last = groups[-1] if groups else []
        kbit = _kbit(one) + sum(_kbit(other) for other in last)
        if last and len(last) < MOST_TOGETHER and kbit <= TOGETHER_KBIT:
            last.append(one)
        else:
            groups.append([one])
    return groups


def _kbit(one: Schedule) -> float:
    """The rate of its lines when all are full; a line without a rate is a group of its own."""
    ways = (one.profile.up.line_kbit, one.profile.down.line_kbit)
    return CLIENTS * sum(TOGETHER_KBIT if kbit is None else kbit for kbit in ways)


def _measure(backend: Backend, group: list[Schedule]) -> tuple[list[Row], dict[str, Any]]:
    layout = plan([one.profile for one in group for _ in range(CLIENTS)])
    network = backend.up(layout)
    closing: dict[str, Any] = {}
    try:
        jobs = [
            Job(one, layout.clients[CLIENTS * index : CLIENTS * (index + 1)])
            for index, one in enumerate(group)
        ]
        seen = conduct(layout, network, jobs)
    finally:
        closing = network.down()
    rows = [row for job, one in zip(jobs, seen, strict=True) for row in judge(job.schedule, one)]
    return rows, {**network.facts, **closing, "profiles": [one.profile.name for one in group]}


def _described(one: Schedule) -> str:
    """ "4g: 28.9 s: delay 9.4 s, rate 2.55 s, ...; not measured: ..." """
    spent = ", ".join(f"{step.stage} {human_seconds(step.seconds)}" for step in one.steps)
    text = f"{one.profile.name}: {human_seconds(one.seconds)}: {spent or 'nothing'}"
    for purpose, reason in one.left_out.items():
        text += f"\n  no {purpose}: {reason}"
    return text
