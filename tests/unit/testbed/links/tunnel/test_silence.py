"""Silence of another host: who has asked in vain for three seconds knows it, and nobody sooner."""

import struct

import pytest

from testbed.links.tunnel import silence


class Connection:
    """One of which the kernel tells so much (Linux's struct tcp_info)."""

    def __init__(self, again: int, asked: int, data_ms: int, answer_ms: int) -> None:
        self._info = struct.pack("=BBBB48xII", 1, 0, again, asked, data_ms, answer_ms)

    def getsockopt(self, *asked: int) -> bytes:
        return self._info


@pytest.mark.parametrize(
    ("told", "lasts"),
    [
        pytest.param((0, 2, 3000, 3000), True, id="asked in vain"),
        pytest.param((3, 0, 60_000, 3100), True, id="sent again in vain"),
        pytest.param((0, 2, 2900, 60_000), False, id="data came"),
        pytest.param((2, 0, 60_000, 2900), False, id="an acknowledgement came"),
        pytest.param((0, 1, 60_000, 60_000), False, id="stood still itself"),
        pytest.param((1, 0, 60_000, 60_000), False, id="stood still while it sent"),
    ],
)
def test_silence_lasts_by_what_is_asked_in_vain(told: tuple[int, ...], lasts: bool) -> None:
    assert silence.lasts(Connection(*told)) is lasts  # type: ignore[arg-type]
