"""What the supervisor says of a node that ended."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import made_run
import pytest
from made_events import typed

from experiments import aftermath
from testbed.network.profiles import load
from testbed.network.topology import plan
from testbed.processes.channel import Channel
from testbed.processes.child import NotForked
from testbed.processes.worker import Refusal
from testbed.record import events
from testbed.record.events import Done, Event, Limited, Lost
from testbed.record.recorder import Recorder
from testbed.record.summary import SummaryBuilder
from testbed.report.terminal import Output
from testbed.run import supervisor
from testbed.run.config import RunConfig
from testbed.run.ledger import RunFailed
from testbed.run.zygote import NodeFailed


def reason_of(lines: list[Event], how: str) -> str:
    """Of the loss of a client that sent ``lines`` and ended ``how``."""
    layout = plan([load("4g")])
    client = layout.clients[0]
    written: list[Event] = []
    recorder = Mock(write=lambda node, event: written.append(event))
    run = supervisor._Run(RunConfig(), layout, Mock(), Mock(), recorder, Mock())
    run._ledger.tally = Mock()
    run._channels = {0: Mock(), client.index: SimpleNamespace(drain=lambda: lines)}
    run._hear_node(client.index)
    run._on_end(client, 1, how)
    return next(event.reason for event in written if isinstance(event, Lost))


@pytest.mark.parametrize("signal", ["SIGABRT", "SIGSEGV"])
def test_a_library_that_found_no_memory_is_told_from_other_deaths(signal: str) -> None:
    how = f"killed by {signal}"
    limited = Limited(memory_mb=28.0, whose="phone's")
    expected = f"{how}, as by a library that gets no more memory than the phone's 28 MB"
    assert reason_of([limited], how) == expected
    assert reason_of([], how) == how
    assert reason_of([limited], "killed by SIGKILL") == "killed by SIGKILL"


def run_in(folder: Path, progress: Any = None) -> tuple[supervisor._Run, Recorder]:
    recorder = Recorder(folder, 0.0)
    layout = plan([load("4g")])
    run = supervisor._Run(RunConfig(), layout, Mock(), Mock(), recorder, progress or Mock())
    run._ledger.record("supervisor", typed(made_run.events(1)[0]))
    return run, recorder


def test_a_run_whose_end_cannot_be_written_has_failed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run, recorder = run_in(folder)
    shutil.rmtree(folder)
    run._ledger.close("ok", "", {})
    summary = run._ledger.tally.summary()
    recorder.close()
    assert summary.status == "failed"
    assert str(summary.reason).startswith("write the results: No such file")


def test_a_record_that_cannot_be_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recorder = run_in(tmp_path)
    monkeypatch.setattr(recorder, "write", Mock(side_effect=OSError(28, "No space")))
    run._ledger.close("interrupted", "stopped by SIGTERM", {})
    recorder.close()
    summary = run._ledger.tally.summary()
    assert summary.status == "interrupted"
    assert summary.reason == "stopped by SIGTERM; write the results: No space"


def test_a_process_that_cannot_be_had_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    no_more = Mock(side_effect=NotForked(errno.EAGAIN, "no", "zygote"))
    monkeypatch.setattr(supervisor._Run, "_go_on", no_more)
    run = supervisor._Run(RunConfig(), plan([load("4g")]), Mock(), Mock(), Mock(), Mock())
    run._ledger = Mock()
    run.execute({}, [])
    status, reason, _ = run._ledger.close.call_args.args
    assert status == "failed" and reason.startswith("start the zygote: there are as many processes")


def test_a_zygote_that_ends_says_why() -> None:
    run = supervisor._Run(RunConfig(), plan([load("4g")]), Mock(), Mock(), Mock(), Mock())
    zygote = Mock(channel=SimpleNamespace(drain=lambda: [Refusal("start client-1: no")]))
    with pytest.raises(RunFailed, match="start client-1: no"):
        run._hear_zygote(zygote)


def test_what_shows_a_run_does_not_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Mock(take=Mock(side_effect=ValueError("no such tag")))
    run, recorder = run_in(tmp_path, progress)
    run._ledger.close("ok", "", {})
    recorder.close()
    assert run._ledger.tally.summary().status == "ok"
    assert progress.take.call_count == 1
    assert capsys.readouterr().err == "nothing more is shown: ValueError: no such tag\n"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0.0)
    recorder.write("server", Done())
    before = (tmp_path / "events.jsonl").read_bytes()
    whole = recorder._file

    class Full:
        """Takes half, and then no more."""

        taken = 0

        def write(self, text: bytes) -> int:
            if self.taken:
                raise OSError(28, "No space left on device")
            self.taken = whole.write(text[: len(text) // 2])
            return self.taken

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    recorder._file = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        recorder.write("server", Done())
    recorder.close()
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_what_is_not_written_beside_the_results_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run.folder(tmp_path / "run", made_run.events(1))
    assert aftermath.write_about(run, False, Output())
    (run / "report.html").unlink()
    (run / ".report.html").mkdir()
    assert not aftermath.write_about(run, False, Output())
    told = capsys.readouterr()
    assert told.err.startswith("no report: Is a directory: ") and "report: " in told.out


def test_the_time_limit_holds_while_nodes_are_prepared(tmp_path: Path) -> None:
    run, recorder = run_in(tmp_path)
    waited = []

    def never(limit_s: float) -> None:
        waited.append(limit_s)
        raise NodeFailed("no answer")

    zygote: Any = SimpleNamespace(wait_ready=never)
    with pytest.raises(RunFailed, match=r"not finished within time_limit_s = 86400"):
        run._prepared(zygote, supervisor.clock.monotonic())
    with pytest.raises(NodeFailed):
        run._prepared(zygote, supervisor.clock.monotonic() + 1000)
    recorder.close()
    assert waited == [0.0, supervisor.PREPARE_LIMIT_S]


@pytest.mark.parametrize("who", ["client-1", "zygote"])
def test_a_process_that_says_what_it_cannot_ends_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    run, recorder = run_in(tmp_path)
    run._ledger.tally = SummaryBuilder()
    ours, theirs = Channel.pair(events.Known, name=who)
    os.write(theirs.fileno(), b'{"event":"nonsense"}\n')

    def hear(owned: Any, closing: Any) -> None:
        if who == "zygote":
            run._hear_zygote(SimpleNamespace(channel=ours))  # type: ignore[arg-type]
        run._channels[1] = ours
        run._hear_node(1)

    monkeypatch.setattr(run, "_carry_out", hear)
    told = {key: value for key, value in made_run.events(1)[0].items() if key not in ("t", "node")}
    summary = run.execute(told, None)
    recorder.close()
    ours.close()
    theirs.close()
    assert summary.status == "failed"
    assert str(summary.reason).startswith(
        f"{who} sent what cannot be read: Invalid value 'nonsense'"
    )
