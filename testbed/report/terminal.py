"""The terminal: words, tables and JSON, as flags and surroundings ask.

Plain is without boxes, colours and control codes: with ``--plain``, where standard output is no
terminal, and on a terminal that can do no more (TERM=dumb). NO_COLOR and CLICOLOR=0 turn colours
off; FORCE_COLOR and CLICOLOR_FORCE turn them on where nobody looks, and nothing else.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

import click
import msgspec

from testbed.report.text import one_line, visible

if TYPE_CHECKING:  # A command that prints nothing of its own need not wait for it.
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

LEAST_COLUMNS = 10
"""A terminal of fewer is asked for its size anew."""
ROOM_COLUMNS = 10
"""Of a terminal, for each column of a table: with less it is shown without boxes, and not cut."""
UNBOUNDED_COLUMNS = 10_000
"""Without a terminal nothing is cut or wrapped."""


class Output:
    """The output of one command: where its words go, and in which form."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, plain: bool = False) -> None:
        """``as_json``: standard output has one document, and words go to standard error.
        ``quiet``: only ``error`` and ``result`` say something."""
        self.as_json = as_json
        self._quiet, self._plain = quiet, plain
        self._stream = sys.stderr if as_json else sys.stdout
        self.console = console(self._stream, plain=plain, quiet=quiet)
        self._errors = console(sys.stderr, plain=plain)

    def say(self, text: str, style: str | None = None) -> None:
        """A line on the way."""
        self.console.print(text, style=style, soft_wrap=True)

    def aside(self, text: str) -> None:
        """A line on the way that is no part of what the command gives, on standard error."""
        if not self._quiet:
            self._errors.print(text, soft_wrap=True)

    def error(self, text: str) -> None:
        """Say what went wrong, on standard error."""
        self._errors.print(text, style="red", soft_wrap=True)

    def result(self, name: str, value: object) -> None:
        """ "results: results/RUN", or the value alone if nothing else is said."""
        if self._quiet and not self.as_json:
            _deliver(f"{value}")
        else:
            self.say(f"{name}: {value}")

    def show(self, table: RenderableType, data: Any, *, kept: bool = False) -> None:
        """A table for people, or JSON for scripts. ``kept``: a folder has what the table tells."""
        if self.as_json:
            self.document(data)
            return
        if not kept and not self._quiet:
            _miss_if_absent()
        if self.console.is_terminal and not any(map(self._is_cut, _parts(table))):
            self.console.print(table)
        else:
            self._show_plainly(table)

    def document(self, data: Any) -> None:
        """The one JSON document."""
        text = msgspec.json.format(msgspec.json.encode(data), indent=2)
        _deliver(text.decode())

    def _show_plainly(self, table: RenderableType) -> None:
        for number, part in enumerate(_tables(table)):
            if number:
                self.console.print()
            # Where it would be cut the terminal may wrap it.
            shown = self._unbounded if self._is_cut(part) else self.console
            with shown.capture() as captured:
                shown.print(part)
            lines = [line.rstrip() for line in captured.get().splitlines()]
            self.console.file.write("".join(f"{line}\n" for line in lines))
        self.console.file.flush()

    def _is_cut(self, part: RenderableType) -> bool:
        """Whether a table has so little room that whole columns of it would not be seen."""
        from rich.table import Table

        width = self.console.width
        if not isinstance(part, Table) or width >= ROOM_COLUMNS * len(part.columns):
            return False
        return self._unbounded.measure(part).minimum > width

    @functools.cached_property
    def _unbounded(self) -> Console:
        ways = {"plain": self._plain, "quiet": self._quiet}
        return console(self._stream, **ways, width=UNBOUNDED_COLUMNS)


def say(text: str) -> None:
    """A line on standard error, beside what was asked for."""
    click.echo(visible(text), err=True)


def complain(text: str) -> None:
    """A refusal, in one line whatever it quotes."""
    say(f"error: {one_line(text)}")


def _deliver(text: str) -> None:
    """A line of standard output that was asked for, and may not be lost without a word."""
    stream = sys.stdout
    stream.write(f"{visible(text) if stream.isatty() else text}\n")
    stream.flush()
    _miss_if_absent()


