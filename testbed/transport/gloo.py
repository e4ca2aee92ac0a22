"""All-reduce among clients by torch.distributed's gloo: a ring over kernel TCP.

Everyone connects to everyone once, and an all-reduce then has each member send 2 (n - 1) / n of
the bucket to the next one around. Who conducts tells the members one another's addresses. No store
of torch's is in it: its TCPStore asks the DNS for its callers' names, which takes ten seconds where
no DNS answers, and sends packets that belong to no method.

gloo works in threads of its own: a Group is made in the process that uses it, never before a fork.
It connects at once and not when first used (its ``lazy_init``), where a member that dies leaves
others spinning in a destructor.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from testbed import clock
from testbed.config_error import ConfigError
from testbed.transport import congestion as tcp

CONNECT_LIMIT_S = 30.0
"""How long the connection to each other member may take."""
_LEEWAY = 5
"""gloo waits so many times its limit for a connection."""
_PLACE = re.compile(r"\[\S+:\d+\] ")


class ReduceFailed(ConnectionError):
    """The all-reduce did not come about; the text is the reason."""


def check() -> None:
    """Raises ConfigError where this build of torch cannot do it."""
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ConfigError("transport = 'gloo': this build of torch comes without it; take zmq")


class Group:
    """This process's place among those that reduce together; of no use once something failed."""

    def __init__(
        self,
        host: str,
        rank: int,
        size: int,
        limit_s: float,
        exchange: Callable[[bytes], Sequence[bytes]],
        congestion: str | None = None,
    ) -> None:
        """Listen at ``host`` and connect to all others.

        ``congestion``: of every connection; None leaves the host's default.

        ``exchange``: gives away this member's address and returns those of all, by rank; what it
        raises is raised here. ``limit_s``: of each all-reduce.

        Raises:
            ReduceFailed: another could not be reached.
        """
        host_s = clock.host_s(limit_s)
        self._limit = timedelta(seconds=host_s)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=min(clock.host_s(CONNECT_LIMIT_S), host_s) / _LEEWAY)
        options._threads = 1
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        self._addresses = _Addresses(exchange)
        before = set(tcp.connections())
        try:
            self._group = dist.ProcessGroupGloo(self._addresses, rank, size, options)
        except Exception as error:
            if self._addresses.raised is not None:
                # On its way through gloo it lost its type.
                raise self._addresses.raised from None
            raise ReduceFailed(_reason(error)) from error
        self.congestion: list[str | None] = []
        """The congestion control that each connection really uses."""
        for descriptor in set(tcp.connections()) - before:
            # One that has closed again is for the all-reduce to tell of.
            with contextlib.suppress(OSError):
                if congestion is not None:
                    tcp.set_on(descriptor, congestion)
                self.congestion.append(tcp.used_by(descriptor))

    def reduce(self, bucket: Tensor) -> None:
        """Replace a float32 tensor by the sum of all members' such.

        Raises:
            ReduceFailed: a member is gone, or the limit has passed. The bucket then holds no sum.
        """
        options = dist.AllreduceOptions()
        options.timeout = self._limit
        try:
            work = self._group.allreduce([bucket], options)  # type: ignore[attr-defined]
            work.wait(self._limit)
        except RuntimeError as error:
            raise ReduceFailed(_reason(error)) from error

    def close(self) -> None:
        """Close every connection: whoever waits at the other end of one fails at once."""
        del self._group


class _Addresses(dist.Store):  # type: ignore[misc, name-defined]
    """The store where gloo leaves its address and, at once afterwards, looks for those of all."""

    def __init__(self, exchange: Callable[[bytes], Sequence[bytes]]) -> None:
        super().__init__()
        self._exchange = exchange
        self._own = b""
        self._known: dict[str, bytes] = {}
        self.raised: Exception | None = None

    def set(self, key: str, value: bytes) -> None:
        self._own = bytes(value)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        if not self._known:
            try:
                found = self._exchange(self._own)
            except Exception as error:
                self.raised = error
                raise
            self._known = {f"0/{rank}": address for rank, address in enumerate(found)}

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._known[key]


def _reason(error: Exception) -> str:
    """gloo's first sentence, without the place in its source."""
    return _PLACE.sub("", str(error)).partition("\n")[0].partition(". ")[0].rstrip("!")
