"""The data behind a run: how size and labels are spread over clients, and what is missing where.

What a site's rule on small counts holds back stands in a card as ``suppressed``. It is shown as that word and
drawn as what is left of the site's rows, never as zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.data.telling import SUPPRESSED
from atoll.report.charts import Part, dot_rows, figure, legend, shown, stacked_columns, stacked_rows
from atoll.report.compare import number
from atoll.report.markup import Safe, join, tag
from atoll.report.participation import MANY

__all__ = ["cards_section", "data_cards", "spread_section"]

Card = Mapping[str, Any]
"""A site's data card: site, rows, missing, and labels (classes) or target (numbers)."""

_MOST_CLASSES = 9
_MOST_COLUMNS = 30
_MOST_OPEN = 20
_MOST_SITES = 12
OTHER = "other"
_WORDS = "labels or target"


def data_cards(manifest: Mapping[str, Any]) -> list[Card]:
    """The cards of a manifest; where it has none, what its ``data`` entry knows of each site."""
    cards = manifest.get("cards")
    if cards:
        return list(cards)
    data = manifest.get("data") or {}
    known = ({"site": site, **(entry or {})} for site, entry in data.items())
    return [c for c in known if c.get("rows", 0) is not None]  # null: a client nobody has made


def spread_section(cards: Sequence[Card]) -> Safe:
    """Size and labels over clients; a sample and a histogram when there are many."""
    if not cards:
        return tag("p", "No data card was recorded.", class_="empty")
    chosen = _sample(cards)
    classes = _classes(cards)
    marks = [(f"c{i}", name) for i, name in enumerate(classes)]
    if any(SUPPRESSED in (c.get("labels") or {}).values() for c in chosen):
        marks.append(("m-unavailable", SUPPRESSED))
    key = legend(marks) if classes else None
    note = (
        "" if chosen is cards else f" {len(chosen)} of {len(cards):,} clients, from large to small."
    )
    sizes = stacked_rows(
        "Rows per client", [(_site(c), _rows_by_class(c, classes)) for c in chosen]
    )
    parts: list[object] = []
    if chosen is not cards:
        parts.append(_histogram(cards))
    parts.append(
        figure(sizes, f"Rows per client{' and class' if classes else ''}.{note}", key, wide=True)
    )
    if classes:
        labelled = [(_site(c), _rows_by_class(c, classes)) for c in chosen if c.get("labels")]
        shares = stacked_rows("Share of each class per client", labelled, share=True)
        parts.append(figure(shares, f"Share of each class per client.{note}", key, wide=True))
    targets = [(_site(c), _target(c)) for c in chosen]
    if any(dots for _, dots in targets):
        chart = dot_rows("Target per client", targets, "target")
        words = f"Target per client: mean, and one standard deviation to each side.{note}"
        parts.append(figure(chart, words, wide=True))
    return join(*parts)


def cards_section(cards: Sequence[Card]) -> Safe:
    """A table with one line per card, and the share of missing values per column and site."""
    if not cards:
        return Safe("")
    chosen = _sample(cards)
    heads = ("site", "rows", _WORDS, "values missing", "fingerprint")
    rows = [
        tag(
            "tr",
            tag("th", _site(card), scope="row"),
            tag("td", f"{_rows(card):,.0f}"),
            tag("td", _labels(card), class_="words"),
            tag("td", _empty(card)),
            tag("td", tag("code", str(card.get("fingerprint") or "-")[:12])),
        )
        for card in chosen
    ]
    table = _table(heads, rows)
    note = ""
    if chosen is not cards:
        note = tag("p", f"{len(chosen)} of {len(cards):,} cards; all of them are in manifest.json.")
    if len(chosen) > _MOST_OPEN:
        table = tag("details", tag("summary", "The cards one by one"), table)
    return join(note, table, _missingness(chosen), _columns(chosen))


def _table(heads: Sequence[str], rows: Sequence[Safe], caption: str = "") -> Safe:
    titles = (tag("th", h, scope="col", class_="words" if h == _WORDS else None) for h in heads)
    top = tag("thead", tag("tr", *titles))
    said = tag("caption", caption) if caption else ""
    return tag("div", tag("table", said, top, tag("tbody", *rows)), class_="scroll")


