"""What follows a run: whose its folder is, the pages beside its record, and what is to be said."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from testbed import files
from testbed.config_error import known_or_named
from testbed.network.profiles import LinkProfile
from testbed.record import chrome_trace
from testbed.record.run_summary import Captures
from testbed.report.terminal import Output

EXIT_CODES = {"ok": 0, "failed": 1, "interrupted": 130}
UNWRITTEN_EXIT = 1
STRICT_UNPROBED = (
    "--strict with --no-calibrate: nobody probes the links, so that only this machine's time and "
    "what befell the run are held to it"
)


def give_to_caller(folder: Path) -> None:
    """Results of a run by ``sudo`` are whose it is, and the folder of results with them."""
    if (owner := files.caller()) is not None:
        with contextlib.suppress(OSError):
            files.give(folder, owner)
            if folder.parent.stat().st_uid == 0 and not folder.parent.is_symlink():
                os.chown(folder.parent, *owner, follow_symlinks=False)


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_about(folder: Path, tensorboard: bool, output: Output) -> bool:
    """Write the run's page and what else is asked for; whether all of it is there.

    What is not is no reason for a run to fail, and one for the command to say so.
    """
    from testbed.report import export
    from testbed.report.page import run_page

    writers: dict[str, Callable[[], object]] = {
        "trace": lambda: chrome_trace.write(folder),
        "report": lambda: run_page.write(folder),
    }
    if tensorboard:
        writers["tensorboard"] = lambda: export.export(folder, ["tensorboard"])[0]
    whole = True
    for name, write in writers.items():
        try:
            if (where := write()) is not None:
                output.say(f"{name}: {where}")
        except Exception as error:
            whole = False
            output.error(f"no {name}: {known_or_named(error)}")
    return whole


def capture_warnings(captures: Captures | None) -> list[str]:
    """Warnings to a reader of a run's captures; ``captures`` is the summary's."""
    found = []
    if captures and captures.failure:
        found.append(f"the captures end early: {captures.failure}")
    if captures and captures.dropped_packets:
        found.append(
            f"the captures lack {captures.dropped_packets} packets, which came faster than they "
            f"could be written: those of {', '.join(captures.incomplete)}"
        )
    return found


def mix_label(profiles: list[LinkProfile]) -> str:
    """ "4g", or "4g:12,wifi:5" for a mix."""
    counts = Counter(profile.name for profile in profiles)
    if len(counts) == 1:
        return profiles[0].name
    return ",".join(f"{name}:{count}" for name, count in counts.items())
