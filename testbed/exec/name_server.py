"""The name server of a node: it knows nodes, refuses all else at once, and keeps who was asked for.

A node's hosts file has every node; what else is looked up lies in the internet, to which there is
no way from inside. A C library asks here still for the name of a node whose IPv4 address a program
has as one of IPv6, as it comes from a socket of both.
"""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Mapping

_PORT = 53
_MOST_NAMES = 100
_HEADER_BYTES = 12
_ANSWER, _NO_SUCH_NAME = 0x80, 0x03
_POINTER, _INTERNET, _TTL_S = 12, 1, 60
_NAME_OF_QUESTION = 0xC000 | _HEADER_BYTES


class NameServer:
    """Answers on 127.0.0.1, where a C library asks if nothing else is said."""

    def __init__(self, nodes: Mapping[str, str]) -> None:
        """``nodes``: names by address, whose addresses alone are looked up here.

        Raises:
            OSError: the port cannot be had.
        """
        self._nodes = {
            ipaddress.ip_address(address).reverse_pointer: name for address, name in nodes.items()
        }
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", _PORT))
        self.names: list[str] = []
        """That were asked for, each once."""

    def answer(self) -> None:
        """Answer what has come."""
        with contextlib.suppress(OSError):
            while True:
                query, asking = self.socket.recvfrom(4096)
                if len(query) <= _HEADER_BYTES:
                    continue
                name = asked(query)
                if (node := self._nodes.get(name)) is not None:
                    self.socket.sendto(pointer(query, node), asking)
                    continue
                if name and name not in self.names and len(self.names) < _MOST_NAMES:
                    self.names.append(name)
                self.socket.sendto(refusal(query), asking)

    def close(self) -> None:
        self.socket.close()


def asked(query: bytes) -> str:
    """The name of a query's first question."""
    labels, at = [], _HEADER_BYTES
    while at < len(query) and (length := query[at]):
        labels.append(query[at + 1 : at + 1 + length])
        at += 1 + length
    return b".".join(labels).decode("ascii", "replace")


def refusal(query: bytes) -> bytes:
    """The answer that there is no such name, with the question."""
    return _reply(query, _NO_SUCH_NAME, [])


def pointer(query: bytes, name: str) -> bytes:
    """The answer that the address of a query's question is that of ``name``, with the question."""
    data = bytes([len(name)]) + name.encode("ascii") + b"\0"
    head = struct.pack("!HHHIH", _NAME_OF_QUESTION, _POINTER, _INTERNET, _TTL_S, len(data))
    return _reply(query, 0, [head + data])


def _reply(query: bytes, code: int, answers: list[bytes]) -> bytes:
    at = _HEADER_BYTES
    while at < len(query) and query[at]:
        at += 1 + query[at]
    question = query[_HEADER_BYTES : at + 5]
    flags = bytes([_ANSWER | query[2] & 0x79, 0x80 | code])
    counts = struct.pack("!HHHH", 1, len(answers), 0, 0)
    return query[:2] + flags + counts + question + b"".join(answers)
