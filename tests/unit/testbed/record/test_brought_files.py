"""Files that programs left on other hosts, as a run's summary, page and words have them."""

import made_programs
import made_run
from made_events import at

from testbed.record.program_summary import BroughtFiles
from testbed.report.page import doubts
from testbed.report.page.hosts_section import _brought

HOSTS = [
    {"name": name, "address": "10.0.0.1", "cores": 2, "memory_mb": 1, "nodes": 1, "ahead_s": 0.0}
    for name in "abc"
]


def test_who_brought_what_is_told_by_program_and_by_host() -> None:
    found = made_programs.events(clients=3)
    found.insert(1, at(0, "supervisor", "hosts", hosts=HOSTS, place="", underlay=[]))
    told = {"client-1": ("b", 2, 1500, []), "client-2": ("b", 1, 8, ["1 that is odd"])}
    for node, (host, files, size, left_out) in told.items():
        brought = {"host": host, "files": files, "bytes": size, "left_out": left_out}
        found.insert(-1, at(6, node, "brought", **brought))
    summary = made_run.summary(found)
    programs = {row.node: row.brought for row in summary.programs}
    assert programs["client-1"] == BroughtFiles(host="b", files=2, bytes=1500)
    assert programs["client-2"] == BroughtFiles(
        host="b", files=1, bytes=8, left_out=["1 that is odd"]
    )
    assert not programs["server"] and not programs["client-3"]
    assert _brought(summary.hosts) == (
        "Of nodes' own folders on other hosts came 3 files with 1,508 bytes from host b."
    )
    (text,) = doubts.of(summary, None, None)
    assert text.startswith("of client-2's own folder on host b this is not here, and gone with it:")
    assert "1 that is odd" in text
