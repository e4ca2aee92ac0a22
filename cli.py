"""The command line: every command's name, loaded when it is asked for."""

from __future__ import annotations

import gc
import os
import sys
import time

STARTED_S = time.monotonic()

from testbed.processes import signals  # noqa: E402

if __name__ == "__main__":
    # Before all else is imported, which takes a while.
    signals.COMMAND.hear()

# Before numpy and torch come in: a process that is to be forked may have no other threads.
# What the environment asks for would be that, and a node has one thread in any case.
# VECLIB is macOS's Accelerate, which crashes in a child if it has used threads in its parent.
for _pool in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
    os.environ[f"{_pool}_THREADS"] = "1"
os.environ.pop("MKL_DOMAIN_NUM_THREADS", None)

import importlib  # noqa: E402
from importlib.machinery import EXTENSION_SUFFIXES  # noqa: E402

import click  # noqa: E402

from experiments import commands  # noqa: E402
from testbed.config_error import MOST_REFUSAL, ConfigError, Unwritten, closest, shortened  # noqa: E402
from testbed.processes.child import NotForked  # noqa: E402
from testbed.report import terminal  # noqa: E402
from testbed.report.text import visible  # noqa: E402

FAILED_EXIT = 1
USAGE_EXIT = 2
COMMANDS = {
    "agent": "agent",
    "bench": "bench",
    "calibrate": "network",
    "certify": "network",
    "compare": "results",
    "doctor": "network",
    "down": "networks",
    "exec": "exec",
    "export": "results",
    "launch": "launch",
    "links": "results",
    "networks": "networks",
    "on": "networks",
    "profiles": "network",
    "report": "results",
    "results": "results",
    "shell": "networks",
    "up": "networks",
}
"""Each with its file of experiments/commands/."""


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"{commands.__name__}.{COMMANDS[name]}")
        command: click.Command = getattr(module, name)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not context.resilient_parsing:
            near = closest(name, COMMANDS) or "."
            context.fail(f"No such command {name!r}{near} There are {', '.join(COMMANDS)}")
        return super().resolve_command(context, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def main() -> None:
    """Measure how long a federated fine-tuning method takes, and how many bytes it moves,
    on a network of a given kind."""


def run() -> None:
    """``main``, with a refusal as one line on stderr and exit status 2."""
    signals.COMMAND.hear()
    try:
        terminal.guard()
    except OSError as error:
        terminal.complain(f"{os.devnull} cannot be opened: {error.strerror}; have one in /dev")
        sys.exit(USAGE_EXIT)
    status = _status()
    # Nothing is left to interrupt but Python's own end.
    signals.ignore()
    if (came := signals.COMMAND.came) is not None:
        terminal.say(signals.told(came))
        status = signals.INTERRUPTED_EXIT
    if reason := terminal.lost_output():
        terminal.complain(f"cannot write to standard output: {reason}")
        status = status or FAILED_EXIT
    # Python takes every module apart at its end; looking for cycles meanwhile takes most of that.
    gc.freeze()
    sys.exit(status)


def _check_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"this folder cannot be worked in: {error.strerror}; cd to another"
        ) from None


def _status() -> int:
    if "COMP_WORDS" in os.environ:
        from experiments.commands import completion

        completion.register()
    try:
        with signals.COMMAND.raised():
            _check_folder()
            main.main(standalone_mode=False, obj=STARTED_S)
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED_EXIT
    except ConfigError as error:
        terminal.complain(shortened(str(error), MOST_REFUSAL))
        return FAILED_EXIT if isinstance(error, Unwritten) else USAGE_EXIT
    except click.ClickException as error:
        vars(error)["message"] = visible(shortened(error.message, MOST_REFUSAL))
        error.show()
        return error.exit_code
    except (signals.Interrupted, KeyboardInterrupt, click.Abort):
        return signals.INTERRUPTED_EXIT
    except (MemoryError, ImportError, NotForked) as error:
        if (reason := _wanting(error)) is None:
            raise
        terminal.complain(reason)
        return FAILED_EXIT


def _wanting(error: MemoryError | ImportError | NotForked) -> str | None:
    """The lack of this machine that it is, in a line; None where it is none."""
    if isinstance(error, NotForked):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory: free some of this machine's, or raise the limit (ulimit -v)"
    if isinstance(error.__cause__, ImportError):
        # numpy's own words are a page of what else it might be.
        return _wanting(error.__cause__)
    if (error.path or "").endswith(tuple(EXTENSION_SUFFIXES)):
        return (
            f"cannot load {error}: where it is whole, what is wanting is memory, or a greater "
            "limit of it (ulimit -v)"
        )
    return None


if __name__ == "__main__":
    run()
