"""Pages of statistics: tables, forest plots and survival curves with numbers at risk."""

from __future__ import annotations

import math
from collections.abc import Sequence

from atoll.report.charts import (
    Band,
    Part,
    Series,
    figure,
    legend,
    line_chart,
    shown,
    stacked_columns,
    ticks,
)
from atoll.report.markup import Safe, tag
from atoll.report.style import STYLE

__all__ = ["bars", "forest", "page", "plain_table", "survival_plot"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Interval = tuple[str, float, float, float]
"""Name, estimate, lower and upper end."""

Line = tuple[str, Sequence[float], Sequence[float], Sequence[tuple[float, float]], Sequence[float]]
"""A group's name; times, survival, band and number at risk at each step."""


def page(title: str, sections: Sequence[tuple[str, Sequence[Safe]]]) -> str:
    """A whole page that opens offline; same input, same page.

    Args:
        title: its heading.
        sections: heading and content of each.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · Atoll"),
        tag("style", Safe(STYLE)),
    )
    parts = [tag("section", tag("h2", name), *content) for name, content in sections]
    body = tag(
        "body",
        tag("header", tag("div", tag("h1", title))),
        tag("main", *parts),
        tag("footer", "Written by Atoll."),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Safe:
    """A table of text."""
    top = tag("thead", tag("tr", *(tag("th", head) for head in heads)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", top, body), class_="scroll")


def bars(title: str, counts: Sequence[tuple[str, float | None]], x_label: str) -> Safe:
    """Counts as upright bars; None is suppressed and leaves a gap."""
    columns = [
        (name, [] if count is None else [Part("count", "c0", count)]) for name, count in counts
    ]
    hidden = sum(count is None for _, count in counts)
    note = f"; {hidden} suppressed" if hidden else ""
    return figure(stacked_columns(title, columns, x_label), title + note, wide=True)


def forest(title: str, rows: Sequence[Interval], *, ratio: bool = False) -> Safe:
    """Estimates with their intervals, one a row, around a line of no effect.

    Args:
        title: what is estimated.
        rows: the intervals; of ratios all numbers are positive.
        ratio: a logarithmic axis, no effect at 1; else at 0.
    """
    usable = [row for row in rows if not ratio or min(row[1:]) > 0]
    place = math.log if ratio else float
    ends = [place(v) for row in usable for v in row[2:]] + [0.0]
    marks = _ratios(min(ends), max(ends)) if ratio else ticks(min(ends), max(ends))
    low, high = min(map(place, marks)), max(map(place, marks))
    left, width, pitch = 190.0, 960.0, 26.0
    bottom = len(usable) * pitch + 8

    def x(value: float) -> float:
        return left + (place(value) - low) / (high - low) * (width - left - 190)

    body: list[Safe] = []
    for mark in marks:
        neutral = mark == (1.0 if ratio else 0.0)
        body.append(_stroke(x(mark), 0, x(mark), bottom, 1.6 if neutral else 0.4))
        body.append(_text(shown(mark), x(mark), bottom + 16, "middle"))
    for i, (name, value, lower, upper) in enumerate(usable):
        y = (i + 0.5) * pitch + 4
        told = f"{shown(value, 3)} ({shown(lower, 3)} to {shown(upper, 3)})"
        body += [
            _text(name if len(name) <= 26 else name[:25] + "…", left - 10, y + 4, "end"),
            _stroke(x(lower), y, x(upper), y, 2.0, "c0"),
            tag(
                "circle",
                tag("title", f"{name}: {told}"),
                cx=f"{x(value):.1f}",
                cy=f"{y:.1f}",
                r="4.5",
                style="fill:var(--k)",
                class_="c0",
            ),
            _text(told, width - 4, y + 4, "end"),
        ]
    svg = tag(
        "svg",
        tag("title", title),
        *body,
        viewBox=f"0 0 {width:.0f} {bottom + 24:.0f}",
        role="img",
        aria_label=title,
    )
    return figure(svg, f"{title.capitalize()}, with confidence intervals", wide=True)


def _ratios(low: float, high: float) -> list[float]:
    """Marks 1, 2 and 5 times powers of ten around a range of logarithms, thinned to about eight."""
    start, end = math.floor(low / math.log(10)), math.ceil(high / math.log(10))
    every = [f * 10.0**p for p in range(start, end + 1) for f in (1, 2, 5)]
    below = [m for m in every if math.log(m) <= low + 1e-9] or every[:1]
    above = [m for m in every if math.log(m) >= high - 1e-9] or every[-1:]
    inside = [m for m in every if below[-1] <= m <= above[0]]
    if len(inside) > 9:
        inside = [m for m in inside if m == 10.0 ** round(math.log10(m))] or inside
    return sorted({*inside, 1.0}) if len({*inside, 1.0}) > 1 else [0.5, 1.0, 2.0]


def survival_plot(lines: Sequence[Line]) -> Safe:
    """Survival curves as steps with their bands, and the numbers at risk below."""
    series, bands = [], []
    for i, (name, times, survival, band, _) in enumerate(lines):
        points: list[tuple[float, float | None]] = [(0.0, 1.0)]
        edges = [(0.0, 1.0, 1.0)]
        for time, value, (low, high) in zip(times, survival, band, strict=True):
            points += [(time, points[-1][1]), (time, value)]
            edges += [(time, *edges[-1][1:]), (time, low, high)]
        series.append(Series(name, f"c{i % 10}", points))
        whole = [edge for edge in edges if all(map(math.isfinite, edge))]
        bands.append(Band(f"c{i % 10}", whole))
    key = legend([(s.kind, s.name) for s in series])
    chart = line_chart("Survival", series, "time", *bands)
    return tag("div", figure(chart, "Survival with its band", key), _at_risk(lines))


def _at_risk(lines: Sequence[Line]) -> Safe:
    """Numbers at risk at some round times; the last step before each tells."""
    last = max((times[-1] for _, times, *_ in lines if len(times)), default=1.0)
    marks = [m for m in ticks(0.0, last, 6) if m <= last]
    rows = []
    for name, times, _, _, numbers in lines:
        cells = []
        for mark in marks:
            later = [n for t, n in zip(times, numbers, strict=True) if t >= mark]
            cells.append(shown(later[0]) if later else "-")
        rows.append([name, *cells])
    return plain_table(["at risk at time", *(shown(m) for m in marks)], rows)


def _stroke(x1: float, y1: float, x2: float, y2: float, width: float, kind: str = "edge") -> Safe:
    return tag(
        "line",
        x1=f"{x1:.1f}",
        y1=f"{y1:.1f}",
        x2=f"{x2:.1f}",
        y2=f"{y2:.1f}",
        style=f"stroke:var(--k);stroke-width:{width:g}",
        class_=kind,
    )


def _text(words: str, x: float, y: float, anchor: str) -> Safe:
    return tag(
        "text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, style="fill:var(--ink)"
    )
