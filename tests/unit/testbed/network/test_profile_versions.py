"""Versions of profiles: a number that is raised with every change of a shipped link, and a mark."""

from pathlib import Path

import pytest

from testbed.config_error import ConfigError
from testbed.network.profiles import load, names

VERSIONS = {
    "2g": "1 (07826d)",
    "3g": "1 (0c4bbc)",
    "4g": "2 (5c144e)",
    "4g-lossy": "1 (b35906)",
    "5g": "1 (a70a7d)",
    "atc-2g-rural": "1 (68b530)",
    "atc-3g-avg": "1 (80838e)",
    "atc-edge-lossy": "1 (d8d204)",
    "ble-1m": "1 (d03798)",
    "cable": "1 (9f2d60)",
    "devtools-fast-4g": "1 (d39834)",
    "devtools-slow-4g": "1 (687a10)",
    "dsl": "1 (10f424)",
    "ethernet": "1 (7abd06)",
    "geo-satellite": "1 (707af0)",
    "lighthouse-regular-3g": "1 (c03941)",
    "lighthouse-slow-4g": "1 (6611ac)",
    "loadero-3g": "1 (d67410)",
    "loadero-4g": "1 (3a0fad)",
    "loadero-gprs": "1 (605646)",
    "loadero-hspa": "1 (27ff1f)",
    "lora-sf7": "1 (738758)",
    "lte-m": "1 (6fb01b)",
    "nb-iot": "1 (383c64)",
    "starlink": "1 (369f99)",
    "unlimited": "1 (9ec306)",
    "wifi": "1 (1833cb)",
    "wpt-3g-fast": "1 (bb6703)",
    "wpt-3g-slow": "1 (003e87)",
    "wpt-4g": "1 (bb7ced)",
    "wpt-dialup": "1 (590d24)",
    "wpt-edge": "1 (311f4d)",
    "wpt-fios": "1 (ac3ada)",
    "wpt-lte": "1 (1eb214)",
    "wpt-vdsl": "1 (13a5eb)",
}
LINK = "[up]\nrate_kbit = 1000\n[down]\ndelay_ms = 20\n"


@pytest.mark.parametrize("name", names())
def test_a_shipped_link_does_not_change_under_its_version(name: str) -> None:
    assert load(name).version == VERSIONS.get(name), (
        f"{name} is another link than it was: raise version in its file by one, or give it 1 where "
        "it is new, and say here what load() then gives"
    )


def test_a_file_of_ones_own_is_told_by_what_its_link_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    found = []
    for text in (
        LINK,
        "# The same.\n" + LINK,
        LINK.replace("1000", "1001"),
        "version = 3\n" + LINK,
    ):
        path.write_text(text)
        found.append(load(path))
    plain, same, other, numbered = (profile.version for profile in found)
    assert plain == same != other
    assert numbered == f"3 ({plain})"
    assert [profile.name for profile in found[::2]] == [f"mine@{plain}", f"mine@{other}"]


def test_a_link_in_words_is_told_by_them() -> None:
    one, same, other = (
        load(f"rate {text} delay 5ms").version for text in ("10mbit", "10000kbit", "1mbit")
    )
    assert one == same != other


@pytest.mark.parametrize("value", ["0", "1.0", "true", '"2"'])
def test_a_version_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"version = {value}\n{LINK}")
    with pytest.raises(
        ConfigError, match=r"mine\.toml: version = .*: must be a whole number from 1"
    ):
        load(path)
