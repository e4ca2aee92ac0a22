"""The prompt of a network: `client-1 ping server`, as Mininet's, and a few words of its own."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from testbed.config_error import ConfigError, closest
from testbed.library import visit
from testbed.library.lines import About

UNKNOWN = 2
LEAVE = ("exit", "quit")
MARK = "\ufeff"
"""Of byte order, with which some editors begin a file."""
HELP = """\
NODE COMMAND   runs a line for a shell in a node, such as: client-1 ping -c 3 server
               with & at its end it goes on, and the prompt is back at once
NODE           opens a shell there
nodes          the nodes' names
links          each node's link, and the bytes on it so far
exit           leaves the prompt; so does Ctrl-D"""


class Prompt:
    """Lines that are read, obeyed and answered until there are no more."""

    def __init__(
        self,
        network: Path,
        environment: Mapping[str, str],
        show: Callable[[About], None],
        run: Callable[..., int] = visit.run,
    ) -> None:
        """``environment``: of programs. ``show``: prints the nodes of a network. ``run``: as
        ``visit.run``."""
        self._network, self._environment = network, environment
        self._show, self._run = show, run
        self._nodes = [node.name for node in visit.about(network).nodes]
        self.code = 0
        """Exit status of what was run last."""

    def read(self) -> int:
        """Obey standard input; the last exit status.

        Raises:
            LinkError: the network has ended.
        """
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A line may name a file whose name is no text.
            sys.stdin.reconfigure(errors="surrogateescape")
        if not sys.stdin.isatty():
            for line in sys.stdin:
                if not self.obey(line):
                    break
            return self.code
        with contextlib.suppress(ImportError):  # It has lines edited, and keeps them.
            import readline  # noqa: F401
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            while self._one():
                pass
        finally:
            signal.signal(signal.SIGINT, before)
        return self.code

    def _one(self) -> bool:
        try:
            return self.obey(input(f"{self._network.name}> "))
        except EOFError:
            print()
            return False
        except KeyboardInterrupt:
            print()
            return True

    def obey(self, text: str) -> bool:
        """Do what a line says; False where it is to be the last."""
        word, *more = text.removeprefix(MARK).split(maxsplit=1) or [""]
        if not word or word.startswith("#"):
            return True
        if word in LEAVE:
            return False
        if word in self._nodes:
            self._run_in(word, more[0].strip() if more else "")
        elif word == "nodes":
            print(*self._nodes, flush=True)
        elif word == "links":
            self._show(visit.about(self._network))
        elif word == "help":
            print(HELP, flush=True)
        else:
            known = [*self._nodes, "nodes", "links", "help", "exit"]
            near = closest(word, known) or "."
            print(f"{word}: is no node{near} Type help for what there is what is", file=sys.stderr)
            self.code = UNKNOWN
        return True

    def _run_in(self, node: str, line: str) -> None:
        command: str | list[str] = line or shell(self._environment)
        with _streams(line) as streams:
            try:
                self.code = self._run(
                    self._network, node, command, self._environment, streams=streams
                )
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr)
                self.code = UNKNOWN


@contextlib.contextmanager
def _streams(line: str) -> Iterator[tuple[int, int, int]]:
    """A program's streams: this process's, but for lines that are not its own to read."""
    sys.stdout.flush()
    # A terminal of its own would end with the line, and with it what goes on.
    if sys.stdin.isatty() and not line.endswith("&"):
        yield visit.STANDARD
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        yield (nothing, *visit.STANDARD[1:])
    finally:
        os.close(nothing)


def shell(environment: Mapping[str, str]) -> list[str]:
    """The words of the user's shell."""
    return [environment.get("SHELL", "/bin/sh")]
