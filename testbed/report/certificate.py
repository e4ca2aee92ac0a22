"""The certificate of links as a table: a row a check."""

from rich.table import Table

from testbed.fidelity.checks import Certificate
from testbed.report.terminal import styled


def table(found: Certificate) -> Table:
    shown = Table("", "link", "check", "measured", "asked for", title_justify="left")
    for check in found.checks:
        mark = styled("ok", "green") if check.ok else styled("no", "red")
        measured = "nothing came through"
        if check.measured is not None:
            measured = f"{check.measured:g} {check.unit}"
        asked = f"{check.expected:g} ± {check.tolerance:g} {check.unit}"
        shown.add_row(mark, check.link, f"{check.name} {check.direction}", measured, asked)
    for each in found.not_probed:
        what = f"{each.name} {each.direction}"
        shown.add_row(styled("?", "yellow"), each.link, what, f"not probed: {each.reason}", "")
    return shown
