"""The plan of a calibration: which probes measure a profile within a given time. Pure.

Each profile stands on two clients' links, so that two can be measured at once. First comes the
least that says something, the quickest kinds of probes before the slower ones, as far as the time
goes; what is left of it makes the samples larger.
"""

import math
from collections.abc import Callable

import msgspec

from testbed.calibration.link_timing import LAST_S, idle_s
from testbed.calibration.probes import (
    PURPOSES,
    STAGES,
    Probe,
    Schedule,
    Step,
    Stream,
    Transfer,
    Trips,
)
from testbed.calibration.sizing import (
    CLIENTS,
    MOST_ABOVE,
    PING_GAP_S,
    PROBE_BYTES,
    counting,
    pings,
    saturating,
    transfer,
    why_not_filled,
)
from testbed.network.direction import WAYS, Direction
from testbed.network.profiles import LinkProfile
from testbed.probing.probeable import is_too_fast, why_not_singly, why_not_tcp
from testbed.units import human_seconds

PINGS = 100
PINGS_WITH_JITTER = 200
"""A standard deviation of 200 uniform delays is within 10 % in 998 of 1000 cases."""
LEAST_PINGS = 20
COUNTING_STEP_S = 0.05
SIDE_BY_SIDE_KBIT = 50_000.0
"""Up to this sum of rates both directions, or both clients, are measured at the same time."""

TRIPS = 60
TRIPS_SHARE = 0.25
"""Of the time, for round trips one by one."""


def schedule(profile: LinkProfile, seconds: float, streams: bool = False) -> Schedule:
    """How to measure ``profile`` within ``seconds``, packet by packet or by TCP ``streams``."""
    planner = _Planner(profile, seconds)
    if streams:
        planner.plan_streams()
    else:
        planner.plan_packets()
    steps = [step for purpose in PURPOSES for step in planner.taken.get(purpose, ())]
    steps.sort(key=lambda step: STAGES.index(step.stage))
    return Schedule(profile, streams, tuple(steps), planner.left_out)


