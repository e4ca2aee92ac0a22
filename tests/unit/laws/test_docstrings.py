"""Docstrings begin with their subject."""

import ast

from sources import SOURCES, read

INVERTED = {
    *("As", "At", "Between", "By", "For", "From", "In", "Into", "Of", "On", "Once", "Out", "To"),
    *("What", "Where", "Who", "Whose", "With"),
}


def test_a_docstring_begins_with_its_subject() -> None:
    """Of events, whose docs say first by whom they come, the kinds are left out."""
    found = []
    for name in SOURCES:
        for node in read(name).named:
            if isinstance(node, ast.Import | ast.ImportFrom):
                continue
            says = ast.get_docstring(node) or "-"
            is_kind = name == "testbed/record/events.py" and says.startswith("By ")
            if says.split()[0] in INVERTED and not is_kind:
                found.append(f"{name}: {node.name}: {says.splitlines()[0]}")
    assert found == []
