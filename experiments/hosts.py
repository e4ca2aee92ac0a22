"""Hosts of a run: addresses and token, what they must have in common, and who has which node."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from experiments import ray_hosts
from testbed import outside
from testbed.config_error import ConfigError, in_words
from testbed.links.interface import LinkError
from testbed.links.tunnel.meeting import listen
from testbed.links.userspace import backend as userspace
from testbed.network import hosts
from testbed.network.topology import Plan
from testbed.processes import cores, free_memory
from testbed.processes.environment import TOKEN, take_token
from testbed.run.config import RunConfig
from testbed.run.hosts.agent import software
from testbed.run.hosts.driver import Hosts
from testbed.run.hosts.far_host import FarHost, Unusable, checked
from testbed.run.hosts.line import PORT
from testbed.run.hosts.messages import Answer, Check, Load
from testbed.units import whole

LEAST_TOKEN_BYTES = 32
"""Digests of it pass over the network, by which a shorter one might be found."""
MOST_HOSTS = 26


_THERE_IS_ONE = "there is one host; name several by hosts, or leave it out"
Question = Callable[[RunConfig, FarHost], msgspec.Struct]
ONE_HOST = "is of a run's hosts, and there are none but this one; name them by --hosts"


def token(file: Path | None) -> bytes:
    """The hosts' token, of a file or of the environment, from which it is taken out.

    Raises:
        ConfigError: there is none, or it is too short.
    """
    where = TOKEN if file is None else f"--token-file={file}"
    text = take_token() if file is None else outside.text(file, "--token-file")
    text = text.strip()
    if not text:
        raise ConfigError(
            f"{where}: has no token; make one that all hosts have, such as by `openssl rand -hex "
            f"32`, and give it as {TOKEN} or --token-file=FILE"
        )
    if len(text.encode()) < LEAST_TOKEN_BYTES:
        raise ConfigError(
            f"{where}: the token has {len(text.encode())} bytes; it must have "
            f"{LEAST_TOKEN_BYTES} or more, such as those of `openssl rand -hex 32`"
        )
    return text.encode()


def address_of(text: str) -> tuple[str, int]:
    """ "10.0.0.2:7401" or "worker-2" to an IPv4 address and a port.

    Raises:
        ConfigError: it is none.
    """
    name, colon, port = text.strip().partition(":")
    number = whole(port) if colon else PORT
    if not name or number is None or number > 65535:
        raise ConfigError(f"{text!r}: is no address; write ADDRESS or ADDRESS:PORT")
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{text!r}: {name!r} has no IPv4 address ({in_words(error)})") from error
    return str(found[0][4][0]), number


def parsed(text: str) -> dict[str, tuple[str, int]]:
    """Addresses of a run's hosts by their names: a, b, c, ….

    Raises:
        ConfigError: there are fewer than two, or too many, or one is there twice.
    """
    pieces = [piece.strip() for piece in text.split(",")]
    if not 2 <= len(pieces) <= MOST_HOSTS:
        raise ConfigError(
            f"hosts = {text!r}: are {len(pieces)}; name this machine's own address and those of "
            f"the others, {MOST_HOSTS} at most, parted by commas, or leave it out for this machine "
            "alone"
        )
    found = {chr(ord("a") + place): address_of(piece) for place, piece in enumerate(pieces)}
    for name, address in found.items():
        for other, its in found.items():
            if name < other and address == its:
                raise ConfigError(f"hosts = {text!r}: {name} and {other} are both {address[0]}")
    return found


def settled(config: RunConfig, flags: Mapping[str, Any]) -> RunConfig:
    """The run as several hosts can have it, nothing changed that was asked for.

    Raises:
        ConfigError: it asks for what they cannot.
    """
    if config.hosts is None:
        if config.place is not None:
            raise ConfigError(f"place = {config.place!r}: {_THERE_IS_ONE}")
        if config.on_lost_host == "stop":
            raise ConfigError(f'on_lost_host = "stop": {_THERE_IS_ONE}')
        return config
    several = "a run on several hosts"
    if config.links not in ("auto", userspace.name):
        raise ConfigError(
            f"links = {config.links!r}: {several} has links of userspace, since those of "
            f"{config.links} cannot go from one to another; take --links=userspace"
        )
    dilation = config.dilation
    if dilation == "auto" or flags.get("dilation") == "elastic":
        raise ConfigError(
            f"dilation = {dilation!r}: {several} goes by clocks that cannot wait for one another; "
            "take --dilation=1, or a larger one"
        )
    own = 1.0 if dilation == "elastic" else dilation
    return msgspec.structs.replace(config, links=userspace.name, dilation=own)


def reached(
    config: RunConfig, token_file: Path | None, owned: contextlib.ExitStack
) -> tuple[RunConfig, bytes | None]:
    """The run with its hosts' addresses, and their token; None: it has this host alone.

    Those of a Ray cluster have agents until ``owned`` ends.

    Raises:
        ConfigError: there is no token, or no cluster.
    """
    if config.hosts == ray_hosts.AUTO:
        cluster = owned.enter_context(ray_hosts.agents())
        return msgspec.structs.replace(config, hosts=cluster.addresses), cluster.token.encode()
    if config.hosts is not None:
        return config, token(token_file)
    if token_file is not None:
        raise ConfigError(f"--token-file={token_file}: {ONE_HOST}")
    return config, None


def placeable(config: RunConfig, clients: int) -> dict[str, tuple[str, int]]:
    """Addresses of a run's hosts by their names, on which its nodes can be as they are placed.

    Raises:
        ConfigError: hosts or placement are none.
    """
    assert config.hosts is not None
    addresses = parsed(config.hosts)
    if config.place is not None:
        hosts.parsed(config.place, list(addresses), clients)
    return addresses


def digests(config: RunConfig, data: str | None, files: Mapping[str, str]) -> dict[str, str | None]:
    """Digests of what must be the same on all hosts of a run, by what it is."""
    from nodes.workload import models

    weights = models.fingerprint(config.model) if config.compute == "real" else None
    own: dict[str, str | None] = {f"model {config.model}": weights, f"data {config.dataset}": data}
    return own | dict(files)


class Called(NamedTuple):
    """The hosts of a run, all of which have been called."""

    own: str
    others: list[FarHost]
    listener: socket.socket
    """Of this one, for the others' link processes."""
    secret: bytes
    """Their token."""

    @property
    def machine(self) -> hosts.Host:
        """This one, as it is now."""
        return hosts.Host(self.own, cores.usable(), free_memory.usable_bytes())


