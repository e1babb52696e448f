"""The report: one HTML file that opens offline and tells what a run did, to people.

Nothing is loaded from anywhere and no script runs: a content security policy in the page forbids both,
so that even a hole in the escaping would stay without effect.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.core.errors import StorageError
from atoll.report.audit import audit_section
from atoll.report.cards import cards_section, data_cards, spread_section
from atoll.report.charts import Part, dot_rows, figure, legend, shown, stacked_columns
from atoll.report.compare import (
    WAYS,
    ComparisonRow,
    comparison_table,
    main_metric,
    metric_label,
    number,
    summary,
)
from atoll.report.curves import curves_section, duration, last_value, timings_section
from atoll.report.folder import RunFolder, plain, write_atomic
from atoll.report.markup import Safe, join, tag
from atoll.report.participation import (
    MANY,
    Participation,
    Record,
    participation,
    participation_section,
    sentence,
)
from atoll.report.style import STYLE

__all__ = ["render", "write_report"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NO_PRIVACY = "No masking, no differential privacy was on in this run."
_SIMULATED = (
    "It was a simulation: all rows were on one machine, so nothing had to be hidden from it."
)
_MOST_ENTRIES = 500
"""Longer lists and tables of a manifest are told by their length: thousands of columns made pages of 15 MB."""
_IN_WORDS = ("unit", "neighbouring")
"""Words of the account that its sentence has already."""


def write_report(folder: RunFolder | str | os.PathLike[str]) -> Path:
    """Render the run in ``folder`` to its ``report.html``; returns the file.

    Raises:
        StorageError: there is no run in it, it is damaged, or the report cannot be written; or it is a run of
            statistics whose page is gone.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    if run.results.is_file():  # statistics have a page of their own, written with their results
        if run.report.is_file():
            return run.report
        raise StorageError(
            f"the page of the statistics in {str(run.path)!r} is gone, and results.json has not all of it",
            remedy="atoll run JOB --resume, with this folder as --out, writes it again",
        )
    page = render(run.read_manifest(), run.read_rounds(), run.read_audit())
    return write_atomic(run.report, page.encode("utf-8", "replace"))