def _site(card: Card) -> str:
    return str(card.get("site", "?"))


def _rows(card: Card) -> float:
    return number(card.get("rows")) or 0.0


def _missing(card: Card) -> dict[str, float]:
    found = card.get("missing")
    if not isinstance(found, Mapping):
        return {}
    return {str(column): number(count) or 0.0 for column, count in found.items()}


def _empty(card: Card) -> str:
    """How many values are missing, as far as that is told."""
    told = f"{sum(_missing(card).values()):,.0f}"
    columns = card.get("columns")
    every = columns.values() if isinstance(columns, Mapping) else ()
    hidden = sum(isinstance(c, Mapping) and c.get("missing") == SUPPRESSED for c in every)
    return f"{told}, and {hidden} {SUPPRESSED}" if hidden else told


def _sample(cards: Sequence[Card]) -> Sequence[Card]:
    """All cards, or MANY of them spread evenly over the order by size."""
    if len(cards) <= MANY:
        return cards
    ordered = sorted(cards, key=_rows, reverse=True)
    return [ordered[round(i * (len(ordered) - 1) / (MANY - 1))] for i in range(MANY)]


def _classes(cards: Sequence[Card]) -> list[str]:
    """The classes by name; the rarest together as ``other`` when there are too many to tell apart."""
    counts: Counter[str] = Counter()
    for card in cards:
        for label, n in (card.get("labels") or {}).items():
            counts[str(label)] += int(number(n) or 0)
    if len(counts) <= _MOST_CLASSES + 1:
        return sorted(counts, key=_natural)
    kept = [label for label, _ in counts.most_common(_MOST_CLASSES)]
    return [*sorted(kept, key=_natural), OTHER]


def _natural(label: str) -> tuple[int, float, str]:
    try:
        value = float(label)
    except ValueError:
        return (1, 0.0, label)
    return (0, value, label) if math.isfinite(value) else (1, 0.0, label)


def _rows_by_class(card: Card, classes: Sequence[str]) -> list[Part]:
    told = card.get("labels") or {}
    labels = {str(k): number(n) or 0.0 for k, n in told.items()}
    left = _rows(card) - sum(labels.values()) if SUPPRESSED in told.values() else 0.0
    if not labels or not classes:
        return [Part("rows", "c0", _rows(card))]
    parts = [Part(name, f"c{i}", labels.pop(name, 0.0)) for i, name in enumerate(classes)]
    rest = sum(labels.values())
    if rest:
        parts[-1] = Part(OTHER, f"c{len(classes) - 1}", parts[-1].value + rest)
    parts.append(Part(SUPPRESSED, "m-unavailable", left))
    return [part for part in parts if part.value > 0]


def _target(card: Card) -> list[Part]:
    target = card.get("target") or {}
    mean, sd = number(target.get("mean")), number(target.get("sd"))
    if mean is None:
        return []
    dots = [Part("mean", "c0", mean)]
    if sd:
        dots += [
            Part("one sd below the mean", "edge", mean - sd),
            Part("one sd above the mean", "edge", mean + sd),
        ]
    return dots


def _labels(card: Card) -> str:
    labels = card.get("labels") or {}
    if labels:
        ordered = sorted(labels.items(), key=lambda item: _natural(str(item[0])))
        told = ", ".join(f"{name}: {_count(n)}" for name, n in ordered[:_MOST_CLASSES])
        rest = len(ordered) - _MOST_CLASSES
        if len(ordered) == 1:
            return f"{told} (a single class)"
        return f"{told}, {rest} more" if rest > 0 else told
    target = card.get("target") or {}
    if number(target.get("mean")) is None:
        return SUPPRESSED if target.get("mean") == SUPPRESSED else "-"
    return f"mean {shown(number(target['mean']))}, sd {shown(number(target.get('sd')))}"


def _count(n: Any) -> str:
    return SUPPRESSED if n == SUPPRESSED else shown(number(n), 6)


