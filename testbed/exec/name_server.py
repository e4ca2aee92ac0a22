"""The name server of a node: it knows nobody, says so at once, and keeps who was asked for.

A node's hosts file has every node; what else is looked up lies in the internet, to which there is
no way from inside.
"""

import contextlib
import socket

_PORT = 53
_MOST_NAMES = 100
_HEADER_BYTES = 12
_ANSWER, _NO_SUCH_NAME = 0x80, 0x03


class NameServer:
    """Answers on 127.0.0.1, where a C library asks if nothing else is said."""

    def __init__(self) -> None:
        """Raises OSError: the port cannot be had."""
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
    at = _HEADER_BYTES
    while at < len(query) and query[at]:
        at += 1 + query[at]
    question = query[_HEADER_BYTES : at + 5]
    flags = bytes([_ANSWER | query[2] & 0x79, 0x80 | _NO_SUCH_NAME])
    return query[:2] + flags + b"\0\1\0\0\0\0\0\0" + question