def render(
    manifest: Mapping[str, Any],
    rounds: Sequence[Record],
    audit: Mapping[str, Any] | None = None,
) -> str:
    """The whole page.

    Same input, same page: it holds no date or random name of its own.

    Args:
        manifest: a run's manifest; every key may be missing (a run that failed early has few).
        rounds: its round records in order, possibly none.
        audit: what attacks on it found; empty or None where there were none.
    """
    people = participation(manifest, rounds)
    name = str(manifest.get("name") or "Unnamed run")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · Atoll"),
        tag("style", Safe(STYLE)),
    )
    body = tag(
        "body",
        _header(name, manifest, people),
        tag("main", *_sections(manifest, rounds, people, audit or {})),
        tag("footer", f"Written by Atoll {manifest.get('atoll') or ''}".rstrip(), "."),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _sections(
    manifest: Mapping[str, Any],
    rounds: Sequence[Record],
    people: Participation,
    audit: Mapping[str, Any],
) -> list[Safe]:
    cards = data_cards(manifest)
    parts = [
        _tiles(manifest, rounds, people),
        _failure(manifest),
        _worth(manifest),
        _notes(manifest),
        _section("How the model learned", curves_section(manifest, rounds)),
        _section("Who took part", participation_section(people)),
        _section("How the data are spread over the clients", spread_section(cards)),
        _section("Data cards", cards_section(cards)) if cards else Safe(""),
        _section("Where the time went", timings_section(manifest, rounds)),
        _section(
            "Privacy",
            *(tag("p", line) for line in _privacy(manifest)),
            audit_section(audit) if audit else "",
        ),
        _section("How to get the same again", _manifest(manifest)),
    ]
    return [part for part in parts if part]


def _section(title: str, *content: object, kind: str | None = None) -> Safe:
    return tag("section", tag("h2", title), *content, class_=kind)


def _header(name: str, manifest: Mapping[str, Any], people: Participation) -> Safe:
    status = str(manifest.get("status") or "not finished")
    return tag(
        "header",
        tag(
            "div",
            _ring(),
            tag("p", "Atoll · report of a run", class_="brand"),
            tag("h1", name),
            tag("span", status, class_=f"status {_mood(status)}"),
            tag("p", sentence(manifest, people), class_="lead"),
        ),
    )


def _ring() -> Safe:
    """Separate islands, one lagoon."""
    arc = tag(
        "circle",
        cx="60",
        cy="60",
        r="44",
        stroke_width="13",
        stroke_dasharray="38 18 62 22 30 16 72 18",
    )
    lagoon = tag("circle", cx="60", cy="60", r="22", stroke_width="2")
    return tag("svg", arc, lagoon, viewBox="0 0 120 120", class_="atoll", aria_hidden="true")


def _mood(status: str) -> str:
    """How a status looks; the words themselves are always shown."""
    if status == "completed":
        return "good"
    if status.startswith("failed"):
        return "bad"
    return "info" if status.startswith("stopped early") else "fair"


def _tiles(manifest: Mapping[str, Any], rounds: Sequence[Record], people: Participation) -> Safe:
    rows = sum(number(card.get("rows")) or 0 for card in data_cards(manifest))
    invited = " that took part" if len(people.clients) < people.population else ""
    done = len(rounds) if rounds else int(number(manifest.get("rounds")) or 0)
    spent = number(manifest.get("seconds"))
    tiles = [
        (f"{people.population:,}", "clients"),
        (f"{rows:,.0f}" if rows else "-", f"rows at the clients{invited}"),
        (f"{done:,}", "rounds"),
        *_result(manifest, rounds),
        (duration(spent), "in the rounds"),
    ]
    parameters = number(manifest.get("parameters"))
    if parameters is not None:
        tiles.append((f"{parameters:,.0f}", "parameters"))
    shown_tiles = [
        tag("div", tag("b", big), tag("span", small), class_="tile") for big, small in tiles
    ]
    return tag("div", *shown_tiles, class_="tiles")


def _result(manifest: Mapping[str, Any], rounds: Sequence[Record]) -> list[tuple[str, str]]:
    best, metric = manifest.get("best") or {}, main_metric(manifest)
    value = number(best.get("value"))
    if value is not None:
        named = str(best.get("metric") or metric).rpartition(".")[2]
        where = f"best {metric_label(named)}, round {best.get('round', '-')}"
        return [(shown(value), where)]
    for source, words in (("central", "on the central test set"), ("federated", "at the sites")):
        last = last_value(rounds, source, metric)
        if last is not None:
            return [(shown(last), f"{metric_label(metric)} {words}, last round")]
    return []


def _failure(manifest: Mapping[str, Any]) -> Safe:
    status = str(manifest.get("status") or "")
    if not status.startswith("failed"):
        return Safe("")
    words = "The run ended with an error. What was committed before is shown below."
    return _section("This run failed", tag("p", status), tag("p", words), kind="failure")


def _notes(manifest: Mapping[str, Any]) -> Safe:
    notes = [tag("li", str(note)) for note in manifest.get("notes") or []]
    return _section("To keep in mind", tag("ul", *notes), kind="notes") if notes else Safe("")


def _worth(manifest: Mapping[str, Any]) -> Safe:
    rows = comparison_table(manifest)
    if not rows:
        words = "Not compared in this run: nothing was trained alone or pooled beside it."
        return _section("Was it worth joining?", tag("p", words, class_="empty"))
    metric = main_metric(manifest)
    ways = [way for way in WAYS if any(row.values[metric][way] is not None for row in rows)]
    chosen, note = _shortlist(rows)
    key = legend([(f"k-{way}", _WAYS[way]) for way in ways])
    picture = _gains(rows, metric) if len(rows) > MANY else _dots(chosen, metric, key)
    small = (
        "Difference: federated against alone, positive is better. Differences below 0.01 (for losses: "
        "below 1 %) count as no clear difference. At a site with few test rows even larger ones can be chance."
    )
    return _section(
        "Was it worth joining?",
        tag("p", summary(rows, metric), class_="answer"),
        picture,
        _worth_table(chosen, metric, note),
        _other_metrics(chosen, metric),
        tag("p", small, class_="note"),
    )


_WAYS = {
    "alone": "alone: on the site's own rows",
    "federated": "federated: together, no row moved",
    "pooled": "pooled: all rows in one place (simulation only)",
}


def _shortlist(rows: Sequence[ComparisonRow]) -> tuple[list[ComparisonRow], str]:
    """All rows, or of many sites those that lost and gained most; the mean stays last."""
    *sites, mean = rows
    if len(sites) <= MANY:
        return list(rows), ""
    ordered = sorted(sites, key=lambda row: (row.gain is not None, row.gain or 0.0))
    return [*ordered[:15], *ordered[-15:], mean], (
        f"The 15 sites that gained least and the 15 that gained most, of {len(sites):,}."
    )


def _dots(rows: Sequence[ComparisonRow], metric: str, key: Safe) -> Safe:
    drawn = [
        (
            row.site,
            [
                Part(way, f"k-{way}", value)
                for way in ("pooled", "alone", "federated")
                if (value := row.values[metric][way]) is not None
            ],
        )
        for row in rows
    ]
    title = f"{metric_label(metric)} per site, by way of training"
    return figure(dot_rows(title, drawn, metric_label(metric)), f"{title}.", key, wide=True)


def _gains(rows: Sequence[ComparisonRow], metric: str) -> Safe:
    gains = [row.gain for row in rows[:-1] if row.gain is not None]
    if not gains:
        return Safe("")
    low, high = min(gains), max(gains)
    width = (high - low) / 30 or 1.0
    counts = Counter(min(math.floor((gain - low) / width), 29) for gain in gains)
    columns = [
        (
            f"{low + k * width:+.3f} to {low + (k + 1) * width:+.3f}",
            [Part("sites", "k-federated", counts[k])],
        )
        for k in range(max(counts) + 1)
    ]
    ends = (f"{low:+.3f}", f"{high:+.3f}")
    chart = stacked_columns("Sites by gain", columns, f"gain in {metric_label(metric)}", ends=ends)
    return figure(chart, "How many sites gained how much by joining.", wide=True)


def _worth_table(rows: Sequence[ComparisonRow], metric: str, note: str) -> Safe:
    heads = [
        tag("th", "site", scope="col"),
        *(tag("th", way, scope="col", class_=f"way k-{way}") for way in WAYS),
        tag("th", "difference", scope="col"),
        tag("th", "worth joining?", scope="col", class_="words"),
    ]
    body = [
        tag(
            "tr",
            tag("th", row.site, scope="row"),
            *(tag("td", _three(row.values[metric][way])) for way in WAYS),
            tag("td", "-" if row.gain is None else f"{row.gain:+.3f}", class_=row.outcome),
            tag("td", f"{row.verdict} {row.caution}".rstrip(), class_="words"),
            class_="total" if row is rows[-1] else None,
        )
        for row in rows
    ]
    caption = tag(
        "caption", f"{metric_label(metric)} at each site's held-out rows. {note}".rstrip()
    )
    table = tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag("div", table, class_="scroll")


def _three(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else shown(value, 6)


def _other_metrics(rows: Sequence[ComparisonRow], metric: str) -> Safe:
    others = [m for m in rows[0].values if m != metric]
    if not others:
        return Safe("")
    heads = [tag("th", "site", scope="col")]
    heads += [tag("th", f"{metric_label(m)} {way}", scope="col") for m in others for way in WAYS]
    body = [
        tag(
            "tr",
            tag("th", row.site, scope="row"),
            *(tag("td", _three(row.values[m][way])) for m in others for way in WAYS),
            class_="total" if row is rows[-1] else None,
        )
        for row in rows
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body))
    words = tag("summary", f"The same by {', '.join(map(metric_label, others))}")
    return tag("details", words, tag("div", table, class_="scroll"))


def _privacy(manifest: Mapping[str, Any]) -> list[str]:
    said, how = manifest.get("privacy"), str(manifest.get("aggregation") or "")
    added = [f"aggregation: {how}"] if how else []
    if not said:
        local = manifest.get("executor") not in (None, "remote")
        return [_NO_PRIVACY, *added, *([_SIMULATED] if local else [])]
    if isinstance(
        said, Mapping
    ):  # sentences; the figures in them are in the whole manifest, by themselves
        words = {k: v for k, v in said.items() if isinstance(v, str) and k not in _IN_WORDS}
        return [*added, *(f"{key}: {value}" for key, value in words.items())]
    return [said] if isinstance(said, str) else [str(line) for line in said]


def _manifest(manifest: Mapping[str, Any]) -> Safe:
    versions = manifest.get("versions") or {}
    facts = [
        ("job hash", manifest.get("job_hash")),
        ("model hash", manifest.get("model_hash")),
        ("seed", manifest.get("seed")),
        ("executor", manifest.get("executor")),
        ("local training", manifest.get("training")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    items = [
        tag("div", tag("dt", name), tag("dd", tag("code", value)))
        for name, value in facts
        if value not in (None, "")
    ]
    content = json.dumps(plain(_shortened(manifest)), indent=2, ensure_ascii=False)
    return join(
        tag("p", "The same job, seed, data and versions give the same model, bit for bit."),
        tag("dl", *items, class_="facts"),
        tag("details", tag("summary", "The whole manifest"), tag("pre", content)),
    )


def _shortened(manifest: Mapping[str, Any]) -> dict[str, Any]:
    short = dict(manifest)
    for key in ("cards", "data"):
        if len(short.get(key) or ()) > MANY:
            short[key] = f"{len(short[key])} entries, see manifest.json"
    sites = (short.get("comparison") or {}).get("sites") or {}
    if len(sites) > MANY:
        short["comparison"] = f"{len(sites)} sites, see manifest.json"
    return {key: _brief(value) for key, value in short.items()}


def _brief(value: Any) -> Any:
    """A part of the manifest for a page that a browser opens: a long list is told by its length."""
    if not isinstance(value, Mapping | list | tuple):
        return value
    if len(value) > _MOST_ENTRIES:
        return f"{len(value)} entries, see manifest.json"
    if isinstance(value, Mapping):
        return {key: _brief(inner) for key, inner in value.items()}
    return [_brief(inner) for inner in value]