@contextlib.contextmanager
def called(
    config: RunConfig,
    clients: int,
    secret: bytes,
    *,
    hears: Any = Answer,
    loads: bool = True,
) -> Iterator[Called]:
    """The other hosts of a run of so many clients, which have this one's software.

    ``hears``: what they may say; ``loads``: whether they load what training takes.

    Raises:
        ConfigError: naming the one that could have no part in it, and why.
    """
    own, *others = addresses = placeable(config, clients)
    with contextlib.ExitStack() as owned:
        try:
            listener = owned.enter_context(listen(addresses[own][0]))
            found = []
            for name in others:
                far = FarHost(name, addresses[name], secret, hears)
                owned.callback(far.close)
                refuse_other_software(far)
                if loads:
                    far.say(Load())
                found.append(far)
        except (Unusable, LinkError) as error:
            raise ConfigError(f"hosts = {config.hosts!r}: {error}") from error
        yield Called(own, found, listener, secret)


def agreed(
    them: Called,
    config: RunConfig,
    layout: Plan,
    told: Mapping[str, str | None],
    needs: hosts.Needs = hosts.NOTHING,
    question: Question = lambda config, far: Check(config),
) -> tuple[Plan, dict[str, int]]:
    """The plan with all placed on hosts that can have their parts, and where each will be met.

    ``told``: digests of what all must have; ``needs``: memory; ``question``: what a host is asked
    of a run that is placed.

    Raises:
        ConfigError: naming the host that cannot, and why.
    """
    machines = [them.machine, *(far.machine for far in them.others)]
    layout = hosts.placed(layout, machines, needs, config.place)
    try:
        written = msgspec.structs.replace(config, place=hosts.written(layout))
        return layout, checked(them.others, lambda far: question(written, far), told)
    except Unusable as error:
        raise ConfigError(f"hosts = {config.hosts!r}: {error}") from error


@contextlib.contextmanager
def joined(
    them: Called,
    config: RunConfig,
    layout: Plan,
    told: Mapping[str, str | None],
    needs: hosts.Needs = hosts.NOTHING,
    question: Question = lambda config, far: Check(config),
) -> Iterator[tuple[Hosts, Plan]]:
    """The hosts of a run, each of which can have its part, and the plan with all placed.

    Raises:
        ConfigError: as in ``agreed``.
    """
    layout, ports = agreed(them, config, layout, told, needs, question)
    secure = config.secure is not False
    ours = them.machine, them.others, ports, them.listener, them.secret
    all_hosts = Hosts(*ours, secure=secure)
    with contextlib.closing(all_hosts):
        yield all_hosts, layout


def refuse_absent(text: str, secret: bytes) -> None:
    """Call every host of a list of addresses, and let it be.

    Raises:
        ConfigError: naming the one that could have no part in a run, and why.
    """
    (_, own), *others = parsed(text).items()
    try:
        listen(own[0]).close()
        for name, address in others:
            with contextlib.closing(FarHost(name, address, secret)) as far:
                refuse_other_software(far)
    except (Unusable, LinkError) as error:
        raise ConfigError(f"hosts = {text!r}: {error}") from error


def refuse_other_software(far: FarHost) -> None:
    mine, theirs = software(), far.hello.software
    for name in mine.keys() | theirs.keys():
        one, other = mine.get(name), theirs.get(name)
        # An installed package has no commit.
        if one != other and not (name == "git" and None in (one, other)):
            raise Unusable(
                f"{far.where}: has {name} {other or 'not at all'}, here it is {one or 'not there'};"
                " a run takes the same on all hosts"
            )
