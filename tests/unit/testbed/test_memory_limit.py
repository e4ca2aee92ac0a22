"""Limit of memory: what would take more is told so, and afterwards all is as before."""

import resource
import sys

import pytest

from testbed import memory_limit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are set on Linux alone")


def test_what_takes_more_is_told_and_what_takes_less_is_not() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with memory_limit.taking(1 << 27):
        assert len(bytes(1 << 26)) == 1 << 26
    with pytest.raises(MemoryError, match="takes more than 128 MiB"), memory_limit.taking(1 << 27):
        bytes(1 << 28)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len(bytes(1 << 28)) == 1 << 28


def test_a_lower_limit_that_there_is_stays() -> None:
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    own = 1 << 45
    resource.setrlimit(resource.RLIMIT_AS, (own, hard))
    try:
        with memory_limit.taking(1 << 50):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == own
        assert resource.getrlimit(resource.RLIMIT_AS) == (own, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
