"""Files of the house: how long they are, and what docs and the Makefile say of them."""

import re
from pathlib import Path

import pytest
from sources import ROOMS, ROOT, SOURCES, kept

MOST_LINES = 400
LONGER = {
    "nodes/fleet.py": "one side of the method contract, whole",
    "testbed/record/events.py": "the schema of every kind of event",
    "testbed/record/summary.py": "one builder, an event after the other",
    "testbed/run/config.py": "every field of a run, with what its option says",
}
"""Files of more lines, and why."""


def test_a_long_file_has_its_reason() -> None:
    lengths = {name: (ROOT / name).read_text().count("\n") for name in SOURCES}
    assert {name for name, count in lengths.items() if count > MOST_LINES} == set(LONGER)


def test_docs_have_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate

    parts = list(generate.parts())
    for page, name, text in parts:
        _, found, _ = generate.between((ROOT / page).read_text(), name)
        assert found == text, f"{page}: {name} is not as the code is; run docs/generate.py"
    house = dict((name, text) for _, name, text in parts)["map"]
    for name in SOURCES:
        leaf = Path(name).parent.name + "/" if name.endswith("__init__.py") else Path(name).name
        assert re.search(rf"^ *{re.escape(leaf)} ", house, re.M), name


def test_what_docs_and_comments_name_is_there() -> None:
    """Paths from the top of the repository, in our own words: not in profiles' sources."""
    path = re.compile(r"(?<![\w/.:-])(?:" + "|".join(ROOMS) + r"|tests|benchmarks|docs)/[\w./-]*\w")
    wrong = []
    for name in kept():
        if not name.endswith((".py", ".md", "Makefile")) or name.startswith("netem_profiles/"):
            continue
        for found in path.findall((ROOT / name).read_text()):
            if not (ROOT / found).exists() and not (ROOT / f"{found}.py").exists():
                wrong.append(f"{name}: {found}")
    made_up = {"NAME", "halves", "methods/fedavg"}
    assert [each for each in wrong if not any(word in each for word in made_up)] == []


def anchor(heading: str) -> str:
    """What a heading is linked by: its letters, digits and dashes."""
    return re.sub(r"[^\w-]", "", heading.strip("# ").lower().replace(" ", "-"))


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / name for name in kept("*.md") if "/" not in name or name.startswith("docs/")]
    headings = {
        page: {anchor(line) for line in page.read_text().splitlines() if line.startswith("#")}
        for page in pages
    }
    wrong = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            file, _, place = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            known = headings.get(target, set())
            if "://" not in link and (not target.exists() or (place and place not in known)):
                wrong.append(f"{page.name}: {link}")
    assert len(pages) > 20 and wrong == []


def test_tests_that_run_alone_are_where_make_test_looks_for_them() -> None:
    (folders,) = re.findall(r"^QUIET := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    mark = ".".join(("pytest", "mark", "quiet"))
    marked = [name for name in kept("tests/*.py") if mark in (ROOT / name).read_text()]
    assert marked
    assert [name for name in marked if not name.startswith(tuple(folders.split()))] == []
