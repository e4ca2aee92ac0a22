"""Judgement of a profile: its observations held against it, one Row a gate. Pure."""

from testbed.calibration import judge_delay, judge_line, judge_shares
from testbed.calibration.gates import Row
from testbed.calibration.observations import Seen
from testbed.calibration.probes import Schedule
from testbed.calibration.side import BOTH, Side
from testbed.network.direction import WAYS


def judge(schedule: Schedule, seen: Seen) -> list[Row]:
    """Every gate that ``schedule``'s profile has, in a fixed order."""
    found = [judge_delay.round_trip(Side(schedule, seen, BOTH))]
    for way in WAYS:
        side = Side(schedule, seen, way)
        found += judge_delay.one_way(side)
        found += judge_line.full_line(side)
        found += judge_shares.shares(side)
    return found
