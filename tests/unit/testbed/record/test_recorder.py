"""The recorder: files whole at any time, at a share of a run's time, in a folder of its own."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.config_error import ConfigError
from testbed.record import recorder as record
from testbed.record.events import Done, Failed, RoundStarted, as_dict
from testbed.record.recorder import SUMMARY_SHARE, Recorder, create_folder


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    found = Recorder(tmp_path, time.monotonic())
    yield found
    found.close()


def lines_of(recorder: Recorder) -> list[dict[str, Any]]:
    text = (recorder.folder / "events.jsonl").read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_every_event_can_be_read_as_soon_as_it_is_written(recorder: Recorder) -> None:
    for number in range(3):
        event = RoundStarted(round=number)
        recorder.write("server", event)
        # Nothing is closed or flushed first: a killed run leaves all that it wrote.
        assert lines_of(recorder)[number] == as_dict(event)
    expected = {"t": event.t, "node": "server", "event": "round_started", "round": 2}
    assert as_dict(event) == expected


def test_an_event_is_one_line_whatever_is_in_it(recorder: Recorder) -> None:
    recorder.write("client-1", Failed(traceback="a\nb\r\n\u2028 \0 é"))
    assert (recorder.folder / "events.jsonl").read_bytes().count(b"\n") == 1


def test_times_count_from_the_start_of_the_command(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, time.monotonic() - 100)
    events = [Done() for _ in range(3)]
    for event in events:
        recorder.write("server", event)
    times = [event.t for event in events]
    recorder.close()
    assert times == sorted(times) and 100 <= times[0] <= times[-1] < 200


def test_the_summary_is_replaced_in_one_step(recorder: Recorder) -> None:
    recorder.write_summary({"schema": 1, "rounds_done": 1})
    with (recorder.folder / "summary.json").open("rb") as reader:
        recorder.write_summary({"schema": 1, "rounds_done": 2})
        # Whoever had opened the old one goes on reading the old one, whole.
        assert json.load(reader)["rounds_done"] == 1
    assert json.loads((recorder.folder / "summary.json").read_text())["rounds_done"] == 2
    assert {path.name for path in recorder.folder.iterdir()} == {"events.jsonl", "summary.json"}


def test_a_summary_that_cannot_be_written_leaves_the_one_before(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.write_summary({"rounds_done": 1})

    def full_disk(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        recorder.write_summary({"rounds_done": 2})
    assert json.loads((recorder.folder / "summary.json").read_text()) == {"rounds_done": 1}
    assert set(names_in(recorder.folder)) == {"events.jsonl", "summary.json"}


def names_in(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir())


def test_a_folder_is_made_with_its_parents_and_named_by_time_and_label(tmp_path: Path) -> None:
    folder = create_folder(tmp_path / "new" / "results", "fedpeft-4g-2")
    assert folder.is_dir() and folder.parent == tmp_path / "new" / "results"
    stamp, _, label = folder.name.partition("-fedpeft")
    assert time.strptime(stamp, "%Y%m%d-%H%M%S") and label == "-4g-2"


def test_folders_made_in_one_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20251121-120000")
    made = {create_folder(tmp_path, "run") for _ in range(3)}
    assert len(made) == 3 and {folder.name for folder in made} == set(names_in(tmp_path))


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        create_folder(tmp_path / "results", "run")
    assert str(caught.value) == (
        f"--out {tmp_path}/results: File exists; name a folder you can write"
    )
    assert (tmp_path / "results").read_text() == "mine"


class Digest:
    """Rounds that end, and a clock by which a summary takes as long as it has rounds."""

    def __init__(self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorder = recorder
        self.now_s = 100.0
        self.rounds = self.made = 0
        self.busy_s = 0.0
        monkeypatch.setattr(record, "clock", SimpleNamespace(monotonic=lambda: self.now_s))

    def make(self) -> dict[str, Any]:
        took_s = 1e-5 * self.rounds
        self.made += 1
        self.busy_s += took_s
        self.now_s += took_s
        return {"rounds_done": self.rounds}

    def round(self, lasts_s: float) -> None:
        self.now_s += lasts_s
        self.rounds += 1
        self.recorder.keep_summary(self.make)

    def written(self) -> int:
        found: int = json.loads((self.recorder.folder / "summary.json").read_text())["rounds_done"]
        return found


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digest]:
    recorder = Recorder(tmp_path, time.monotonic())
    yield Digest(recorder, monkeypatch)
    recorder.close()


def test_writing_summaries_costs_a_share_of_a_runs_time_however_many_rounds(digest: Digest) -> None:
    costs, began_s = [], digest.now_s
    for _ in range(2):
        before_s = digest.busy_s
        for _ in range(2_000):
            digest.round(0.01)
        costs.append(digest.busy_s - before_s)
    # The second half's rounds cost no more than the first's, though a summary costs thrice as much.
    assert costs[1] < 1.5 * costs[0]
    assert digest.busy_s < 1.1 * SUMMARY_SHARE * (digest.now_s - began_s)
    assert digest.made < 1_000
    # A run that is killed now leaves one that lacks moments.
    assert digest.written() > 0.98 * digest.rounds


def test_each_round_of_a_short_run_is_in_its_summary_at_once(digest: Digest) -> None:
    for number in range(1, 21):
        digest.round(0.01)
        assert digest.written() == number
        assert digest.recorder.summary_wait_s == math.inf


def test_a_summary_that_waits_is_written_without_another_round(digest: Digest) -> None:
    digest.rounds = 1_000
    digest.round(1)
    digest.round(0)
    assert digest.written() == 1_001
    wait_s = digest.recorder.summary_wait_s
    assert 0 < wait_s < 0.3
    digest.now_s += wait_s / 2
    digest.recorder.keep_summary()
    assert digest.written() == 1_001
    digest.now_s += wait_s
    assert digest.recorder.summary_wait_s == 0
    digest.recorder.keep_summary()
    assert digest.written() == 1_002


def test_a_place_under_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--out /dev/null/x: Not a directory; name a folder"):
        create_folder(Path("/dev/null/x"), "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        create_folder(tmp_path, "run")


def test_a_full_disk_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=5, f_frsize=200_000))
    with pytest.raises(ConfigError, match=r"1\.0 MB free on that disk, a run needs 34 MB"):
        create_folder(tmp_path / "new" / "results", "run")
    assert list(names_in(tmp_path)) == []
