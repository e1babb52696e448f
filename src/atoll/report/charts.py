"""Small SVG charts written by hand: lines, dots on rows, stacked bars and a grid of cells.

Written by hand rather than by matplotlib because the report then needs no extra, is a tenth of the size,
takes its colours from the page (light, dark, print), and every mark can carry a hover title.

Every chart is one ``<svg role="img">`` with a label and a title. A colour is a CSS class that sets
``--k`` (see :mod:`atoll.report.style`); coordinates are in user units of a viewBox and scale with the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoll.report.markup import Safe, join, tag

__all__ = [
    "Band",
    "Cell",
    "Part",
    "Series",
    "cell_grid",
    "dot_rows",
    "figure",
    "legend",
    "line_chart",
    "shown",
    "stacked_columns",
    "stacked_rows",
    "ticks",
]

_WIDE = 960.0
"""Width of a chart that takes the whole column; about one unit per pixel on a desktop."""

Point = tuple[float, float | None]
"""x and y; a y of None leaves a gap."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name, CSS class and points."""

    name: str
    kind: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Band:
    """A range around a line: ``(x, low, high)`` for each x."""

    kind: str
    edges: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar, or a dot on a row: what it is, its CSS class and value."""

    name: str
    kind: str
    value: float


@dataclass(frozen=True)
class Cell:
    """One cell of a grid: its place, CSS class, opacity in [0, 1] and hover title."""

    row: int
    column: int
    kind: str
    opacity: float
    title: str


def shown(value: float | None, digits: int = 4) -> str:
    """A number for people: at most ``digits`` significant digits, thousands grouped.

    >>> shown(0.123456), shown(12345.0), shown(None)
    ('0.1235', '12,345', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    whole = value == round(value) or abs(value) >= 10 ** (digits - 1)
    if whole and abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or before ``low`` to at or after ``high``, steps of 1, 2 or 5.

    >>> ticks(0.12, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    size = max(abs(low), abs(high))
    if not high - low > max(1e-9 * size, 1e-300):  # too narrow for numbers of twelve digits
        pad = size * 0.05 if size > 1e-290 else 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def figure(svg: Safe, caption: str, key: Safe | None = None, *, wide: bool = False) -> Safe:
    """A chart with its caption and legend; ``wide`` ones scroll sideways on a small screen."""
    body = tag("div", svg, class_="scroll") if wide else svg
    return tag("figure", tag("figcaption", caption), key or "", body)


def legend(entries: Sequence[tuple[str, str]]) -> Safe:
    """A legend of ``(css class, name)`` pairs."""
    items = [tag("li", tag("i", class_=f"key {kind}"), name) for kind, name in entries]
    return tag("ul", *items, class_="legend")


def line_chart(title: str, series: Sequence[Series], x_label: str, *bands: Band | None) -> Safe:
    """Lines over a common x axis; single values are dots, gaps stay gaps."""
    ranges = [band for band in bands if band is not None and band.edges]
    values = [y for s in series for _, y in s.points if y is not None]
    values += [edge for band in ranges for e in band.edges for edge in e[1:]]
    if not values:
        return _nothing(title)
    xs = [x for s in series for x, y in s.points if y is not None]
    frame = _Frame.around(xs, values)
    parts: list[object] = [frame.grid(), frame.x_axis(x_label)]
    parts += [_band(band, frame) for band in ranges]
    parts += [_line(s, frame) for s in series]
    return _svg(title, frame.width, frame.height, *parts)


def dot_rows(title: str, rows: Sequence[tuple[str, Sequence[Part]]], x_label: str) -> Safe:
    """One row per name with a dot per value, joined by a line: how far apart are they?"""
    values = [p.value for _, parts in rows for p in parts]
    if not values:
        return _nothing(title)
    marks = ticks(min(values), max(values))
    left, width, pitch = 160.0, _WIDE, 30.0
    bottom = len(rows) * pitch + 8

    def x(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - 24)

    body: list[object] = [_vertical_grid(marks, x, bottom)]
    for i, (name, parts) in enumerate(rows):
        body.append(_dot_row(name, parts, x, (i + 0.5) * pitch + 4, left))
    middle = (left + width - 24) / 2
    body.append(_label(x_label, middle, bottom + 34, "middle", "axis"))
    return _svg(title, width, bottom + 42, *body)


def stacked_rows(
    title: str, rows: Sequence[tuple[str, Sequence[Part]]], *, share: bool = False, unit: str = ""
) -> Safe:
    """One horizontal bar per name, cut into parts; ``share`` stretches all to the same length."""
    totals = [sum(p.value for p in parts) for _, parts in rows]
    longest = max(totals, default=0)
    if longest <= 0:
        return _nothing(title)
    left, width, pitch = 160.0, _WIDE, 28.0 if len(rows) <= 30 else 15.0
    room = width - left - 70
    body: list[object] = []
    for i, ((name, parts), total) in enumerate(zip(rows, totals, strict=True)):
        top, x = i * pitch + 2, left
        body.append(_name(name, left - 8, top + pitch / 2 - 2, size=pitch))
        for p in parts:
            length = room * p.value / ((total or 1) if share else longest)
            percent = f" ({100 * p.value / total:.0f} %)" if total else ""
            hover = f"{name}, {p.name}: {shown(p.value, 6)}{unit}{percent}"
            body.append(_rect(x, top, length, pitch - 4, f"fill {p.kind}", hover))
            x += length
        body.append(_label(shown(total, 6), x + 6, top + pitch / 2 + 2, "start"))
    return _svg(title, width, len(rows) * pitch + 4, *body)


def stacked_columns(
    title: str,
    columns: Sequence[tuple[str, Sequence[Part]]],
    x_label: str,
    *,
    ends: tuple[str, str] | None = None,
) -> Safe:
    """One upright bar per column, cut into parts; under it the first and last names, or ``ends``."""
    highest = max((sum(p.value for p in parts) for _, parts in columns), default=0)
    if highest <= 0:
        return _nothing(title)
    frame = _Frame((0.0, float(len(columns))), ticks(0.0, highest), _WIDE, 230.0)
    gap = 0.12 if len(columns) <= 80 else 0.0
    body: list[object] = [frame.grid()]
    for i, (name, parts) in enumerate(columns):
        base = 0.0
        for p in parts:
            if p.value > 0:
                top = frame.y(base + p.value)
                body.append(
                    _rect(
                        frame.x(i + gap / 2),
                        top,
                        frame.x(1.0 - gap) - frame.x(0.0),
                        frame.y(base) - top,
                        f"fill {p.kind}",
                        f"{name}: {p.name} {shown(p.value, 6)}",
                    )
                )
                base += p.value
    first, last = ends or (columns[0][0], columns[-1][0])
    foot = frame.height - 22
    body.append(_label(first, frame.left, foot, "start"))
    body.append(_label(last, frame.width - frame.right, foot, "end"))
    body.append(_label(x_label, (frame.left + frame.width) / 2, frame.height - 6, "middle", "axis"))
    return _svg(title, frame.width, frame.height, *body)


def cell_grid(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Cell], x_label: str
) -> Safe:
    """A grid of coloured cells, such as who took part in which round."""
    left, width = 160.0, _WIDE
    pitch = 26.0 if len(rows) <= 24 else 15.0
    across = (width - left - 12) / max(len(columns), 1)
    gap = 2.0 if across > 7 else (0.6 if across > 3 else 0.0)
    across = min(across, 44.0)
    body: list[object] = [
        _name(name, left - 8, (i + 0.5) * pitch, size=pitch) for i, name in enumerate(rows)
    ]
    for c in cells:
        x, y = left + c.column * across, c.row * pitch + 1
        kind, faded = f"fill {c.kind}", None if c.opacity >= 1 else f"{c.opacity:.2f}"
        body.append(_rect(x, y, across - gap, pitch - 2, kind, c.title, faded))
    bottom = len(rows) * pitch
    if columns:
        body.append(_label(columns[0], left, bottom + 14, "start"))
        if len(columns) > 1:
            body.append(_label(columns[-1], left + len(columns) * across, bottom + 14, "end"))
    body.append(_label(x_label, left + len(columns) * across / 2, bottom + 14, "middle", "axis"))
    return _svg(title, width, bottom + 22, *body)


@dataclass(frozen=True)
class _Frame:
    """The plotting area: x range, y ticks and outer size."""

    x_range: tuple[float, float]
    marks: Sequence[float]
    width: float = 460.0
    height: float = 250.0
    left: float = 54.0
    right: float = 14.0

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> _Frame:
        low, high = min(xs), max(xs)
        return cls((low, high) if high > low else (low - 1, high + 1), ticks(min(ys), max(ys)))

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        share = (value - self.marks[0]) / (self.marks[-1] - self.marks[0])
        return self.height - 42 - share * (self.height - 54)

    def grid(self) -> Safe:
        lines = [
            join(
                tag("line", x1=_n(self.left), x2=_n(self.width - self.right), y1=y, y2=y),
                _label(shown(m), self.left - 6, self.y(m) + 4, "end"),
            )
            for m in self.marks
            for y in [_n(self.y(m))]
        ]
        return tag("g", *lines, class_="grid")

    def x_axis(self, label: str) -> Safe:
        low, high = self.x_range
        marks = [m for m in ticks(low, high) if low <= m <= high]
        numbers = [_label(shown(m), self.x(m), self.height - 24, "middle") for m in marks]
        middle = (self.left + self.width - self.right) / 2
        return tag("g", *numbers, _label(label, middle, self.height - 6, "middle", "axis"))


_MOST_POINTS = 400
_MOST_DOTS = 50


def _line(series: Series, frame: _Frame) -> Safe:
    """A polyline for each stretch without gaps, and dots that carry the hover titles."""
    points = _thinned(series.points, _MOST_POINTS)
    path, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        path.append(f"{pen}{_n(frame.x(x))} {_n(frame.y(y))}")
        pen = "L"
    known = [point for point in points if point[1] is not None]
    dots = [
        tag(
            "circle",
            tag("title", f"{series.name}: {shown(y)} at {shown(x)}"),
            cx=_n(frame.x(x)),
            cy=_n(frame.y(y)),
            r="2.6" if len(known) <= _MOST_DOTS else "1.6",
        )
        for x, y in _thinned(known, _MOST_DOTS)
        if y is not None
    ]
    return tag(
        "g", tag("path", d="".join(path), class_="line"), *dots, class_=f"series {series.kind}"
    )


def _thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """Every so-many-th point, the last one always; enough for the eye, small for the file."""
    if len(points) <= most:
        return points
    stride = math.ceil(len(points) / most)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _band(band: Band, frame: _Frame) -> Safe:
    step = math.ceil(len(band.edges) / _MOST_POINTS)
    edges = band.edges[::step]
    there = [f"{_n(frame.x(x))} {_n(frame.y(high))}" for x, _, high in edges]
    back = [f"{_n(frame.x(x))} {_n(frame.y(low))}" for x, low, _ in reversed(edges)]
    return tag("path", d="M" + "L".join(there + back) + "Z", class_=f"band {band.kind}")


def _vertical_grid(marks: Sequence[float], x: Callable[[float], float], bottom: float) -> Safe:
    lines = [
        join(
            tag("line", x1=_n(x(m)), x2=_n(x(m)), y1="0", y2=_n(bottom)),
            _label(shown(m), x(m), bottom + 16, "middle"),
        )
        for m in marks
    ]
    return tag("g", *lines, class_="grid")


def _dot_row(
    name: str, parts: Sequence[Part], x: Callable[[float], float], y: float, left: float
) -> Safe:
    low = min((p.value for p in parts), default=0.0)
    high = max((p.value for p in parts), default=0.0)
    joined = tag("line", x1=_n(x(low)), x2=_n(x(high)), y1=_n(y), y2=_n(y), class_="joined")
    dots = [
        tag(
            "circle",
            tag("title", f"{name}, {p.name}: {shown(p.value)}"),
            cx=_n(x(p.value)),
            cy=_n(y),
            r="6",
            class_=f"dot {p.kind}",
        )
        for p in parts
    ]
    return join(_name(name, left - 8, y), joined if parts else "", *dots)


def _rect(
    x: float, y: float, width: float, height: float, kind: str, hover: str, faded: str | None = None
) -> Safe:
    return tag(
        "rect",
        tag("title", hover),
        x=_n(x),
        y=_n(y),
        width=_n(max(width, 0.0)),
        height=_n(height),
        class_=kind,
        fill_opacity=faded,
    )


def _label(words: str, x: float, y: float, anchor: str, kind: str | None = None) -> Safe:
    return tag("text", words, x=_n(x), y=_n(y), text_anchor=anchor, class_=kind)


def _name(name: str, x: float, y: float, size: float = 20.0) -> Safe:
    short = name if len(name) <= 21 else name[:20] + "…"
    hover = tag("title", name) if short != name else ""
    kind = "name" if size >= 16 else "name small"
    return tag("text", short, hover, x=_n(x), y=_n(y + 4), text_anchor="end", class_=kind)


def _nothing(title: str) -> Safe:
    words = _label("no values", 230, 44, "middle", "axis")
    return _svg(title, 460, 80, words)


def _svg(title: str, width: float, height: float, *parts: object) -> Safe:
    return tag(
        "svg",
        tag("title", title),
        *parts,
        viewBox=f"0 0 {_n(width)} {_n(height)}",
        role="img",
        aria_label=title,
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
