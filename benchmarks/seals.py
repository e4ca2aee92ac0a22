"""What sealing costs of what passes between hosts, a message and a connection.

    python benchmarks/seals.py

CPU of both ends in one process: of messages, sealed by the one and opened by the other, and signed
alone by HMAC-SHA256; and of the proof by which two ends get the key that seals. The least of five
times, in µs.
"""

import hmac
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
import table

from testbed.links.tunnel import proof
from testbed.links.tunnel.seal import Opener, Seal

SIZES = (100, 1500, 1 << 14, 1 << 16)
LIMIT_S = 10.0
TIMES, SAMPLE_BYTES, MOST = 5, 20_000_000, 3000
PROOFS = 300
KEY = b"k" * 32
GREETING, CALLER, CALLED = b"wiretune thing 1\n", "a", "b"

Pass = Callable[[bytes], bytes]
"""Seals and opens."""


def sealed() -> Pass:
    seal, opener = Seal(KEY, calls=True), Opener(KEY, max(SIZES), calls=True)
    return lambda data: b"".join(opener.open(seal.close(data)))


def signed() -> Pass:
    def passed(data: bytes) -> bytes:
        digests = [hmac.digest(KEY, data, "sha256") for _ in range(2)]
        return data if hmac.compare_digest(*digests) else b""

    return passed


WAYS = {"sealed": sealed, "signed alone": signed}


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


def answer(called: socket.socket, by: float) -> bytes:
    own = proof.greet(called, GREETING)
    said = b""
    while missing := proof.missing(said):
        said += proof.read(called, missing, by)
    _, key, words = proof.judged(KEY, GREETING, own, said, {CALLER}, CALLED)
    called.sendall(words)
    return key


@click.command()
def main() -> None:
    """Print what sealing costs."""
    print(f"| bytes | {' | '.join(WAYS)} |\n|---:|{'---:|' * len(WAYS)}")
    for size in SIZES:
        data = os.urandom(size)
        found = {name: passing_us(way(), data) for name, way in WAYS.items()}
        first, *others = found
        for name in others:
            table.add(f"sealing {size} bytes by {first}", "µs", found[first], name, found[name])
        print(f"| {size} | {' | '.join(f'{each:.1f}' for each in found.values())} |")
    with ThreadPoolExecutor(1) as pool:
        print(f"proof of both ends: {cost_us(lambda: prove(pool), PROOFS):.0f} µs")


if __name__ == "__main__":
    main()
