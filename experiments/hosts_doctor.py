"""Abilities of a run's hosts, for `doctor --hosts`: who answers, and what would be refused."""

import time
from collections.abc import Iterator

from experiments.hosts import parsed, refuse_other_software
from testbed.links.interface import LinkError
from testbed.links.tunnel.meeting import listen
from testbed.machine.doctor import Finding
from testbed.processes import cores
from testbed.run.hosts.far_host import HELLO_LIMIT_S, FarHost, Unusable
from testbed.run.hosts.line import LineClosed
from testbed.run.hosts.messages import Ask, Tell

TRIPS = 20


def findings(hosts: str, token: bytes) -> list[Finding]:
    """A line a host, this one first.

    Raises:
        ConfigError: ``hosts`` are none, or one has no address.
    """
    (name, own), *others = parsed(hosts).items()
    return [_here(name, own[0]), *_others(dict(others), token)]


def _here(name: str, address: str) -> Finding:
    what = f"host {name} at {address}"
    try:
        listen(address).close()
    except LinkError as error:
        return Finding(what, False, str(error), "name an address of this machine's first")
    return Finding(what, True, f"this machine, {cores.usable()} cores")


def _others(others: dict[str, tuple[str, int]], token: bytes) -> Iterator[Finding]:
    for name, address in others.items():
        what = f"host {name} at {address[0]}:{address[1]}"
        try:
            far = FarHost(name, address, token)
        except Unusable as error:
            yield Finding(what, False, str(error).removeprefix(f"{what}: "))
            continue
        try:
            told = (
                f"{far.hello.cores} cores, {far.hello.memory_bytes / 1e9:.3g} GB free, "
                f"{_trip_ms(far):.3g} ms there and back"
            )
            refuse_other_software(far)
            yield Finding(what, True, told)
        except Unusable as error:
            yield Finding(what, False, told, str(error).removeprefix(f"{what}: "))
        except LineClosed as error:
            yield Finding(what, False, str(error))
        finally:
            far.close()


def _trip_ms(far: FarHost) -> float:
    """The quickest of some round trips of the agent's own line."""
    trips = []
    for _ in range(TRIPS):
        asked = time.monotonic()
        far.line.send(Ask(asked))
        far.line.receive(Tell, HELLO_LIMIT_S)
        trips.append(time.monotonic() - asked)
    return 1000 * min(trips)
