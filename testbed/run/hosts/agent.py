"""The agent of a host: it listens for drivers and has a part in one run at a time.

Each part is a process of its own, which the agent ends with all that it owns as soon as its driver
is gone: all of it dies with its parent.
"""

import contextlib
import os
import select
from collections.abc import Callable
from typing import Any

from testbed.links.tunnel import silence
from testbed.links.tunnel.callers import Called, Callers
from testbed.links.tunnel.meeting import listen
from testbed.metering import meter
from testbed.processes import cores, free_memory, signals
from testbed.processes.child import Child, NotForked
from testbed.run.hosts import line as lines
from testbed.run.hosts.line import Line, Refused
from testbed.run.hosts.messages import Hello, Order
from testbed.run.hosts.part import Import, Others, Prepare, carry_out

COMPARED = ("python", "git")
"""Of what a record says of a machine, beside packages, what must be the same on all hosts."""
NO_OTHERS: Others = {}


def software() -> dict[str, str | None]:
    """Versions of what must be the same on all hosts of a run."""
    found: dict[str, Any] = meter.environment()
    return {**{name: found[name] for name in COMPARED}, **found["packages"]}


class Agent:
    """Listens at one address; owns the process of the run that it has."""

    def __init__(
        self,
        address: str,
        port: int,
        token: bytes,
        prepare: Prepare,
        load: Import = lambda: None,
        others: Others = NO_OTHERS,
        hears: Any = Order,
    ) -> None:
        """``others``: runs of other kinds that it has a part in; ``hears``: orders of all of them.

        Raises:
            LinkError: the machine has no such address, or the port is taken.
        """
        self._listener = listen(address, port)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._token, self._hears = token, hears
        self._carries_out = prepare, load, others
        self._callers = Callers(self._listener, lines.GREETING, token, lines.CALLED)
        self._software = software()
        self._part: _Process | None = None

    def serve(self, say: Callable[[str], None], input_: int | None = None) -> None:
        """Answer drivers until a signal asks for an end, or ``input_`` ends."""
        with (
            contextlib.suppress(signals.Interrupted),
            contextlib.ExitStack() as owned,
            signals.handled(signals.interrupt),
        ):
            owned.callback(self._callers.close)
            owned.callback(self._end)
            say(f"listening at {self.address[0]}:{self.address[1]}")
            while True:
                ready = self._wait(input_)
                if input_ in ready and not os.read(input_, 1 << 12):
                    return
                if self._part is not None and (ready & self._part.descriptors or self._part.is_cut):
                    self._end()
                for called in self._callers.take({lines.CALLER}):
                    self._answer(called)

    def _wait(self, input_: int | None) -> set[int]:
        waiter = select.poll()
        self._callers.watch(waiter)
        if input_ is not None:
            waiter.register(input_, select.POLLIN)
        patience_s = self._callers.patience_s
        if self._part is not None:
            self._part.watch(waiter)
            patience_s = silence.LOOK_S if patience_s is None else min(patience_s, silence.LOOK_S)
        limit_ms = None if patience_s is None else 1000 * patience_s
        return {descriptor for descriptor, _ in waiter.poll(limit_ms)}

    def _answer(self, called: Called) -> None:
        """Let a driver in, if there is no other."""
        line = lines.answer(called, self._hears)
        with contextlib.suppress(OSError):
            busy = self._part is not None
            free_bytes = free_memory.usable_bytes()
            line.send(Hello(self._software, cores.usable(), free_bytes, busy))
            if not busy:
                try:
                    self._part = _Process(line, self._run_part)
                    return
                except NotForked as error:
                    line.send(Refused(str(error)))
        line.close()

    def _run_part(self, line: Line) -> None:
        self._listener.close()
        self._callers.close()
        carry_out(line, self._token, *self._carries_out)

    def _end(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None


class _Process:
    """The process of a run's part, and the agent's own hold of the line to its driver."""

    def __init__(self, line: Line, body: Callable[[Line], None]) -> None:
        self._line = line
        self._child = Child("part of a run", lambda: body(line))
        self._end = os.pidfd_open(self._child.pid)

    @property
    def descriptors(self) -> set[int]:
        return {self._line.fileno(), self._end}

    @property
    def is_cut(self) -> bool:
        """Whether the driver's host is gone, as the kernel says later where the part speaks."""
        return self._line.is_cut

    def watch(self, waiter: select.poll) -> None:
        """Have the driver's end and the process's wake ``waiter``; what is said is the latter's."""
        waiter.register(self._line, select.POLLRDHUP)
        waiter.register(self._end, select.POLLIN)

    def close(self) -> None:
        """End the process, and with it all that it owns."""
        self._child.kill()
        os.close(self._end)
        self._line.close()
