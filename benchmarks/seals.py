"""What sealing costs of what passes between hosts, a message and a connection.

    python benchmarks/seals.py

CPU of both ends in one process: of messages, sealed by the one and opened by the other, and signed
alone by HMAC-SHA256; and of what two ends do before: the proof that both know a token, and their
agreement on keys. The least of five times, in µs.
"""

import hmac
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import click
import table

from testbed.links.tunnel import proof
from testbed.links.tunnel.streams import Sealed

SIZES = (100, 1500, 1 << 14, 1 << 16)
LIMIT_S = 10.0
TIMES, SAMPLE_BYTES, MOST = 5, 20_000_000, 3000
PROOFS = 300
KEY = b"k" * 32
GREETING, CALLER, CALLED = b"wiretune thing 1\n", "a", "b"

Pass = Callable[[bytes], bytes]
"""Seals and opens."""


def tls() -> Iterator[Pass]:
    one, other = socket.socketpair()
    with one, other:
        ends = agreed(one, other, KEY)

        def passed(data: bytes) -> bytes:
            # Not over the sockets: what the kernel takes is no part of it.
            found = b""
            with memoryview(data) as view:
                while len(found) < len(view):
                    _, sealed = ends[0]._seal(view[len(found) :])
                    ends[1]._incoming.write(sealed)
                    found += ends[1]._open()
            return found

        yield passed


def signed() -> Iterator[Pass]:
    def passed(data: bytes) -> bytes:
        digests = [hmac.digest(KEY, data, "sha256") for _ in range(2)]
        return data if hmac.compare_digest(*digests) else b""

    yield passed


def agreed(called: socket.socket, calling: socket.socket, secret: bytes) -> tuple[Sealed, Sealed]:
    ends = Sealed(called, secret, serves=True), Sealed(calling, secret, serves=False)
    for end in ends:
        end.settimeout(0)
    while not all([end.agrees() for end in ends]):
        pass
    return ends


WAYS = {"TLS 1.3": tls, "signed alone": signed}


def cost_us(does: Callable[[], object], count: int) -> float:
    least = float("inf")
    for _ in range(TIMES):
        began = time.process_time()
        for _ in range(count):
            does()
        least = min(least, time.process_time() - began)
    return 1e6 * least / count


def passing_us(passes: Pass, data: bytes) -> float:
    assert passes(data) == data
    return cost_us(lambda: passes(data), max(30, min(MOST, SAMPLE_BYTES // len(data))))


def prove(pool: ThreadPoolExecutor) -> None:
    """Have two ends prove that they know one token, over a connection of their own."""
    calling, called = socket.socketpair()
    with calling, called:
        by = time.monotonic() + LIMIT_S
        answers = pool.submit(answer, called, by)
        key = proof.call(calling, GREETING, KEY, CALLER, CALLED, by)
        assert answers.result() == key


def agree() -> None:
    """Have two ends that have proved it agree on keys."""
    calling, called = socket.socketpair()
    with calling, called:
        agreed(called, calling, os.urandom(32))


def answer(called: socket.socket, by: float) -> bytes:
    ours = proof.greet(called, GREETING)
    said = b""
    while missing := proof.missing(said):
        said += proof.read(called, missing, by)
    _, key, words = proof.judged(KEY, GREETING, ours, said, {CALLER}, CALLED)
    called.sendall(words)
    return key


@click.command()
def main() -> None:
    """Print what sealing costs."""
    print(f"| bytes | {' | '.join(WAYS)} |\n|---:|{'---:|' * len(WAYS)}")
    for size in SIZES:
        data, found = os.urandom(size), {}
        for name, way in WAYS.items():
            for passes in way():
                found[name] = passing_us(passes, data)
        first, *others = found
        for name in others:
            table.add(f"sealing {size} bytes by {first}", "µs", found[first], name, found[name])
        print(f"| {size} | {' | '.join(f'{each:.1f}' for each in found.values())} |")
    with ThreadPoolExecutor(1) as pool:
        print(f"proof of both ends: {cost_us(lambda: prove(pool), PROOFS):.0f} µs")
    print(f"agreement of both ends: {cost_us(agree, PROOFS):.0f} µs")


if __name__ == "__main__":
    main()
