"""Section of a run's report on its hosts, where they are several."""

from testbed.record.events import known
from testbed.record.host_summary import HostSummary
from testbed.report.page import svg
from testbed.report.page.html import Markup, section, table, tag
from testbed.report.read import Story
from testbed.report.text import counted

_HEAD = (
    *("host", "nodes", "cores", "cores at work", "RTT, ms", "to it, Mbit/s", "from it, Mbit/s"),
    *("clock drifted, ms", "known to, ms", "frames from others", "late", "links' p99, ms late"),
)


def hosts_section(story: Story) -> Markup:
    """A row a host; nothing where a run had one."""
    rows = story.summary.hosts
    if not rows:
        return Markup("")
    gone = [
        tag("p", f"Host {row.name} was gone before the run was over: {row.gone}.")
        for row in rows
        if row.gone is not None
    ]
    cut = [
        tag("p", f"From some moment on host {row.name} did not reach {', '.join(others)}.")
        for row in rows
        if (others := known(row.cut_from))
    ]
    text = (
        "Round trip and rates are those of the network between a host and the driver's own, as "
        "measured before the run. Nodes' times are by the driver's clock; by how much another "
        "host's has drifted since the run began has been put right."
    )
    if brought := _brought(rows):
        gone.append(tag("p", brought))
    shown = table("The hosts, the driver's own first", _HEAD, [_cells(row) for row in rows])
    return section("hosts", "The hosts", tag("p", text), *gone, *cut, shown)


def _brought(rows: list[HostSummary]) -> str:
    """Words for what came of the folders of programs' nodes; none of other runs."""
    came = [
        f"{counted(files, 'file')} with {known(row.bytes_brought) or 0:,} bytes "
        f"from host {row.name}"
        for row in rows
        if (files := known(row.files_brought)) is not None
    ]
    return f"Of nodes' own folders on other hosts came {', '.join(came)}." if came else ""


def _cells(row: HostSummary) -> list[object]:
    def mbit(kbit: float | None) -> str:
        return "" if kbit is None else svg.number(kbit / 1000)

    def known(figure: float | None) -> str:
        return "" if figure is None else svg.number(figure)

    return [
        *(row.name, row.nodes, row.cores, known(row.busy_cores), known(row.rtt_ms)),
        *(mbit(row.rate_to_kbit), mbit(row.rate_from_kbit)),
        *(known(row.clock_drifted_ms), known(row.clock_error_ms)),
        *(row.frames, row.late_frames, known(row.links_late_ms)),
    ]
