"""Ports that are listened on, as /proc/net/tcp and tcp6 tell of them."""

from pathlib import Path

import pytest

from testbed.exec import listening

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


def table(*lines: tuple[str, str]) -> str:
    rest = "00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 1"
    return HEAD + "".join(f"   0: {local} {rest.format(state)}\n" for local, state in lines)


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("00000000", True),  # 0.0.0.0
        ("0100000A", True),  # 10.0.0.1
        ("0100007F", False),  # 127.0.0.1
        ("0101007F", False),  # 127.0.1.1
        ("00000000000000000000000000000000", True),  # ::
        ("00000000000000000000000001000000", False),  # ::1
        ("0000000000000000FFFF00000100007F", False),  # ::ffff:127.0.0.1
        ("0000000000000000FFFF00000100000A", True),
    ],
)
def test_who_listens_on_loopback_alone_is_not_reached(
    address: str, reached: bool, tmp_path: Path
) -> None:
    name = "tcp" if len(address) == 8 else "tcp6"
    (tmp_path / name).write_text(table((f"{address}:1F40", "0A"), (f"{address}:0050", "01")))
    assert listening.ports(tmp_path) == {8000: reached}


def test_one_of_two_that_is_reached_suffices(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(table(("00000000:1F40", "0A"), ("0100007F:1F40", "0A")))
    (tmp_path / "tcp6").write_text(
        table(("00000000000000000000000001000000:1F40", "0A"), ("0" * 32 + ":1F41", "0A"))
    )
    assert listening.ports(tmp_path) == {8000: True, 8001: True}
