"""Data cards: what a site holds, as sums and shares only, for the report.

A number that few persons are behind is :data:`~atoll.data.telling.SUPPRESSED`, where the site's rule says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.layout import Array
from atoll.data.columns import is_missing
from atoll.data.schema import Schema
from atoll.data.table import Table, label
from atoll.data.telling import EXACT, SUPPRESSED, Telling

__all__ = ["data_card", "examples_card", "fingerprint"]

_MOST_CLASSES = 1000
"""Whole numbers beyond are taken for amounts, where nobody says that they are classes."""


def data_card(table: Table, schema: Schema, telling: Telling = EXACT) -> dict[str, Any]:
    """The card of one site's typed table, ready for JSON.

    Args:
        table: its rows.
        schema: the declared columns.
        telling: how its counts may be told.

    Returns:
        ``rows``; ``columns``: per feature ``type``, ``unit``, ``missing``, and mean and sd (divisor
        n) of numbers, never a smallest or largest value, which is one person's, or ``counts`` of
        categories; ``classes`` (counts by name) or ``target`` (mean and sd); ``fingerprint``.
    """
    columns = {
        c.name: {"type": c.type, "unit": c.unit, **_summary(table[c.name], telling)}
        for c in schema.features
    }
    goal = table[schema.target]
    card: dict[str, Any] = {"rows": telling.number(np.arange(len(table))), "columns": columns}
    if schema.task == "classification":
        names = [None if is_missing(cell) else label(cell) for cell in goal]
        if schema.goal.type == "boolean" and schema.classes:
            names = [None if name is None else schema.classes[int(name)] for name in names]
        known = schema.classes or tuple(sorted({name for name in names if name is not None}))
        card["classes"] = _counts(names, known, telling)[0]
    else:
        card["target"] = _summary(goal, telling)
    return card | {"fingerprint": fingerprint(table)}


def examples_card(examples: Examples, classes: int = 0, telling: Telling = EXACT) -> dict[str, Any]:
    """The card of rows that are no table; whole-number targets may be class indices.

    Args:
        examples: the rows.
        classes: number of classes, so that those without a row are listed too; 1: targets are no classes;
            0: not known, and whole numbers from 0 to 999 are taken for class indices.
        telling: how its counts may be told.

    Returns:
        ``rows``; ``shape`` of one row's features; ``classes`` (counts by index) or ``target`` (mean
        and sd); ``fingerprint``.
    """
    rows, targets = telling.number(np.arange(len(examples))), examples.targets
    card: dict[str, Any] = {"rows": rows, "shape": list(examples.features.shape[1:])}
    if (last := _classes_in(targets, classes)) is not None:
        card["classes"] = telling.counts({str(c): targets == c for c in range(last)})
    else:
        card["target"] = _summary(np.asarray(targets, np.float64), telling)
    return card | {"fingerprint": fingerprint(examples)}


def _classes_in(targets: Array, known: int) -> int | None:
    """How many classes are listed of these targets; None where they are no class indices."""
    if known == 1 or targets.dtype.kind not in "biu":
        return None
    least, most = (int(targets.min()), int(targets.max())) if targets.size else (0, -1)
    indices = known > 1 or (least >= 0 and most < _MOST_CLASSES)
    return max(known, most + 1) if indices else None


def fingerprint(data: Table | Examples) -> str:
    """SHA-256 of the content in hex: names, types, shapes and every value, in order of the rows."""
    sha = hashlib.sha256(b"atoll data 1")
    if isinstance(data, Table):
        parts = dict(data.columns)
    else:
        parts = {"features": data.features, "targets": data.targets}
    for name, values in parts.items():
        # The header says where a part ends, so different data cannot run together to the same bytes.
        body = _bytes(values)
        header = [name, values.dtype.newbyteorder("<").str, list(values.shape), len(body)]
        sha.update(json.dumps(header).encode() + b"\n")
        sha.update(body)
    return sha.hexdigest()


def _bytes(values: Array) -> bytes:
    if values.dtype.kind == "O":
        return json.dumps([None if is_missing(v) else str(v) for v in values]).encode()
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    flat = np.ascontiguousarray(little).reshape(-1)
    return flat.view(np.uint8).tobytes()


def _summary(cells: Array, telling: Telling) -> dict[str, Any]:
    if cells.dtype.kind == "O":
        names = [None if is_missing(cell) else label(cell) for cell in cells]
        known = sorted({name for name in names if name is not None})
        counts, missing = _counts(names, known, telling)
        return {"missing": missing, "counts": counts}
    empty = np.isnan(cells)
    # Of all rows the others have a value: where those are few, neither number is told.
    missing = SUPPRESSED if telling.few(~empty) else telling.number(empty)
    if not telling.moments_told(cells):
        return {"missing": missing, "mean": SUPPRESSED, "sd": SUPPRESSED}
    values = cells[~empty]
    with np.errstate(over="ignore", invalid="ignore"):
        found = (values.mean(), values.std()) if len(values) else (np.nan, np.nan)
    # What lies beyond float64, as squares of large numbers do, is no figure.
    mean, sd = (float(figure) if np.isfinite(figure) else None for figure in found)
    return {"missing": missing, "mean": mean, "sd": sd}


def _counts(
    names: Sequence[str | None], known: Iterable[str], telling: Telling
) -> tuple[dict[str, int | str], int | str]:
    """How many rows have each of the names, and how many none."""
    held = np.array(names, object)
    masks = {f"={name}": np.asarray(held == name, bool) for name in known}
    absent = np.array([name is None for name in names], bool)
    found = telling.counts({**masks, "": absent})
    missing = found.pop("")
    return {name[1:]: count for name, count in found.items()}, missing