class _Planner:
    def __init__(self, profile: LinkProfile, seconds: float) -> None:
        self._profile = profile
        self._seconds = self._left_s = seconds
        self._needed_s = 0.0
        """What all would have taken that has been asked for so far."""
        self._ways = {"up": profile.up, "down": profile.down}
        self.taken: dict[str, list[Step]] = {}
        self.left_out: dict[str, str] = {}

    def plan_packets(self) -> None:
        ways = self._ways
        if any(direction.outage for direction in ways.values()):
            for purpose in ("delay", "goodput"):
                self.left_out[purpose] = "an outage lets no answer through"
        else:
            self._take("delay", [pings(self._profile, LEAST_PINGS)])
        full = [way for way, direction in ways.items() if self._can_be_filled(way, direction)]
        single = [way for way in full if why_not_singly(ways[way]) is None]
        self._take("rate", [saturating("rate", 0, way, ways[way]) for way in single])
        self._take("together", [one for way in full for one in self._together(way)])
        if "goodput" not in self.left_out:
            self._take("goodput", self._transfers(full, False))
        for way, direction in ways.items():
            probes = [*self._probes("shares"), counting(way, direction)]
            self._take("shares", probes, f"shares {way}")
        wanted = PINGS_WITH_JITTER if _jittered(self._profile) else PINGS
        self._grow("delay", lambda count: [pings(self._profile, count)], LEAST_PINGS, wanted)
        counted = [one.way for one in self._probes("shares") if isinstance(one, Stream)]

        def count_for(steps: int) -> list[Probe]:
            return [counting(way, ways[way], steps * COUNTING_STEP_S) for way in counted]

        self._grow("shares", count_for, 0, int(self._seconds / COUNTING_STEP_S))

    def plan_streams(self) -> None:
        if any(direction.outage for direction in self._ways.values()):
            self.left_out |= dict.fromkeys(PURPOSES, "the stream stops in an outage")
            return
        trip_s = sum(idle_s(direction, PROBE_BYTES) for direction in self._ways.values())
        fitting = int(TRIPS_SHARE * self._seconds / (trip_s + PING_GAP_S))
        count = max(LEAST_PINGS, min(TRIPS, fitting))
        self._take("delay", [Trips(count=count, seconds=count * (trip_s + PING_GAP_S) + LAST_S)])
        rated = [way for way, direction in self._ways.items() if direction.line_kbit]
        transfers = self._transfers(rated, True)
        self._take("goodput", transfers)
        pairs = [(client, one) for one in transfers for client in range(CLIENTS)]
        self._take(
            "together",
            [
                msgspec.structs.replace(one, purpose="together", client=client)
                for client, one in pairs
            ],
        )

    def _probes(self, purpose: str) -> list[Probe]:
        return [probe for step in self.taken.get(purpose, ()) for probe in step.probes]

    def _take(self, purpose: str, probes: list[Probe], name: str = "") -> None:
        """Take the probes if there is time for them, else leave them out and say so."""
        if not probes:
            return
        steps = self._steps(purpose, probes)
        more_s = _sum_s(steps) - _sum_s(self.taken.get(purpose, []))
        self._needed_s += more_s
        if more_s <= self._left_s:
            self.taken[purpose] = steps
            self._left_s -= more_s
        else:
            self.left_out[name or purpose] = (
                f"takes {human_seconds(more_s)}: --seconds={math.ceil(self._needed_s)} would do"
            )

    def _grow(
        self, purpose: str, probes: Callable[[int], list[Probe]], least: int, most: int
    ) -> None:
        """Make a sample as large as the time that is left allows, ``most`` at most."""
        if purpose not in self.taken:
            return
        before_s = _sum_s(self.taken[purpose])
        low, high = least, most
        while low < high:
            middle = (low + high + 1) // 2
            if _sum_s(self._steps(purpose, probes(middle))) - before_s <= self._left_s:
                low = middle
            else:
                high = middle - 1
        self.taken[purpose] = self._steps(purpose, probes(low))
        self._left_s -= _sum_s(self.taken[purpose]) - before_s

    def _steps(self, purpose: str, probes: list[Probe]) -> list[Step]:
        """One step where the machine can carry all at once, else one a direction."""
        heavy = [one for one in probes if isinstance(one, Stream | Transfer)]
        kbit = sum(self._ways[one.way].line_kbit or 0.0 for one in heavy)
        if purpose in ("delay", "shares") or kbit <= SIDE_BY_SIDE_KBIT:
            return [Step(purpose, tuple(probes))]
        return [
            Step(f"{purpose} {way}", tuple(one for one in heavy if one.way == way))
            for way in WAYS
            if any(one.way == way for one in heavy)
        ]

    def _together(self, way: str) -> list[Probe]:
        """Both clients' lines kept full: by TCP where single packets cannot do it."""
        direction = self._ways[way]
        if not is_too_fast(direction, CLIENTS):
            return [saturating("together", client, way, direction) for client in range(CLIENTS)]
        reason = why_not_tcp(direction, self._back(way))
        if reason is not None:
            singly = why_not_singly(direction, CLIENTS)
            self.left_out[f"together {way}"] = f"{singly}, and {reason}"
            return []
        # The gate is wider than that of goodput, and a line that is too fast must still miss it.
        one = transfer(way, self._profile, False, MOST_ABOVE)
        return [
            msgspec.structs.replace(one, purpose="together", client=client)
            for client in range(CLIENTS)
        ]

    def _can_be_filled(self, way: str, direction: Direction) -> bool:
        reason = why_not_filled(direction)
        if reason is not None:
            self.left_out |= {
                f"{purpose} {way}": reason for purpose in ("rate", "goodput", "together")
            }
        elif (singly := why_not_singly(direction)) is not None:
            by_tcp = why_not_tcp(direction, self._back(way))
            proof = f", and {by_tcp}" if by_tcp else "; goodput proves the rate"
            self.left_out[f"rate {way}"] = singly + proof
        return reason is None

    def _back(self, way: str) -> Direction:
        return self._ways[WAYS[1 - WAYS.index(way)]]

    def _transfers(self, ways: list[str], streams: bool) -> list[Probe]:
        """Each direction on a client's link of its own: acknowledgements would take room."""
        return [transfer(way, self._profile, streams) for way in ways]


def _sum_s(steps: list[Step]) -> float:
    return sum(step.seconds for step in steps)


def _jittered(profile: LinkProfile) -> bool:
    return bool(profile.up.jitter_ms or profile.down.jitter_ms)
