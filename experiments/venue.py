"""Venue of a bench's runs: this machine, or several hosts, whose agents have run after run."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from experiments import hosts, ray_hosts
from experiments.plan import Bench
from experiments.progress import Asking
from testbed.config_error import ConfigError
from testbed.exec.config import Request
from testbed.processes import environment
from testbed.run.config import RunConfig

NO_PROGRAMS: Mapping[str, Request] = {}
_WHERE = ("hosts", "place", "on_lost_host")
"""Fields of a run that say where it is carried out, and nothing of what it is."""


def anywhere(bench: Bench) -> Bench:
    """The same bench but for the hosts that all its runs have, which may be others next time."""
    shared = {name: bench.run[name] for name in _WHERE if name in bench.run}
    for name in _WHERE:
        first, *others = [row.run.get(name) for row in bench.rows]
        if name not in shared and first is not None and all(each == first for each in others):
            shared[name] = first

    def rest(run: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in run.items()
            if name not in shared or value != shared[name]
        }

    rows = [msgspec.structs.replace(row, run=rest(row.run)) for row in bench.rows]
    return msgspec.structs.replace(bench, run=rest(bench.run), rows=rows)


class _Reached(NamedTuple):
    """Hosts whose agents listen."""

    addresses: str
    token: str


class Venue:
    """Hosts of runs, and owner of the agents that it has had Ray start."""

    def __init__(
        self,
        runs: Iterable[RunConfig] = (),
        token_file: Path | None = None,
        programs: Mapping[str, Request] = NO_PROGRAMS,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``token_file``: of the hosts' token, which is else of the environment; ``programs``:
        runs that are of programs, by what each is called; ``say``: tells of what takes a while.

        Raises:
            ConfigError: there is a token's file, and no host.
        """
        self._asked = sorted({run.hosts for run in runs if run.hosts is not None})
        if token_file is not None and not self._asked:
            raise ConfigError(f"--token-file={token_file}: {hosts.ONE_HOST}")
        self._token_file = token_file
        self._programs, self._say = programs, say
        self._owned = contextlib.ExitStack()
        self._reached: dict[str, _Reached] = {}

    def open(self) -> None:
        """Call every host before the first run, and ask of each of programs; idempotent.

        Raises:
            ConfigError: naming the host that could have no part in a run, and why.
        """
        if self._reached:
            return
        token = None
        for asked in self._asked:
            if asked == ray_hosts.AUTO:
                found = self._owned.enter_context(ray_hosts.agents())
                reached = _Reached(found.addresses, found.token)
            else:
                token = token or hosts.token(self._token_file).decode()
                reached = _Reached(asked, token)
            hosts.refuse_absent(reached.addresses, reached.token.encode())
            self._reached[asked] = reached
        for asked in self._asked:
            self._ask({n: own for n, own in self._programs.items() if own.links.hosts == asked})

    def _ask(self, programs: Mapping[str, Request]) -> None:
        """Ask hosts that all of these have."""
        if not programs:
            return
        from experiments import exec as executing

        told = {name: own._replace(links=self.take(own.links)[0]) for name, own in programs.items()}
        first = next(iter(programs.values())).links
        _, more = self.take(first)
        asking = Asking(len(told), self._say)
        executing.ask(told, more[environment.TOKEN].encode(), asking.asked)

    def close(self) -> None:
        """End those agents. Idempotent."""
        self._owned.close()

    def take(self, run: RunConfig) -> tuple[RunConfig, Mapping[str, str]]:
        """The run as it is carried out there, and what its environment has beside.

        Without one of its hosts a run is none of those that it is compared with.
        """
        if run.hosts is None:
            return run, {}
        addresses, token = self._reached[run.hosts]
        told = msgspec.structs.replace(run, hosts=addresses, on_lost_host="stop")
        return told, {environment.TOKEN: token}
