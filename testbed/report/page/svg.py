"""Plots as inline SVG. Sizes are in the drawing's own units, which a page scales to its width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from testbed.metrics import metric
from testbed.report.page.html import Markup, join, tag
from testbed.report.text import shortened

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 46
"""Of curves; the left is wider where figures there are."""
LETTER, FIGURE = 8.0, 9.0
"""About how wide a letter of a name is, and a figure at an axis, which a phone shows larger."""
MOST_LETTERS = 21
"""Of a name before bars or dots."""
MOST_POINTS, MOST_MARKS = 200, 40
"""Of one curve."""
MARKS = 1000
"""Of all curves of a page; a mark takes some 250 bytes."""
POINTS_A_MARK = 10
LOG_FROM = 30.0
"""Where curves end this many times as far apart, the axis is logarithmic."""
COLOURS = 7
_DASHES = (None, "7 3", "2 3", "9 3 2 3")
Point = tuple[float, float]


class Curve(NamedTuple):
    name: str
    points: list[Point]
    style: int
    """Number of its colour, dashes and mark."""
    filled: Sequence[bool] = ()
    """Which points have a solid mark; all, if not said."""


def number(value: float) -> str:
    """Three figures without an exponent: 0.0123, 1.23, 12.3, 1,234; with one from 10^9 on."""
    size = abs(value)
    if size >= 1e9:
        return f"{value:.3g}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.3g}"
    if size == 0:
        return "0"
    digits = min(9, 2 - math.floor(math.log10(size)))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, ``most`` at most, a step of 1, 2 or 5 apart."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10, 20) if (high - low) / (m * power) < most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between; only the powers where that is too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [m * 10.0**p for p in powers for m in factors if low <= m * 10.0**p <= high]
        if len(found) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


def thinned(count: int, most: int) -> list[int]:
    """``most`` of ``count`` positions, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(n * (count - 1) / (most - 1)) for n in range(most)})


