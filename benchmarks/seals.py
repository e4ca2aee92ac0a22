"""What sealing costs of what passes between hosts, by each way that there is.

    python benchmarks/seals.py

CPU of both ends, sealed by the one and opened by the other in one process: by TLS 1.3, as tunnels
between link processes are; by ChaCha20-Poly1305, as lines to agents are; and signed alone by
HMAC-SHA256. The least of five times, in µs.
"""

import hmac
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import click
import table

from testbed.links.tunnel.streams import Sealed
from testbed.run.hosts.seal import Seal

SIZES = (100, 1500, 1 << 14, 1 << 16)
LIMIT_S = 10.0
TIMES, SAMPLE_BYTES, MOST = 5, 20_000_000, 3000
KEY = b"k" * 32

Pass = Callable[[bytes], bytes]
"""Seals and opens."""


def tls() -> Iterator[Pass]:
    one, other = socket.socketpair()
    with one, other:
        ends = Sealed(one, KEY, serves=True), Sealed(other, KEY, serves=False)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda end: end.agree(LIMIT_S), ends))

        def passed(data: bytes) -> bytes:
            # Not over the sockets: what the kernel takes is no part of it.
            _, sealed = ends[0]._seal(data)
            ends[1]._incoming.write(sealed)
            return ends[1]._open()

        yield passed


def own() -> Iterator[Pass]:
    closes, opens = Seal(KEY, 0), Seal(KEY, 0)
    yield lambda data: opens.open(closes.close(data)) or b""


def signed() -> Iterator[Pass]:
    def passed(data: bytes) -> bytes:
        digests = [hmac.digest(KEY, data, "sha256") for _ in range(2)]
        return data if hmac.compare_digest(*digests) else b""

    yield passed


WAYS = {"TLS 1.3": tls, "as lines are": own, "signed alone": signed}


def cost_us(passes: Pass, data: bytes) -> float:
    assert passes(data) == data
    count = max(30, min(MOST, SAMPLE_BYTES // len(data)))
    least = float("inf")
    for _ in range(TIMES):
        began = time.process_time()
        for _ in range(count):
            passes(data)
        least = min(least, time.process_time() - began)
    return 1e6 * least / count


@click.command()
def main() -> None:
    """Print what sealing costs."""
    print(f"| bytes | {' | '.join(WAYS)} |\n|---:|{'---:|' * len(WAYS)}")
    for size in SIZES:
        data, found = os.urandom(size), {}
        for name, way in WAYS.items():
            for passes in way():
                found[name] = cost_us(passes, data)
        first, *others = found
        for name in others:
            table.add(f"sealing {size} bytes by {first}", "µs", found[first], name, found[name])
        print(f"| {size} | {' | '.join(f'{each:.1f}' for each in found.values())} |")


if __name__ == "__main__":
    main()
