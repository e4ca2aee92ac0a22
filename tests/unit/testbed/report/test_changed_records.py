"""Records that were cut or changed: read or refused in one sentence, in bounded memory."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_run
import pytest
from forked import Forks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.record import chrome_trace, reading, recovery
from testbed.record.reading import Damaged
from testbed.record.recovery import Killed
from testbed.report import export, summaries, way_in
from testbed.report.compare import comparison
from testbed.report.page import run_page

EVENTS = made_run.events(clients=1, rounds=2)
WHOLE = b"".join(made_run.lines(EVENTS))
UNCLOSED = b"".join(made_run.lines(EVENTS[:-1]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.folder(tmp_path_factory.mktemp("changed") / "run", EVENTS)


def resume(folder: Path) -> None:
    killed = Killed(folder)
    try:
        list(killed.events(killed.rounds))
        killed.lost(killed.rounds)
    finally:
        killed.close()


def use(run: Path, record: bytes) -> int:
    """All that is made of a record; how much of it was refused."""
    (run / "events.jsonl").write_bytes(record)
    refused = 0
    for each in (run_page.write, lambda f: export.export(f, ["csv"]), resume, way_in.of):
        try:
            each(run)
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            refused += 1
    try:
        chrome_trace.write(run)
    except Damaged as error:
        assert "\n" not in str(error)
        refused += 1
    return refused


def test_whole_it_is_read(run: Path) -> None:
    assert use(run, WHOLE) == 1  # It is over, so that nobody goes on with it.
    assert use(run, UNCLOSED) == 0


@pytest.mark.thorough
def test_cut_anywhere_it_is_read_or_refused(run: Path) -> None:
    places = range(0, len(UNCLOSED), max(1, len(UNCLOSED) // 120))
    assert {use(run, UNCLOSED[:place]) > 0 for place in places} == {True, False}


@pytest.mark.parametrize(
    "field",
    [{"node": "x" * 100_000}, {"event": "round", "metrics": {"x" * 100_000: "y" * 100_000}}],
)
def test_a_refusal_is_short_whatever_it_quotes(field: dict[str, Any], run: Path) -> None:
    line = made_run.lines([{"t": 99.0, "node": "server", "event": "done", **field}])[0]
    assert use(run, UNCLOSED + line) == 5


def pieces(whole: bytes) -> st.SearchStrategy[list[tuple[int, int, bytes]]]:
    """Changes: where, how many bytes are gone, and what is there instead."""
    lines = whole.splitlines(keepends=True)
    new = st.binary(max_size=8) | st.sampled_from(
        [*lines, b"\n", b"[" * 2000, b'"', b"9" * 30, b"-", b"1e400", b"\x1b[2J", b"null", b"{}"]
    )
    return st.lists(
        st.tuples(st.integers(0, len(whole)), st.integers(0, 60) | st.integers(0, 2000), new),
        min_size=1,
        max_size=3,
    )


QUIETLY = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def changed(whole: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, gone, new in changes:
        whole = whole[:place] + new + whole[place + gone :]
    return whole


@pytest.mark.thorough
@QUIETLY
@given(pieces(UNCLOSED))
def test_changed_anywhere_it_is_read_or_refused(
    run: Path, changes: list[tuple[int, int, bytes]]
) -> None:
    use(run, changed(UNCLOSED, changes))


@pytest.mark.thorough
@QUIETLY
@given(st.data())
def test_a_changed_summary_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run = made_run.folder(tmp_path_factory.mktemp("changed") / "run", EVENTS)
    whole = (run / summaries.NAME).read_bytes()
    (run / summaries.NAME).write_bytes(changed(whole, data.draw(pieces(whole))))
    try:
        rows, target = comparison.compare(comparison.runs([run]), None)
        comparison.table(rows, target)
    except ConfigError as error:
        assert "\n" not in str(error)


# Memory

BEGINNING = """
import resource, sys
from pathlib import Path
from testbed.config_error import ConfigError
from testbed.report import summaries
from testbed.report.read import read
"""
READ = """
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    summaries.load(Path(sys.argv[2])) if sys.argv[2:] else read(Path(sys.argv[1]))
except ConfigError as error:
    print(str(error)[:200], file=sys.stderr)
print(peak() - before)
"""
SHAPED = {"t": 8.0, "node": "client-1", "event": "shaped", "at_s": 0.0, "actual_s": 0.1}
KINDS: dict[str, tuple[int, dict[str, Any], int]] = {
    "config": (0, {**EVENTS[0], "config": {**EVENTS[0]["config"], "x": 0.125}}, 10),
    "facts": (1, {**EVENTS[1], "facts": {**EVENTS[1]["facts"], "x": 0.125}}, 10),
    "later": (1, {"t": 1.0, "node": "server", "event": "of a later version", "x": 0.125}, 10),
    "shaped": (2, {**SHAPED, "line": [[None, 0.0]] * 2, "up": {"x": 0.125}, "down": {}}, 50),
}
"""Of each kind its place, an event, and the memory over its line that it may take."""


def swollen(value: Any, part: str) -> bytes:
    """Nearly as long as a line may be, of one part over and over."""
    count = (reading.MOST_LINE_BYTES - 9000) // (len(part) + 1)
    return json.dumps(value).replace("0.125", f"[{','.join([part] * count)}]").encode()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(BEGINNING) as forks:
        yield forks


def taken(forks: Forks, *arguments: Path) -> int:
    """Bytes of memory that a process takes to read this."""
    found = int(forks.printed(READ, *arguments))
    print(found / 1e6, "MB")
    return found


def on_linux(test: Any) -> Any:
    reason = "ru_maxrss has other units elsewhere"
    return pytest.mark.skipif(sys.platform != "linux", reason=reason)(test)


@pytest.mark.thorough
@on_linux
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_long_line_takes_bounded_memory(kind: str, tmp_path: Path, forks: Forks) -> None:
    place, event, factor = KINDS[kind]
    line = swollen(event, "[[[[[]]]]]")
    assert reading.MOST_LINE_BYTES * 0.9 < len(line) < reading.MOST_LINE_BYTES
    found = made_run.lines(EVENTS)
    lines = [*found[:place], line + b"\n", *found[place:]]
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
    assert taken(forks, tmp_path) < factor * len(line)


@on_linux
@pytest.mark.parametrize("field", ["of_a_later_version", "link_facts"])
def test_a_large_summary_takes_bounded_memory(field: str, tmp_path: Path, forks: Forks) -> None:
    run = made_run.folder(tmp_path / "run", EVENTS)
    path = run / summaries.NAME
    path.write_bytes(swollen(json.loads(path.read_text()) | {field: {"x": 0.125}}, "[[[[[]]]]]"))
    assert taken(forks, run, path) < 10 * path.stat().st_size


def test_what_is_not_known_is_not_looked_into() -> None:
    line = b'{"t":1,"node":"server","event":"later","x":[{"event":"run"}]}\n'
    first = made_run.lines(EVENTS)[:1]
    (_, event) = list(recovery.sifted(io.BytesIO(b"".join([*first, line]))))
    assert event is not None and (event.t, event.node) == (1.0, "server")
    for wrong in (b'{"t":1,"event":"later"}', b'{"t":1,"node":"server"}', b"[1]", b'"x"'):
        with pytest.raises((Damaged, ValueError)):
            reading.decoded(wrong)
