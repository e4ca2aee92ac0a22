"""Random streams of a run: each is named by what it is for, so that no two draw the same."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one stream: of ``seed``, what it draws and for whom.

    Streams of other seeds, purposes or nodes are independent of it, up to a chance of 2^-63.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
