"""Which paths are places in a folder, and which links stay in it."""

import os
from pathlib import Path

import pytest

from testbed.exec import places

NONE = {
    "empty": b"",
    "absolute": b"/etc/passwd",
    "above": b"../x",
    "above, later": b"a/../../x",
    "here": b"./a",
    "a folder's": b"a/",
    "twice": b"a//b",
    "with a NUL": b"a\0b",
    "a name too long": b"x" * 256,
    "a path too long": b"/".join([b"x" * 200] * 30),
    "too deep": b"/".join([b"x"] * (places.MOST_DEEP + 1)),
}
OUT = {
    "absolute": (b"a", b"/etc"),
    "up": (b"a", b".."),
    "up, from a folder": (b"d/a", b"../../x"),
    "up again after a name": (b"d/a", b"b/../x"),
    "up again, by way of a link to here": (b"a", b"here/../x"),
    "nowhere": (b"a", b""),
    "with a NUL": (b"a", b"x\0"),
}
WITHIN = {
    "beside": (b"latest", b"step 3"),
    "below": (b"latest", b"runs/3/x"),
    "up to the folder": (b"d/e/a", b"../../x"),
    "the folder": (b"d/a", b".."),
    "here": (b"a", b"."),
    "nothing that is there": (b"a", b"\xff\n"),
}


@pytest.mark.parametrize("path", NONE.values(), ids=NONE)
def test_what_is_no_place_in_a_folder_is_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match="a path that is"):
        places.names(path)


@pytest.mark.parametrize("path", [b"a", b"a b/c\nd", b"\xff/...", b"-rf/~", "ä".encode()])
def test_odd_names_are_names(path: bytes) -> None:
    assert b"/".join(places.names(path)) == path


@pytest.mark.parametrize("link, target", OUT.values(), ids=OUT)
def test_links_that_may_lead_out_are_told(link: bytes, target: bytes) -> None:
    assert places.leads_out(link, target)


@pytest.mark.parametrize("link, target", WITHIN.values(), ids=WITHIN)
def test_links_within_are_not(tmp_path: Path, link: bytes, target: bytes) -> None:
    assert not places.leads_out(link, target)
    folder = os.fsencode(tmp_path) + b"/own"
    os.makedirs(os.path.dirname(folder + b"/" + link))
    os.symlink(target, folder + b"/" + link)
    found = os.path.realpath(folder + b"/" + link)
    assert found == folder or found.startswith(folder + b"/")
