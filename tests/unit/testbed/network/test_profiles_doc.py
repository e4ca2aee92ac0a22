"""Every example of docs/profiles.md is read as it stands there."""

import re
from pathlib import Path

from testbed.network import positions, profiles, schedule

TEXT = (Path(__file__).parents[4] / "docs" / "profiles.md").read_text()
OWN, MININET, STEPS, CHANGES, WALK = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def test_profiles(tmp_path: Path) -> None:
    own, mininet, scheduled = (tmp_path / f"{name}.toml" for name in ("own", "mininet", "steps"))
    own.write_text(OWN)
    assert profiles.load(own).up.gilbert_elliott is not None
    mininet.write_text(MININET)
    assert profiles.load(mininet).down.max_packets == 1000
    scheduled.write_text(
        OWN.replace("[provenance]", f'{STEPS}[provenance]\nschedule = "assumed: x"')
    )
    assert [state.at_s for state in profiles.load(scheduled).schedule] == [30, 60, 70, 90]


def test_a_schedule_for_some(tmp_path: Path) -> None:
    file = tmp_path / "changes.toml"
    file.write_text(CHANGES)
    (entry,) = schedule.load(file, 3)
    assert (entry.clients, entry.outage_s) == ((1, 3), 2.5)


def test_positions(tmp_path: Path) -> None:
    file = tmp_path / "walk.toml"
    file.write_text(WALK)
    stands, walks = positions.load(file)
    assert not stands.schedule
    # 10 to 130 m in 60 s, out of 100 m after 45 s; back at 75 s.
    assert [state.at_s for state in walks.schedule if state.up.outage] == [46]
