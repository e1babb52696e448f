"""Metrics over rounds and over virtual time, the spread over sites, and where the seconds went."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atoll.report.charts import (
    Band,
    Part,
    Series,
    figure,
    legend,
    line_chart,
    shown,
    stacked_columns,
)
from atoll.report.compare import main_metric, metric_label, number, scores
from atoll.report.markup import Safe, join, tag
from atoll.report.participation import Record

__all__ = ["curves_section", "duration", "last_value", "timings_section"]

_SOURCES = {
    "central": "central test set",
    "federated": "all sites' held-out rows",
    "train": "training",
}
_MOST_METRICS = 8
_MOST_SITE_LINES = 10
_MOST_COLUMNS = 120

_X = Callable[[Record], float]


def last_value(rounds: Sequence[Record], source: str, metric: str) -> float | None:
    """The last value of ``metric`` that ``source`` (``central``, ``federated``, ``train``) reported."""
    found = (number(scores(r.get(source)).get(metric)) for r in reversed(rounds))
    return next((value for value in found if value is not None), None)


def curves_section(manifest: Mapping[str, Any], rounds: Sequence[Record]) -> Safe:
    """One chart per metric; again over virtual time when time does not just count the rounds."""
    main = main_metric(manifest)
    metrics = _metrics(rounds, main)
    if not metrics:
        return tag("p", "No metric was recorded.", class_="empty")
    used = [s for s in _SOURCES if any(r.get(s) for r in rounds)]
    charts = [_chart(rounds, m, "round", _round) for m in metrics]
    if _own_time(rounds):
        timed = dict.fromkeys([main if main in metrics else metrics[0], "loss"])
        charts += [_chart(rounds, m, "virtual time", _clock) for m in timed if m in metrics]
    charts += [c for c in [_over_sites(rounds, main if main in metrics else metrics[0])] if c]
    key = legend([(f"k-{source}", _SOURCES[source]) for source in used])
    return join(key, tag("div", *charts, class_="charts"))


def _metrics(rounds: Sequence[Record], main: str) -> list[str]:
    seen: dict[str, None] = {}
    for source in _SOURCES:
        for record in rounds:
            seen |= dict.fromkeys(
                str(m) for m, v in scores(record.get(source)).items() if number(v) is not None
            )
    first = [metric for metric in dict.fromkeys((main, "loss")) if metric in seen]
    return [*first, *(metric for metric in seen if metric not in first)][:_MOST_METRICS]


def _round(record: Record) -> float:
    return float(record.get("round") or 0)


def _clock(record: Record) -> float:
    return number(record.get("clock")) or 0.0


def _own_time(rounds: Sequence[Record]) -> bool:
    """Whether virtual time tells something that the number of the round does not."""
    clocks = [_clock(record) for record in rounds]
    if len(rounds) < 3 or clocks[-1] <= 0:
        return False
    per_round = clocks[-1] / _round(rounds[-1]) if _round(rounds[-1]) else 1.0
    off = (abs(c - per_round * _round(r)) for c, r in zip(clocks, rounds, strict=True))
    return max(off) > 1e-6 * clocks[-1]


def _chart(rounds: Sequence[Record], metric: str, x_label: str, x: _X) -> Safe:
    series = []
    for source, name in _SOURCES.items():
        # A round without evaluation is no point; an evaluation without a number is a gap.
        points = [
            (x(r), number(found[metric]))
            for r in rounds
            if metric in (found := scores(r.get(source)))
        ]
        if points:
            series.append(Series(name, f"k-{source}", points))
    title = f"{metric_label(metric)} over {'rounds' if x_label == 'round' else x_label}"
    return figure(line_chart(title, series, x_label), title)


def _over_sites(rounds: Sequence[Record], metric: str) -> Safe | None:
    evaluated = [r for r in rounds if r.get("sites")]
    found = {
        str(site): [
            (_round(r), number((r["sites"].get(site) or {}).get(metric))) for r in evaluated
        ]
        for site in dict.fromkeys(site for r in evaluated for site in r["sites"])
    }
    known = {s: points for s, points in found.items() if any(y is not None for _, y in points)}
    if not known:
        return None
    title = f"{metric_label(metric)} at each site"
    if len(known) <= _MOST_SITE_LINES:
        lines = [Series(s, f"c{i % 10}", points) for i, (s, points) in enumerate(known.items())]
        key = legend([(line.kind, line.name) for line in lines])
        return figure(line_chart(title, lines, "round"), title, key)
    return _quantiles(known, metric)


def _quantiles(known: Mapping[str, Sequence[tuple[float, float | None]]], metric: str) -> Safe:
    edges, middle = [], []
    for column in zip(*known.values(), strict=True):
        values = sorted(y for _, y in column if y is not None)
        if values:
            x = column[0][0]
            edges.append((x, _quantile(values, 0.1), _quantile(values, 0.9)))
            middle.append((x, _quantile(values, 0.5)))
    line = Series("median site", "k-federated", middle)
    title = f"{metric_label(metric)} over {len(known)} sites"
    chart = line_chart(title, [line], "round", Band("k-federated", edges))
    return figure(chart, f"{title}: median, and the range that 8 of 10 sites are in")


def _quantile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    >>> duration(0.0123), duration(75.2), duration(7322)
    ('12 ms', '1 min 15 s', '2 h 2 min')
    """
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def timings_section(manifest: Mapping[str, Any], rounds: Sequence[Record]) -> Safe:
    """Totals, and seconds per round."""
    spent = [number(r.get("seconds")) or 0.0 for r in rounds]
    total = number(manifest.get("seconds"))
    facts = [
        ("started", manifest.get("started") or "-"),
        ("finished", manifest.get("finished") or "-"),
        ("in the rounds", duration(math.fsum(spent) if spent else total)),
    ]
    if spent:
        facts.append(("median round", duration(_quantile(sorted(spent), 0.5))))
        facts.append(("slowest round", _slowest(rounds, spent)))
        if _clock(rounds[-1]) > 0:
            facts.append(("virtual time", shown(_clock(rounds[-1]))))
    stale = max((number((r.get("staleness") or {}).get("max")) or 0 for r in rounds), default=0)
    if stale:
        facts.append(("largest staleness", f"{stale:.0f} versions"))
    items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    listed = tag("dl", *items, class_="facts")
    return join(listed, _per_round(rounds, spent) if len(spent) > 1 else "")


def _slowest(rounds: Sequence[Record], spent: Sequence[float]) -> str:
    slowest = max(range(len(spent)), key=spent.__getitem__)
    return f"{duration(spent[slowest])} (round {rounds[slowest].get('round', slowest + 1)})"


def _per_round(rounds: Sequence[Record], spent: Sequence[float]) -> Safe:
    size = math.ceil(len(spent) / _MOST_COLUMNS)
    columns = []
    for start in range(0, len(spent), size):
        chunk = spent[start : start + size]
        first, last = rounds[start].get("round"), rounds[start + len(chunk) - 1].get("round")
        name = f"round {first}" if first == last else f"rounds {first}-{last}"
        columns.append((name, [Part("seconds", "k-federated", math.fsum(chunk) / len(chunk))]))
    ends = (str(rounds[0].get("round", 1)), str(rounds[-1].get("round", len(rounds))))
    chart = stacked_columns("Seconds per round", columns, "round", ends=ends)
    return figure(chart, "Seconds per round, evaluation included.", wide=True)