def curves(
    title: str,
    description: str,
    found: Sequence[Curve],
    x_label: str,
    y_label: str,
    marks: int | None = MARKS,
) -> Markup:
    """Curves over an x axis from 0, or a logarithmic one where they end far apart.

    ``marks``: how many of the page's are for this plot. Both ends of a curve always have one; None:
    there are none, all points that a curve can have, and heights from 0, as rates are seen.
    """
    ends = [curve.points[-1][0] for curve in found if curve.points and curve.points[-1][0] > 0]
    logarithmic = bool(ends) and max(ends) / min(ends) >= LOG_FROM
    if logarithmic:
        found = [_positive(curve) for curve in found]
    points = [point for curve in found for point in curve.points]
    xs, ys = [x for x, _ in points] or [1.0], [y for _, y in points] or [0.0, 1.0]
    x_low, x_high = (min(xs) if logarithmic else 0.0), max(xs) or 1.0
    y_low, y_high = 0.0 if marks is None else min(ys), max(ys)
    margin = 0.06 * (y_high - y_low) or 0.05
    y_low, y_high = max(0.0, y_low - margin), min(1.0, y_high + margin) if max(ys) <= 1 else y_high

    heights = ticks(y_low, y_high)
    left = max(LEFT, 24 + FIGURE * max((len(number(y)) for y in heights), default=0))

    def across(x: float) -> float:
        if logarithmic:
            share = math.log(x / x_low) / (math.log(x_high / x_low) or 1.0)
        else:
            share = (x - x_low) / (x_high - x_low)
        return left + share * (WIDTH - left - RIGHT)

    def down(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts: list[Markup] = []
    for y in heights:
        parts.append(_line(left, down(y), WIDTH - RIGHT, down(y), "grid"))
        parts.append(_text(left - 7, down(y) + 4, number(y), "end"))
    free = 0.0
    for x in log_ticks(x_low, x_high) if logarithmic else ticks(x_low, x_high):
        parts.append(_line(across(x), TOP, across(x), HEIGHT - BOTTOM, "grid"))
        half = FIGURE * len(number(x)) / 2
        # A wide figure at the very end would be cut, and one that has no room covers another.
        place = min(across(x), WIDTH - 0.85 * half)
        if place - half >= free:
            parts.append(_text(place, HEIGHT - BOTTOM + 17, number(x), "middle"))
            free = place + half
    parts.append(_line(left, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    label = f"{x_label} (logarithmic)" if logarithmic else x_label
    parts.append(_text((left + WIDTH - RIGHT) / 2, HEIGHT - 8, label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(12, middle, y_label, "middle", transform=f"rotate(-90 12 {middle:g})"))
    most_marks, most_points = 0, MOST_POINTS
    if marks is not None:
        share = marks // max(1, len(found))
        most_marks = max(2, min(MOST_MARKS, share))
        most_points = max(2, min(MOST_POINTS, POINTS_A_MARK * share))
    for curve in found:
        at = [(across(x), down(y)) for x, y in curve.points]
        parts.append(_path([at[n] for n in thinned(len(at), most_points)], curve.style))
        for n in thinned(len(at), most_marks) if most_marks else ():
            own_x, own_y = curve.points[n]
            tip = f"{curve.name}: {y_label} {metric(own_y)}, {number(own_x)} {x_label}"
            solid = not curve.filled or curve.filled[n]
            parts.append(mark(*at[n], curve.style, solid, tip))
    return drawing(WIDTH, HEIGHT, title, description, parts)


def _positive(curve: Curve) -> Curve:
    kept = [n for n, (x, _) in enumerate(curve.points) if x > 0]
    filled = [curve.filled[n] for n in kept] if curve.filled else ()
    return curve._replace(points=[curve.points[n] for n in kept], filled=filled)


def _path(at: Sequence[Point], style: int) -> Markup:
    steps = " ".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(at))
    dashes = _DASHES[style // COLOURS % len(_DASHES)]
    return tag(
        "path", class_="curve", d=steps, style=f"stroke:{colour(style)}", stroke_dasharray=dashes
    )


def colour(style: int) -> str:
    return f"var(--c{style % COLOURS + 1})"


def mark(x: float, y: float, style: int, solid: bool = True, tip: str | None = None) -> Markup:
    """A point, whose shape goes with its colour: nobody needs to see colours."""
    shapes = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        "M-3.7 -3.7h7.4v7.4h-7.4z",
        "M0 -5l4.6 8h-9.2z",
        "M0 -5l4.6 5l-4.6 5l-4.6 -5z",
        "M0 5l4.6 -8h-9.2z",
        "M-5 -1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
        "M-4.5 -2.5h9v5h-9z",
    )
    fill = colour(style) if solid else "var(--card)"
    return tag(
        "path",
        *([tag("title", tip)] if tip else []),
        d=shapes[style % COLOURS],
        transform=f"translate({x:.1f} {y:.1f})",
        style=f"fill:{fill};stroke:{colour(style)};stroke-width:1.5",
    )


def legend(names: Iterable[tuple[str, int]]) -> Markup:
    """Curves' names, each with its line and mark."""
    items = []
    for name, style in names:
        drawn = tag(
            "svg",
            _path([(0, 7), (28, 7)], style),
            mark(14, 7, style),
            viewBox="0 0 28 14",
            aria_hidden="true",
        )
        items.append(tag("li", drawn, name))
    return tag("ul", *items, class_="legend")


def swatches(names: Iterable[tuple[str, str]]) -> Markup:
    """Names of areas, each with its colour: a CSS value."""
    items = []
    for name, value in names:
        box = tag("path", d="M4 1h20v12h-20z", style=f"fill:{value}")
        items.append(tag("li", tag("svg", box, viewBox="0 0 28 14", aria_hidden="true"), name))
    return tag("ul", *items, class_="legend")


class Strip(NamedTuple):
    """One row of a timeline."""

    name: str
    runs: list[tuple[int, int, str]]
    """(first column, column after the last, state), side by side."""


def strips(
    title: str,
    description: str,
    rows: Sequence[Strip],
    columns: int,
    span: tuple[float, float],
    bounds: Sequence[float] = (),
) -> Markup:
    """Rows of coloured stretches over ``span``, in seconds; ``bounds``: where rounds begin.

    A stretch's colour is the page's variable with its state's name. Stretches of one state are one
    path, so that the page stays small.
    """
    left, right, high, gap, width = 96, 12, 14, 5, 880
    area = width - left - right
    begin, end = span
    bottom = 8 + len(rows) * (high + gap)

    def across(second: float) -> float:
        return left + (second - begin) / ((end - begin) or 1.0) * area

    paths: dict[str, list[str]] = {}
    parts = []
    for index, row in enumerate(rows):
        y = 8 + index * (high + gap) + high / 2
        parts.append(_text(left - 8, y + 4, shortened(row.name, 13), "end", class_="name"))
        for first, last, state in row.runs:
            x, reach = left + first / columns * area, (last - first) / columns * area
            paths.setdefault(state, []).append(f"M{x:.1f} {y:g}h{reach:.1f}")
    for state, steps in paths.items():
        style = f"stroke:var(--{state});stroke-width:{high}"
        parts.append(tag("path", d="".join(steps), style=style))
    for second in bounds:
        parts.append(_line(across(second), 4, across(second), bottom, "axis"))
    parts.append(_line(left, bottom + 2, width - right, bottom + 2, "axis"))
    for second in ticks(begin, end, 10):
        parts.append(_text(across(second), bottom + 18, number(second), "middle"))
    label = "seconds since training began"
    parts.append(_text((left + width - right) / 2, bottom + 36, label, "middle"))
    return drawing(width, bottom + 44, title, description, parts)


def bars(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[tuple[float, str]], str]],
    axis: str,
) -> Markup:
    """Stacked bars, one a row: (name, its parts as (amount, CSS colour), what stands after it)."""
    left = 12 + LETTER * min(MOST_LETTERS, max((len(name) for name, _, _ in rows), default=0))
    left, right, high, gap, width = max(92.0, left), 134, 19, 8, WIDTH
    most = max((sum(amount for amount, _ in stack) for _, stack, _ in rows), default=0) or 1.0
    parts = []
    for index, (name, stack, after) in enumerate(rows):
        x, y = left, 4 + index * (high + gap)
        text = shortened(name, MOST_LETTERS)
        parts.append(_text(left - 8, y + 15, text, "end", class_="name"))
        for amount, fill in stack:
            reach = amount / most * (width - left - right)
            parts.append(
                tag("path", d=f"M{x:.1f} {y}h{reach:.1f}v{high}H{x:.1f}z", style=f"fill:{fill}")
            )
            x += reach
        parts.append(_text(x + 6, y + 15, after, "start"))
    bottom = 4 + len(rows) * (high + gap)
    parts.append(_line(left, 0, left, bottom, "axis"))
    parts.append(_text(left, bottom + 14, axis, "start"))
    return drawing(width, bottom + 22, title, description, parts)


def dots(
    title: str, description: str, rows: Sequence[tuple[str, str, Sequence[tuple[float, bool]]]]
) -> Markup:
    """Deviations, a row a gate: (whose, its name, (deviation in tolerances, whether it holds))."""
    left, right, high, width, limit = 16 + LETTER * MOST_LETTERS, 14, 24, WIDTH, 3.0
    area = width - left - right
    bottom = 6 + len(rows) * high

    def across(deviation: float) -> float:
        return left + (max(-limit, min(limit, deviation)) + limit) / (2 * limit) * area

    low, reach = across(-1), across(1) - across(-1)
    band = tag("path", d=f"M{low:.1f} 2h{reach:.1f}V{bottom}H{low:.1f}z", style="fill:var(--band)")
    parts = [band, _line(across(0), 2, across(0), bottom, "axis")]
    for index, (whose, gate, found) in enumerate(rows):
        y = 6 + index * high + high / 2
        # Gates of one link have its name in common.
        name = f"{shortened(whose, max(4, MOST_LETTERS - 2 - len(gate)))}: {gate}"
        text = shortened(name, MOST_LETTERS)
        parts.append(_text(left - 12, y + 4, text, "end", class_="name"))
        for deviation, ok in found:
            parts.append(mark(across(deviation), y, 0 if ok else 1, ok))
    for at, label in ((-3, "≤ -3"), (-1, "-1"), (0, "0"), (1, "1"), (3, "≥ 3")):
        anchor = {-3: "start", 3: "end"}.get(at, "middle")
        parts.append(_text(across(at), bottom + 16, label, anchor))
    label = "deviation from the profile, in tolerances"
    parts.append(_text(left + area / 2, bottom + 34, label, "middle"))
    return drawing(width, bottom + 42, title, description, parts)


def drawing(
    width: float, height: float, title: str, description: str, parts: Iterable[Markup]
) -> Markup:
    """An image with a title, and a description for those who cannot see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"max-width:{1.35 * width:.0f}px",
        role="img",
        aria_label=f"{title}. {description}",
    )


def figure(caption: str, *inside: Markup) -> Markup:
    return tag("figure", tag("figcaption", caption), *inside)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return tag("path", class_=kind, d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}")


def _text(x: float, y: float, text: str, anchor: str, **attributes: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **attributes)
