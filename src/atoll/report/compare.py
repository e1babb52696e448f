"""Was it worth joining? Each site trained alone, federated, and pooled (in simulation only).

The words of a verdict are chosen here, in one place, so that the report, the terminal and the tests
cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.core.metrics import higher_is_better
from atoll.data.telling import SUPPRESSED

__all__ = [
    "WAYS",
    "ComparisonRow",
    "comparison_lines",
    "comparison_table",
    "main_metric",
    "metric_label",
    "number",
    "scores",
    "summary",
]

WAYS = ("alone", "federated", "pooled")
"""The three ways to train, in the order in which they are shown."""

MEAN = "mean"
"""Name of the last row of the table."""

_LABELS = {"auc": "AUC", "rmse": "RMSE", "mse": "MSE", "mae": "MAE", "r2": "R²", "f1": "F1"}
_CLEAR = 0.01
"""Smallest difference that counts as one: absolute for scores, relative for losses."""

_FEW = 20
"""Rows of a site's rarest class (of the site, without classes) below which a verdict needs a caution.

With 20 rows of one class, however many of the other, an AUC of 0.8 has a standard error of 0.04 to 0.07
(Hanley and McNeil 1982, eq. 2): larger than most differences in the table.
"""


@dataclass(frozen=True)
class ComparisonRow:
    """One site of the comparison, or their mean.

    Args:
        site: its name, or ``mean``.
        values: metric -> way (``alone``, ``federated``, ``pooled``) -> value; None where undefined.
        gain: federated better than alone by this much in the main metric (positive is better, also
            for a loss); None where undefined.
        verdict: the same in plain words.
        outcome: ``better``, ``same``, ``worse`` or ``unknown``.
        caution: why the verdict rests on little; empty when nothing is known against it.
    """

    site: str
    values: Mapping[str, Mapping[str, float | None]]
    gain: float | None
    verdict: str
    outcome: str
    caution: str = ""


def number(value: Any) -> float | None:
    """``value`` as a finite number; None for null, NaN, infinity and anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def scores(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metrics worth showing: by their plain names, without the same thing twice.

    Training metrics are called ``train_loss`` and the like, and the number of a confusion matrix is
    the accuracy, which has its own name.

    >>> scores({"train_loss": 0.5, "confusion": 0.9, "accuracy": 0.9})
    {'loss': 0.5, 'accuracy': 0.9}
    """
    found = (metrics or {}).items()
    return {str(k).removeprefix("train_"): value for k, value in found if k != "confusion"}


def metric_label(metric: str) -> str:
    """The name of a metric as people write it.

    >>> metric_label("auc"), metric_label("log_loss")
    ('AUC', 'Log loss')
    """
    known = _LABELS.get(metric.lower())
    return known or metric[:1].upper() + metric[1:].replace("_", " ")


def comparison_table(manifest: Mapping[str, Any]) -> list[ComparisonRow]:
    """One row per site and a last row with their mean; empty when nothing was compared.

    A mean is over the sites where all ways that were run have a value, so that its columns speak of
    the same sites.

    >>> rows = comparison_table({"comparison": {"metric": "auc", "sites": {
    ...     "a": {"alone": {"auc": 0.70}, "federated": {"auc": 0.80}, "pooled": {"auc": 0.805}}}}})
    >>> rows[0].verdict
    'Yes: better by 0.100; pooling the rows would not be clearly better.'
    """
    comparison = manifest.get("comparison") or {}
    sites: Mapping[str, Any] = comparison.get("sites") or {}
    if not sites:
        return []
    main = main_metric(manifest)
    metrics = _metrics(main, sites)
    values = {site: {m: _ways(by_way, m) for m in metrics} for site, by_way in sites.items()}
    few = _few(manifest)
    rows = [
        replace(_row(str(site), main, by_metric), caution=few.get(str(site), ""))
        for site, by_metric in values.items()
    ]
    means = {m: _mean([by_metric[m] for by_metric in values.values()]) for m in metrics}
    return [*rows, _row(MEAN, main, means)]


def _few(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The sites whose numbers rest on few held-out rows, as far as their data cards tell."""
    told = {}
    trained = manifest.get("data") or {}
    for card in manifest.get("cards") or ():
        labels = card.get("labels") or {}
        hidden = sorted(str(label) for label, n in labels.items() if n == SUPPRESSED)
        if hidden or card.get("rows") == SUPPRESSED:
            of_class = f" of class {' or '.join(map(repr, hidden))}" if hidden else ""
            told[str(card.get("site"))] = (
                f"The site holds back how many rows{of_class} it has, "
                "for some of its counts are small, so this can be chance."
            )
            continue
        counts = {str(label): number(n) or 0.0 for label, n in labels.items()}
        rarest = min(counts, key=counts.__getitem__, default="")
        fewest = counts[rarest] if counts else number(card.get("rows"))
        if fewest is None:
            continue
        # The card is of all rows, and the verdict rests on those that were held out.
        whole = number(card.get("rows")) or 0.0
        kept = whole - (number((trained.get(str(card.get("site"))) or {}).get("rows")) or whole)
        tested, about = (fewest * kept / whole, "about ") if kept > 0 else (fewest, "")
        if tested < _FEW:
            of_class = f" of class {rarest!r}" if counts else ""
            rows = f"{about}{tested:.0f} {'test ' if about else ''}rows{of_class}"
            told[str(card.get("site"))] = f"The site has only {rows}, so this can be chance."
    return told


def main_metric(manifest: Mapping[str, Any]) -> str:
    """The metric of the comparison, else the best model's, else ``loss``."""
    for part in ("comparison", "best"):
        named = (manifest.get(part) or {}).get("metric")
        if named:
            return str(named).rpartition(".")[2]
    return "loss"


def summary(rows: Sequence[ComparisonRow], metric: str) -> str:
    """One sentence over all sites.

    Args:
        rows: what :func:`comparison_table` returned, with the mean last.
        metric: the main metric.
    """
    sites = rows[:-1]
    count = {kind: sum(row.outcome == kind for row in sites) for kind in _OUTCOMES}
    whole = f" of {len(sites)} {'site' if len(sites) == 1 else 'sites'}"
    parts: list[str] = []
    for kind, (one, several) in _OUTCOMES.items():
        if count[kind]:
            words = one if count[kind] == 1 else several
            parts.append(f"{count[kind]}{'' if parts else whole} {words}")
    line = ", ".join(parts) + "."
    mean = rows[-1].values[metric]
    shown = [f"{way} {mean[way]:.3f}" for way in WAYS if mean[way] is not None]
    return f"{line} Mean {metric_label(metric)}: {', '.join(shown)}." if shown else line


_OUTCOMES = {
    "better": ("does better together than alone", "do better together than alone"),
    "worse": ("does worse together than alone", "do worse together than alone"),
    "same": ("shows no clear difference", "show no clear difference"),
    "unknown": ("cannot be compared", "cannot be compared"),
}


def comparison_lines(manifest: Mapping[str, Any], limit: int = 2) -> list[str]:
    """The table as aligned plain text, for a terminal; at most ``limit`` metrics, the main one first."""
    rows = comparison_table(manifest)
    if not rows:
        return []
    metrics = list(rows[0].values)[:limit]
    head = ["site", *(f"{m} {way}" for m in metrics for way in WAYS), "joining"]
    body = [
        [row.site, *(_digits(row.values[m][way]) for m in metrics for way in WAYS), _remark(row)]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    table = [head, rule, *body[:-1], rule, body[-1]]
    return [_line(cells, widths) for cells in table]


def _remark(row: ComparisonRow) -> str:
    return f"{row.outcome} (few rows)" if row.caution else row.outcome


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, last = cells
    aligned = [n.rjust(w) for n, w in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *aligned, last])


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _metrics(main: str, sites: Mapping[str, Any]) -> list[str]:
    seen = dict.fromkeys([main])
    for by_way in sites.values():
        for way in WAYS:
            seen |= dict.fromkeys(scores((by_way or {}).get(way)))
    usual = [m for m in ("auc", "accuracy") if m in seen and m != main]
    return [main, *usual, *(m for m in seen if m not in (main, *usual))]


def _ways(by_way: Mapping[str, Any] | None, metric: str) -> dict[str, float | None]:
    return {way: number(((by_way or {}).get(way) or {}).get(metric)) for way in WAYS}


def _mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    run = [way for way in WAYS if any(row[way] is not None for row in rows)]
    whole = [row for row in rows if all(row[way] is not None for way in run)]
    return {way: _average(row[way] for row in whole) if way in run else None for way in WAYS}


def _average(column: Iterable[float | None]) -> float | None:
    found = [value for value in column if value is not None]
    return math.fsum(found) / len(found) if found else None


def _row(site: str, main: str, values: Mapping[str, Mapping[str, float | None]]) -> ComparisonRow:
    alone, federated, pooled = (values[main][way] for way in WAYS)
    sign = 1.0 if higher_is_better(main) else -1.0
    if alone is None or federated is None:
        text = f"Cannot be said: {metric_label(main)} is undefined {_undefined(alone, federated)}."
        return ComparisonRow(site, values, None, text, "unknown")
    gain = sign * (federated - alone)
    outcome = _outcome(gain, alone, sign)
    text = {
        "better": f"Yes: better by {gain:.3f}",
        "same": f"No clear difference ({gain:+.3f})",
        "worse": f"No: training alone was better by {-gain:.3f}",
    }[outcome]
    return ComparisonRow(
        site, values, gain, text + _beside_pooled(federated, pooled, sign), outcome
    )


def _undefined(alone: float | None, federated: float | None) -> str:
    if alone is None and federated is None:
        return "at this site"
    return "when trained alone" if alone is None else "when federated"


def _outcome(gain: float, reference: float, sign: float) -> str:
    clear = _CLEAR if sign > 0 else _CLEAR * abs(reference)
    # Half a unit of the third digit shown, so that what reads as 0.010 also counts as 0.010.
    if abs(gain) < clear - (5e-4 if sign > 0 else 0.0) or gain == 0:
        return "same"
    return "better" if gain > 0 else "worse"


def _beside_pooled(federated: float, pooled: float | None, sign: float) -> str:
    if pooled is None:
        return "."
    short = sign * (pooled - federated)
    outcome = _outcome(short, pooled, sign)
    if outcome == "same":
        return "; pooling the rows would not be clearly better."
    if short < 0:
        return "; pooling the rows would be worse."
    return f"; pooling the rows would be better by {short:.3f}."
