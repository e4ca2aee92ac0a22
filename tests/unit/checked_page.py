"""What holds of every page: well-formed, whole in itself, with headings and tables in order."""

import itertools
import re
from xml.etree import ElementTree


def parsed(text: str) -> ElementTree.Element:
    doctype, _, rest = text.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def check(text: str) -> ElementTree.Element:
    """What holds of every page."""
    root = parsed(text)
    found = list(root.iter())
    assert not {each.tag for each in found} & {"script", "link", "img", "iframe", "object", "base"}
    assert not [key for each in found for key in each.attrib if key in ("src", "href")]
    assert not [key for each in found for key in each.attrib if key.startswith("on")]
    assert "@import" not in text and "url(" not in text
    levels = [int(each.tag[1]) for each in found if re.fullmatch("h[1-6]", each.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    names = [each.get("id") for each in found if each.get("id")]
    assert len(names) == len(set(names))
    for svg in root.iter("svg"):
        if svg.get("aria-hidden") != "true":
            assert svg.get("role") == "img" and svg[0].tag == "title" and svg[0].text
    for table in root.iter("table"):
        widths = {len(row) for row in table.iter("tr")}
        assert len(widths) == 1 and table.get("aria-label")
    return root
