"""The ledger of a run under way: each event goes to the record, the summary and who shows it."""

import contextlib
import sys
from typing import Protocol

from testbed.config_error import in_words, known_or_named
from testbed.processes.child import NotForked
from testbed.record import events
from testbed.record.events import Event, Facts
from testbed.record.reading import SUPERVISOR
from testbed.record.recorder import Recorder
from testbed.record.run_summary import Status
from testbed.record.summary import SummaryBuilder


class RunFailed(RuntimeError):
    """The run cannot go on; the text is the summary's reason."""


def hindrance(error: OSError) -> str:
    """Why a run fails by an error of the system that nobody else has named."""
    if isinstance(error, NotForked):
        return str(error)
    return f"write the results: {in_words(error)}"


class Progress(Protocol):
    """Shows a run as it goes."""

    def take(self, event: Event, tally: SummaryBuilder) -> None: ...


class Ledger:
    """Takes every event of a run; ``tally`` makes its summary."""

    def __init__(self, recorder: Recorder, progress: Progress) -> None:
        self.recorder = recorder
        self.tally = SummaryBuilder()
        self._progress = progress
        self._shown = True

    def record(self, node: str, event: Event) -> None:
        self.recorder.write(node, event)
        self.tally.take(event)
        if self._shown:
            try:
                self._progress.take(event, self.tally)
            except SystemExit:  # How rich ends when its reader is gone.
                self._shown = False
            except Exception as error:
                # No run ends by what shows it.
                self._shown = False
                with contextlib.suppress(OSError, AttributeError):
                    sys.stderr.write(f"nothing more is shown: {known_or_named(error)}\n")

    def write_summary(self) -> None:
        self.recorder.write_summary(self.tally.summary())

    def close(self, status: Status, reason: str, links: Facts) -> None:
        """Write how the run ended; where that cannot be written, it has not ended well."""
        event = events.Closed(status=status, reason=reason or None, links=links)
        try:
            self.record(SUPERVISOR, event)
            self.write_summary()
        except OSError as error:
            unwritten = hindrance(error)
            if status == "ok":
                event.status, event.reason = "failed", unwritten
            elif unwritten not in reason:
                event.reason = f"{reason}; {unwritten}"
            event.t, event.node = self.recorder.elapsed_s(), SUPERVISOR
            self.tally.take(event)
            # What is there still says so, if it can.
            with contextlib.suppress(OSError):
                self.recorder.write(SUPERVISOR, event)
