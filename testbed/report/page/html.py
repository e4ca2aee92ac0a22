"""HTML and SVG as plain functions: text is escaped, and what they return never is again.

Pages are also well-formed XML, hold all they need, and ask the network for nothing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from testbed import files
from testbed.report.text import visible

_NO_XML = re.compile("[\ufffe\uffff]")
_PLAIN = re.compile(r"[\w .,:;=/()%+-]*", re.ASCII)
"""Most of a page's texts, in which there is nothing to escape."""
_VOID = ("meta",)
_STYLE = Path(__file__).with_name("style.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already."""


def escaped(text: object) -> Markup:
    """The text for an element or an attribute; what nobody could see is spelt out."""
    if isinstance(text, Markup):
        return text
    shown = str(text)
    if _PLAIN.fullmatch(shown):
        return Markup(shown)
    return Markup(html.escape(_NO_XML.sub("\ufffd", visible(shown))))


def tag(name: str, /, *inside: object, **attributes: object) -> Markup:
    """``<name ...>inside</name>``; ``class_`` and ``aria_label`` are class and aria-label.

    An attribute that is None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given} />")
    return Markup(f"<{name}{given}>{join(inside)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Markup:
    inside = [part if isinstance(part, Markup) else escaped(part) for part in parts]
    return Markup(escaped(between).join(inside))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1
) -> Markup:
    """A table in a box that it scrolls in; the first ``texts`` columns are text, the rest figures.

    The first column heads its row.
    """
    sides = ["text" if n < texts else "figure" for n in range(len(head))]
    heads = [
        tag("th", text, scope="col", class_=side) for text, side in zip(head, sides, strict=True)
    ]
    body = []
    for row in rows:
        cells = [tag("td", cell, class_=side) for cell, side in zip(row, sides, strict=True)]
        cells[0] = tag("th", row[0], scope="row", class_="text")
        body.append(tag("tr", *cells))
    whole = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), aria_label=caption)
    return tag("figure", tag("figcaption", caption), scroll(caption, whole))


def scroll(label: str, inside: Markup) -> Markup:
    """A box for what may be wider than the page; it can be scrolled by keys, too."""
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=label)


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and values, side by side where there is room."""
    parts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", *parts, class_="facts")


def tiles(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Figures of a page's head, each in a box of its own."""
    boxes = (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs)
    return tag("dl", *boxes, class_="tiles")


def verdict(word: str) -> Markup:
    """A verdict, coloured by what it says."""
    return tag("span", word, class_={"pass": "good", "fail": "bad"}.get(word))


def section(name: str, title: str, *inside: object) -> Markup:
    return tag("section", tag("h2", title), *inside, id=name)


def page(title: str, *inside: object) -> str:
    """A whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(_STYLE.read_text())),
    )
    body = tag("body", tag("main", *inside))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def write(path: Path, text: str) -> None:
    """Replace ``path`` in one step."""
    files.write(path, text.encode())
