"""Hosts on a comparison's page: a row for each run that had several."""

from pathlib import Path
from typing import Any

import made_programs
import made_run
from checked_page import check
from made_events import at
from made_run import Event, folder

from testbed.report.compare import comparison, comparison_page, program_comparison

RTT_MS, RATE_KBIT = 0.2, 1e6


def on_hosts(found: list[Event], names: str, worst: float = 1.0, **ended: Any) -> list[Event]:
    """The same run on these hosts; ``worst``: of the last one's network, as many times as bad."""
    parts = [
        {"name": name, "address": f"10.0.0.{n}", "cores": 2 + n, "memory_mb": 900, "nodes": 1}
        for n, name in enumerate(names)
    ]
    first, *others = names
    ways = []
    for n, other in enumerate(others, start=1):
        times = worst if n == len(others) else 1.0
        for one, to in ((first, other), (other, first)):
            way = {"sender": one, "receiver": to, "rate_kbit": RATE_KBIT / times}
            rtt = {f"rtt_{which}_ms": times * RTT_MS for which in ("min", "median", "max")}
            ways.append(way | rtt | {"offset_ms": 0.0, "offset_error_ms": 0.1})
    told = at(0.2, "supervisor", "hosts", hosts=parts, place=f"server={first}", underlay=ways)
    later = [
        at(1, "supervisor", "host_clock", host=others[-1], behind_s=worst / 1000, error_s=1e-5)
    ]
    for name in names:
        links = {"busy_cores": 0.5, "lateness_p99_ms": 0.25}
        tunnels = {"x": {"frames_received": 9, "late_frames": 1}}
        own = {} if name in ended else {"links": links, "tunnels": tunnels}
        kind = "host_gone" if name in ended else "host_left"
        own |= {"reason": ended[name]} if name in ended else {}
        later.append(at(20, "supervisor", kind, host=name, **own))
    *rest, closed = found
    return [*rest[:2], told, *rest[2:], *later, closed]


def page(*runs: Path) -> Any:
    taught, others = comparison.parted(comparison.runs(runs))
    rows, target = comparison.compare(taught, None)
    return check(comparison_page.page(rows, target, ran=program_comparison.ran(others)))


def table(root: Any) -> list[list[str]]:
    (found,) = root.findall(".//section[@id='hosts']")
    return [["".join(cell.itertext()) for cell in row] for row in found.iter("tr")]


def test_runs_on_several_hosts_have_a_row_each(tmp_path: Path) -> None:
    one = folder(tmp_path / "20261121-100000-a", made_run.events())
    two = folder(tmp_path / "20261121-100001-b", on_hosts(made_run.events(seed=1), "ab", 10))
    assert not page(one).findall(".//section[@id='hosts']")
    three = folder(
        tmp_path / "20261121-100002-c",
        on_hosts(made_run.events(seed=2), "abc", 2, c="<no> word"),
    )
    programs = folder(tmp_path / "20261121-100003-d", on_hosts(made_programs.events(), "ab"))
    root = page(one, two, three, programs)
    head, *lines = table(root)
    # They are of several places, methods on data and programs on none.
    assert head[:6] == ["run", "where", "hosts", "nodes", "cores", "at work"]
    ways = {line[0]: line[2:] for line in lines}
    assert ways == {
        "fedpeft seed=1": [
            *("2", "2", "5", "1", "2", "100", "10", "0.01"),
            *("18", "2", "0.25"),
        ],
        # Of one that is gone it is not known how many cores worked.
        "fedpeft seed=2": [
            *("3", "3", "9", "-", "0.4", "500", "2", "0.01"),
            *("18", "2", "0.25"),
        ],
        "exec": ["2", "2", "5", "1", "0.2", "1,000", "1", "0.01", "18", "2", "0.25"],
    }
    (section,) = root.findall(".//section[@id='hosts']")
    text = " ".join(" ".join(section.itertext()).split())
    assert "1 of 4 runs had one host." in text
    assert "host c was gone before the run was over: <no> word." in text


def test_where_is_said_if_it_is_not_the_same_of_all(tmp_path: Path) -> None:
    runs = [
        folder(tmp_path / f"2026112{n}-100000-a", on_hosts(made_run.events(seed=n), "ab"))
        for n in (1, 2)
    ]
    assert table(page(*runs))[0][:3] == ["run", "hosts", "nodes"]


def test_of_many_hosts_in_trouble_some_are_named(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    gone = {name: "no word" for name in names[1:]}
    run = folder(tmp_path / "20261121-100000-a", on_hosts(made_run.events(), names, **gone))
    (section,) = page(run).findall(".//section[@id='hosts']")
    text = " ".join(section.itertext())
    assert text.count("was gone before") == 20 and "5 more are in" in text
