"""Keys of a run's connections (CURVE, RFC 26): who may speak as whom, and whom that is said to.

A run makes them, and each node is handed its own over a socket pair that nobody else holds: they
are on no disk, command line, environment or log. A caller is let in by its public key, which the
run has bound to its name. It also says a word that only it and whom it calls know, the routing id
of its connection: none of the run's other keys can take over what is queued for it.
"""

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import zmq
from zmq.utils import z85

from testbed.config_error import ConfigError
from testbed.network.topology import SERVER

SEED_BYTES = 32
WORD_BYTES = 16
"""Nobody guesses one."""
_DOOR = "inproc://zeromq.zap.01"
"""Where libzmq asks who may come in, by RFC 27."""
_YES, _NO = (b"200", b"OK"), (b"400", b"no key of this run")


class Mark(NamedTuple):
    """A connection's two marks, known to both its ends."""

    public: str
    """Public key of the other end, of 40 characters (Z85)."""
    word: str
    """What the caller calls itself."""


class Keys(msgspec.Struct, frozen=True):
    """Keys that a node is handed."""

    public: str
    secret: str
    callers: dict[str, Mark]
    """Who may call it, by name."""
    called: dict[str, Mark]
    """Whom it may call, likewise."""

    def __repr__(self) -> str:
        return "Keys(...)"


class RunKeys:
    """Keys of all nodes of a run."""

    def __init__(
        self, clients: Iterable[str], among_clients: bool = False, seed: bytes | None = None
    ) -> None:
        """``among_clients``: they call one another, and not the server alone.

        ``seed``: a secret that they are made from, the same on every host; None: they are of
        chance.
        """
        self._seed = seed or secrets.token_bytes(SEED_BYTES)
        self._pairs = {name: self._pair(name) for name in (SERVER, *clients)}
        self._among_clients = among_clients
        self._secret = self._made(b"words")[:WORD_BYTES]

    def _pair(self, name: str) -> tuple[str, str]:
        """A node's public key and its secret, any 32 bytes."""
        secret = z85.encode(self._made(b"node " + name.encode()))
        return zmq.curve_public(secret).decode(), secret.decode()

    def _made(self, what: bytes) -> bytes:
        return hashlib.blake2b(what, key=self._seed, digest_size=SEED_BYTES).digest()

    def of(self, node: str) -> Keys:
        public, secret = self._pairs[node]
        others = self._pairs.keys() - {node}
        called = [name for name in others if self._calls(node, name)]
        callers = [name for name in others if self._calls(name, node)]
        return Keys(
            public,
            secret,
            {name: Mark(self._pairs[name][0], self._word(name, node)) for name in callers},
            {name: Mark(self._pairs[name][0], self._word(node, name)) for name in called},
        )

    def _calls(self, caller: str, called: str) -> bool:
        return caller != SERVER and (called == SERVER or self._among_clients)

    def _word(self, caller: str, called: str) -> str:
        told = f"{caller} {called}".encode()
        return hashlib.blake2b(told, key=self._secret, digest_size=WORD_BYTES).hexdigest()


class Doorkeeper:
    """Lets in whose public key is known, at all of a context's sockets that take calls.

    It works in a thread of its own, so that no handshake waits for a node that computes.
    """

    def __init__(self, context: zmq.Context[Any], callers: Mapping[str, Mark]) -> None:
        """It ends with ``context``."""
        self._names = {z85.decode(mark.public): name.encode() for name, mark in callers.items()}
        self._socket: zmq.Socket[Any] = context.socket(zmq.REP)
        self._socket.bind(_DOOR)
        threading.Thread(target=self._serve, name="doorkeeper", daemon=True).start()

    def _serve(self) -> None:
        with self._socket, contextlib.suppress(zmq.ContextTerminated):
            while True:
                # version, number, domain, address, routing id, mechanism, credentials
                version, number, *_, key = self._socket.recv_multipart()
                name = self._names.get(key)
                answer = (*_NO, b"") if name is None else (*_YES, name)
                self._socket.send_multipart([version, number, *answer, b""])


def asked(secure: bool | None, transport: str) -> bool | None:
    """Whether a run's connections are to be secure; None: all but those that cannot be.

    ``secure``: what is said of it, or None.

    Raises:
        ConfigError: they cannot be, and it is not said that they need not.
    """
    if transport == "gloo" and secure:
        raise ConfigError(
            "secure = true: gloo's connections among clients can neither be encrypted nor proved; "
            "leave it out to secure all others, or take --transport=zmq"
        )
    wanted = secure is None or secure
    if wanted and not zmq.has("curve"):
        raise ConfigError(
            f"secure = true: libzmq {zmq.zmq_version()} was built "
            "without CURVE, and anybody on this machine could speak as a client: install pyzmq "
            "from its wheel, or go on without by --no-secure"
        )
    return True if secure is None and transport != "gloo" else secure


def told(secure: bool | None) -> str | None:
    """The same in words, for the record; ``secure`` is what ``asked`` said."""
    return {True: "curve", None: "curve, but for the all-reduce", False: None}[secure]