def _miss_if_absent() -> None:
    """Have it be told at the end that what was asked for went nowhere, where it did."""
    stream = sys.stdout
    if isinstance(stream, Guarded) and stream.absent:
        stream.lost = OSError(errno.EBADF, os.strerror(errno.EBADF))


def styled(text: str, style: str) -> Text:
    """Text with a style of its own, within a table."""
    from rich.text import Text

    return Text(visible(text), style)


def console(
    stream: TextIO, *, plain: bool = False, quiet: bool = False, width: int | None = None
) -> Console:
    """A console that prints to ``stream`` as these flags and the environment ask.

    ``width``: its columns, if not the terminal's.

    No text is markup, and none has codes of its own: much of it comes from outside.
    """
    from rich.console import Console

    class Literal(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(visible(text), **how)

    terminal = stream is not None and stream.isatty()
    colour = not plain and coloured(terminal)
    fancy = terminal and not plain and not quiet and not _dumb()
    return Literal(
        file=stream,
        force_terminal=fancy,
        force_interactive=fancy,
        color_system=("auto" if fancy else "standard") if colour else None,
        no_color=not colour,
        width=width if terminal else UNBOUNDED_COLUMNS,
        quiet=quiet,
        highlight=False,
        markup=False,
        emoji=False,
        _environ={name: value for name, value in os.environ.items() if _is_sane(name, value)},
    )


def _is_sane(name: str, value: str) -> bool:
    """Whether nothing, or one letter a line, is not what a variable would have printed."""
    if name not in ("COLUMNS", "LINES"):
        return True
    least = LEAST_COLUMNS if name == "COLUMNS" else 1
    return value.isascii() and value.isdecimal() and len(value) < 5 and int(value) >= least


def coloured(terminal: bool) -> bool:
    """Whether the environment has colours: NO_COLOR wins, then what forces them, then CLICOLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if any(os.environ.get(name, "") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return terminal and not _dumb() and os.environ.get("CLICOLOR") != "0"


def _dumb() -> bool:
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def _tables(shown: RenderableType) -> Iterable[RenderableType]:
    """The parts of a group, tables without their boxes."""
    from rich.table import Table

    for part in _parts(shown):
        yield _unboxed(part) if isinstance(part, Table) else part


def _parts(shown: RenderableType) -> Iterable[RenderableType]:
    from rich.console import Group

    return shown.renderables if isinstance(shown, Group) else [shown]


def _unboxed(table: Table) -> Table:
    """The same in columns two spaces apart, with "-" where there is nothing."""
    from rich.table import Table

    left: dict[str, Any] = {"title_justify": "left", "caption_justify": "left"}
    found = Table(title=table.title, caption=table.caption, box=None, pad_edge=False, **left)
    for column in table.columns:
        found.add_column(column.header, justify=column.justify)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        found.add_row(*("-" if cell == "" else cell for cell in cells))
    return found


class Guarded:
    """A standard stream that may be lost: what it does not take is dropped, and remembered.

    A reader that has seen enough, or a full disk, is no reason to end a run that is under way.
    """

    def __init__(self, stream: TextIO, absent: bool = False) -> None:
        """``absent``: the process was started without it, and ``stream`` leads nowhere."""
        self._stream = stream
        self.absent = absent
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        if self.lost is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error
        # What is still buffered would be tried again at exit, and fail there with a traceback.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Guard this process's standard streams.

    Those that it was started without lead nowhere: else the next file that is opened would stand
    in their place, and get what is said.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        absent = stream is None
        if absent:
            stream = os.fdopen(number, "w", closefd=False)
        if isinstance(stream, io.TextIOWrapper):
            # Whatever the letters of its encoding are, nothing ends by them.
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Guarded(stream, absent))


def lost_output() -> str | None:
    """Why standard output did not take everything; None where it did, or its reader just left."""
    if not isinstance(sys.stdout, Guarded):
        return None
    sys.stdout.flush()
    error = sys.stdout.lost
    return None if error is None or isinstance(error, BrokenPipeError) else error.strerror
