"""Metrics as plain data: a closed table of kinds, exact both ways.

Numbers that must stay exact are text: real numbers as hexadecimal floats, sums as hexadecimal
fractions (``-1f/8``; a whole number that is one has no denominator). Every sum of floating-point
numbers has a power of two below the line; any other denominator is refused, because sums over many
sites of fractions chosen against us could be made as long as one likes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from atoll.core.errors import WireError
from atoll.core.metrics import (
    BinnedAUC,
    Confusion,
    Count,
    Mean,
    Metric,
    Metrics,
    RankedScores,
    Regression,
)

__all__ = ["metrics_from_plain", "metrics_to_plain"]

_MOST_METRICS = 256
_MOST_NAME = 200
_MOST_DIGITS = 4096
_MOST_CLASSES = 512
_MOST_BINS = 65_536
_MOST_SCORES = 1_000_000
_LARGEST = 2**63 - 1

_FRACTION = re.compile(r"(-?[0-9a-f]+)(?:/([0-9a-f]+))?")


class _Wrong(ValueError):
    """A part of a metric is not what it should be; told with the metric's name."""


def _from_fraction(value: Fraction | int) -> str:
    low, high = value.denominator, f"{value.numerator:x}"
    text = high if isinstance(value, int) else f"{high}/{low:x}"
    _to_fraction(text)
    return text


def _to_fraction(raw: object) -> Fraction | int:
    if not isinstance(raw, str) or len(raw) > _MOST_DIGITS:
        raise _Wrong(f"{raw!r:.60} is not a sum, or has more than {_MOST_DIGITS} digits")
    if (match := _FRACTION.fullmatch(raw)) is None:
        raise _Wrong(f"{raw!r:.60} is not a sum")
    high, low = int(match[1], 16), int(match[2] or "1", 16)
    if low.bit_count() != 1:
        raise _Wrong(f"{raw!r:.60} is not a sum of floating-point numbers")
    return high if match[2] is None else Fraction(high, low)


def _to_exact(raw: object) -> Fraction:
    return Fraction(_to_fraction(raw))


def _to_int(raw: object, least: int = 0) -> int:
    if type(raw) is not int or not least <= raw <= _LARGEST:
        raise _Wrong(f"{raw!r:.60} is not a whole number in range")
    return raw


def _to_bool(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise _Wrong(f"{raw!r:.60} is neither true nor false")
    return raw


def _to_list(raw: object, most: int, least: int = 0) -> list[Any]:
    if not isinstance(raw, list) or not least <= len(raw) <= most:
        raise _Wrong(f"not a list of {least} to {most}")
    return raw


def _to_scores(raw: object) -> tuple[float, ...]:
    found = []
    for text in _to_list(raw, _MOST_SCORES):
        if not isinstance(text, str) or len(text) > 32:
            raise _Wrong(f"{text!r:.60} is not a score")
        try:
            found.append(float.fromhex(text))
        except (ValueError, OverflowError) as error:
            raise _Wrong(f"{text!r:.60} is not a score") from error
    return tuple(found)


def _mean(m: Mean) -> list[Any]:
    return [_from_fraction(m.total), _from_fraction(m.weight), m.finite]


def _as_mean(raw: list[Any]) -> Mean:
    total, weight, finite = raw
    return Mean(_to_exact(total), _to_fraction(weight), _to_bool(finite))


def _as_count(raw: list[Any]) -> Count:
    (count,) = raw
    return Count(_to_int(count, -_LARGEST))


def _as_confusion(raw: list[Any]) -> Confusion:
    rows = _to_list(raw, _MOST_CLASSES, 1)
    n = len(rows)
    return Confusion(tuple(tuple(map(_to_int, _to_list(row, n, n))) for row in rows))


def _regression(m: Regression) -> list[Any]:
    return [m.n, *map(_from_fraction, (m.y, m.yy, m.rr)), m.finite]


def _as_regression(raw: list[Any]) -> Regression:
    n, y, yy, rr, finite = raw
    return Regression(_to_int(n), _to_exact(y), _to_exact(yy), _to_exact(rr), _to_bool(finite))


def _ranked(m: RankedScores) -> list[Any]:
    return [[float(x).hex() for x in m.positives], [float(x).hex() for x in m.negatives]]


def _as_ranked(raw: list[Any]) -> RankedScores:
    positives, negatives = raw
    return RankedScores(_to_scores(positives), _to_scores(negatives))


def _as_binned(raw: list[Any]) -> BinnedAUC:
    negatives, positives, undefined = raw
    rows = [[_to_int(n) for n in _to_list(row, _MOST_BINS, 1)] for row in (negatives, positives)]
    if len(rows[0]) != len(rows[1]):
        raise _Wrong("two histograms of different lengths")
    return BinnedAUC(np.array(rows, np.int64), _to_int(undefined))


_Out = Callable[[Any], list[Any]]
_In = Callable[[list[Any]], Metric]

_KINDS: dict[str, tuple[type, _Out, _In]] = {
    "mean": (Mean, _mean, _as_mean),
    "count": (Count, lambda m: [int(m.count)], _as_count),
    "confusion": (Confusion, lambda m: [[int(n) for n in row] for row in m.table], _as_confusion),
    "regression": (Regression, _regression, _as_regression),
    "ranked": (RankedScores, _ranked, _as_ranked),
    "binned": (BinnedAUC, lambda m: [*m.counts.tolist(), int(m.undefined)], _as_binned),
}
_NAMES = {kind: name for name, (kind, _, _) in _KINDS.items()}


def metrics_to_plain(metrics: Metrics) -> dict[str, Any]:
    """JSON-able form: ``{name: {kind: parts}}``.

    Raises:
        WireError: a metric of a kind that is not in the table, or beyond the limits of a reader.

    >>> metrics_to_plain({"loss": Mean.of(0.5, 3)})
    {'loss': {'mean': ['3/2', '3', True]}}
    """
    plain: dict[str, Any] = {}
    for name, metric in metrics.items():
        kind = _NAMES.get(type(metric))
        if kind is None:
            raise WireError(
                f"metric {name!r} is a {type(metric).__name__}, which does not travel",
                remedy=f"use one of {', '.join(kind.__name__ for kind in _NAMES)}",
            )
        try:
            plain[name] = {kind: _KINDS[kind][1](metric)}
        except _Wrong as error:
            raise WireError(f"metric {name!r} does not travel: {error}") from error
    metrics_from_plain(plain)  # what no reader accepts is better refused here
    return plain


def metrics_from_plain(raw: Mapping[str, Any]) -> dict[str, Metric]:
    """Read what :func:`metrics_to_plain` gave; equal to what was written.

    Raises:
        WireError: an unknown kind, a malformed part, or more than is allowed.
    """
    if not isinstance(raw, Mapping) or len(raw) > _MOST_METRICS:
        raise WireError(f"metrics are a table of at most {_MOST_METRICS}")
    found: dict[str, Metric] = {}
    for name, body in raw.items():
        if not isinstance(name, str) or len(name) > _MOST_NAME:
            raise WireError(f"a metric's name has at most {_MOST_NAME} letters")
        if not isinstance(body, dict) or len(body) != 1:
            raise WireError(f"metric {name!r} is not one kind with its parts")
        ((kind, parts),) = body.items()
        if kind not in _KINDS or not isinstance(parts, list):
            raise WireError(f"metric {name!r} is of an unknown kind {kind!r:.60}")
        try:
            found[name] = _KINDS[kind][2](parts)
        except ValueError as error:
            raise WireError(f"metric {name!r} ({kind}) is malformed: {error}") from error
    return found
