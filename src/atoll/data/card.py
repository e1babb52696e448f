"""Data cards: what a site holds, as sums and shares only, for the report."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.layout import Array
from atoll.data.columns import is_missing
from atoll.data.schema import Schema
from atoll.data.table import Table, label

__all__ = ["data_card", "examples_card", "fingerprint"]


def data_card(table: Table, schema: Schema) -> dict[str, Any]:
    """The card of one site's typed table, ready for JSON.

    Returns:
        ``rows``; ``columns``: per feature ``type``, ``unit``, ``missing``, and mean and sd (divisor
        n) of numbers, never a smallest or largest value, which is one person's, or ``counts`` of
        categories; ``classes`` (counts by name) or ``target`` (mean and sd); ``fingerprint``.
    """
    columns = {
        c.name: {"type": c.type, "unit": c.unit, **_summary(table[c.name])} for c in schema.features
    }
    goal = table[schema.target]
    card: dict[str, Any] = {"rows": len(table), "columns": columns}
    if schema.task == "classification":
        names = [label(cell) for cell in goal if not is_missing(cell)]
        if schema.goal.type == "boolean" and schema.classes:
            names = [schema.classes[int(name)] for name in names]
        known = schema.classes or tuple(sorted(set(names)))
        card["classes"] = {name: names.count(name) for name in known}
    else:
        card["target"] = _summary(goal)
    return card | {"fingerprint": fingerprint(table)}


def examples_card(examples: Examples, classes: int = 0) -> dict[str, Any]:
    """The card of rows that are no table; whole-number targets are taken for class indices.

    Args:
        examples: the rows.
        classes: number of classes, so that those without a row are listed too; 0: not known.

    Returns:
        ``rows``; ``shape`` of one row's features; ``classes`` (counts by index) or ``target`` (mean
        and sd); ``fingerprint``.
    """
    card: dict[str, Any] = {"rows": len(examples), "shape": list(examples.features.shape[1:])}
    if examples.targets.dtype.kind in "biu":
        counts = np.bincount(examples.targets.astype(np.int64), minlength=classes)
        card["classes"] = {str(c): int(n) for c, n in enumerate(counts)}
    else:
        card["target"] = _summary(np.asarray(examples.targets, np.float64))
    return card | {"fingerprint": fingerprint(examples)}


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


def _summary(cells: Array) -> dict[str, Any]:
    if cells.dtype.kind == "O":
        names = [label(cell) for cell in cells if not is_missing(cell)]
        counts = {name: names.count(name) for name in sorted(set(names))}
        return {"missing": len(cells) - len(names), "counts": counts}
    known = cells[~np.isnan(cells)]
    mean = float(known.mean()) if len(known) else None
    sd = float(known.std()) if len(known) else None
    return {"missing": len(cells) - len(known), "mean": mean, "sd": sd}