def _histogram(cards: Sequence[Card]) -> Safe:
    sizes = [_rows(card) for card in cards]
    low, high = min(sizes), max(sizes)
    width = max(1, math.ceil((high - low + 1) / 30))
    counts = Counter(int((size - low) // width) for size in sizes)
    columns = [
        (
            f"{low + k * width:,.0f} to {low + (k + 1) * width - 1:,.0f} rows",
            [Part("clients", "c0", counts[k])],
        )
        for k in range(max(counts) + 1)
    ]
    ends = (f"{low:,.0f}", f"{high:,.0f}")
    chart = stacked_columns("Clients by number of rows", columns, "rows", ends=ends)
    return figure(chart, f"How many of the {len(cards):,} clients have how many rows.", wide=True)


def _columns(cards: Sequence[Card]) -> Safe:
    """What each column looks like at each site; a shift between sites shows here first."""
    known = [card for card in cards if isinstance(card.get("columns"), Mapping)]
    names = list(dict.fromkeys(name for card in known for name in card["columns"]))
    if not names or len(known) > _MOST_SITES:
        return Safe("")
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(tag("td", _column(card["columns"].get(name)), class_="words") for card in known),
        )
        for name in names[: 2 * _MOST_COLUMNS]
    ]
    words = "Mean and standard deviation of numbers, the most frequent values of categories."
    if len(names) > len(rows):
        words += f" The first {len(rows)} of {len(names):,} columns; all are in manifest.json."
    table = _table(("column", *map(_site, known)), rows, words)
    return tag("details", tag("summary", "The columns at each site"), table)


def _column(column: Any) -> str:
    if not isinstance(column, Mapping):
        return "-"
    counts = column.get("counts")
    if isinstance(counts, Mapping) and counts:
        frequent = sorted(counts.items(), key=lambda item: -(number(item[1]) or 0))
        told = ", ".join(f"{name} {_count(n)}" for name, n in frequent[:3])
        return told + (", ..." if len(frequent) > 3 else "")
    if number(column.get("mean")) is None:
        return SUPPRESSED if column.get("mean") == SUPPRESSED else "-"
    unit = str(column.get("unit") or "")
    spread = f"{shown(number(column['mean']), 3)} (sd {shown(number(column.get('sd')), 3)})"
    return f"{spread} {unit}".rstrip()


def _missingness(cards: Sequence[Card]) -> Safe:
    worst: dict[str, float] = {}  # of columns with missing values; 0 where nobody tells how many
    for card in cards:
        hidden = [c for c, n in (card.get("missing") or {}).items() if n == SUPPRESSED]
        for column, count in _missing(card).items():
            if count or column in hidden:
                worst[column] = max(worst.get(column, 0.0), count / max(_rows(card), 1))
    holed = sorted(worst, key=worst.__getitem__, reverse=True)
    columns = holed[:_MOST_COLUMNS]
    if not columns:
        known = any(isinstance(card.get("missing"), Mapping) for card in cards)
        return tag("p", "No value is missing at any site.") if known else Safe("")
    rows = [
        tag(
            "tr",
            tag("th", _site(card), scope="row"),
            *(_share(card, column) for column in columns),
        )
        for card in cards
    ]
    words = "Share of values missing at each site, worst columns first."
    if len(holed) > len(columns):
        words += f" The first {len(columns)} of {len(holed):,}; all are in manifest.json."
    return _table(("site", *columns), rows, words)


def _share(card: Card, column: str) -> Safe:
    found = card.get("missing")
    if isinstance(found, Mapping) and found.get(column) == SUPPRESSED:
        return tag("td", SUPPRESSED)
    count = _missing(card).get(column)
    if count is None:
        known = (card.get("columns") or {}).get(column) or {}
        count = number(known.get("missing"))
    if count is None:
        return tag("td", "-")
    share = min(count / max(_rows(card), 1), 1.0)
    told = f"{100 * share:.0f} %" if share in (0, 1) or share >= 0.01 else "<1 %"
    # The tint only underlines the number, so colour alone never carries the meaning.
    return tag("td", told, class_="tint", style=f"--t:{100 * share * 0.6:.0f}%" if share else None)
