"""What a malicious client may send instead of its update.

Each tampering takes the honest update and gives the one that is sent. The first group is not valid and
must be refused, whatever the job; the second is valid in form, and only a limit on norms, a robust rule
or clipping contains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from atoll.core.errors import JobError, suggest
from atoll.core.layout import Array
from atoll.core.values import Update

__all__ = ["MALFORMED", "POISON", "TAMPERINGS", "Tampering", "tampering"]

Tampering = Callable[[Update], Update]
"""From the honest update to the one that is sent."""


def _one_value(value: float) -> Tampering:
    """One coordinate of every vector replaced."""

    def tamper(update: Update) -> Update:
        return _mapped(update, lambda v: _put(v, value))

    return tamper


def _put(vector: Array, value: float) -> Array:
    integers = vector.dtype.kind in "iu"
    if integers and math.isfinite(value):
        value = np.iinfo(vector.dtype).max  # the largest that there is
    # What is no number does not fit into integers: then the dtype is another one as well.
    changed = vector.astype("float64") if integers and not math.isfinite(value) else vector.copy()
    flat = changed.reshape(-1)
    if flat.size:
        flat[flat.size // 2] = value
    return changed


def _scaled(factor: float) -> Tampering:
    def tamper(update: Update) -> Update:
        return _mapped(update, lambda v: _times(v, factor))

    return tamper


def _times(vector: Array, factor: float) -> Array:
    if vector.dtype.kind not in "iu":
        return np.asarray(vector * vector.dtype.type(factor))
    ends = np.iinfo(vector.dtype)
    return np.array(
        [max(ends.min, min(ends.max, int(v) * int(factor))) for v in vector.flat]
    ).astype(vector.dtype)


def _weight(change: Callable[[float], float]) -> Tampering:
    return lambda update: replace(update, weight=change(update.weight))


def _mapped(update: Update, change: Callable[[Array], Array]) -> Update:
    return replace(update, vectors={name: change(v) for name, v in update.vectors.items()})


def _longer(update: Update) -> Update:
    return _mapped(update, lambda v: np.append(v, v.dtype.type(0)))


def _other_dtype(update: Update) -> Update:
    return _mapped(update, lambda v: v.astype("float64" if v.dtype == "float32" else "float32"))


def _other_name(update: Update) -> Update:
    return replace(update, vectors={f"{name}x": v for name, v in update.vectors.items()})


def _more_rows(update: Update) -> Update:
    return replace(update, examples=update.examples * 1000 + 1)


MALFORMED: Mapping[str, Tampering] = {
    "nan": _one_value(math.nan),
    "inf": _one_value(math.inf),
    "minus_inf": _one_value(-math.inf),
    "huge": _one_value(3e38),
    "weight_large": _weight(lambda w: w * 1000 + 1),
    "weight_small": _weight(lambda w: w / 2),
    "weight_negative": _weight(lambda w: -w - 1),
    "weight_nan": _weight(lambda w: math.nan),
    "weight_inf": _weight(lambda w: math.inf),
    "rows": _more_rows,
    "length": _longer,
    "dtype": _other_dtype,
    "name": _other_name,
}
"""What no honest client sends; refused with its reason, always."""

POISON: Mapping[str, Tampering] = {
    "sign_flip": _scaled(-1.0),
    "scaled": _scaled(100.0),
    "scaled_flip": _scaled(-100.0),
}
"""Valid in form."""

TAMPERINGS: Mapping[str, Tampering] = {**MALFORMED, **POISON}


def tampering(name: str) -> Tampering:
    """The tampering called ``name``.

    Raises:
        JobError: there is none, with the nearest that there is.
    """
    if name not in TAMPERINGS:
        raise JobError(f"unknown attack {name!r}", remedy=suggest(name, TAMPERINGS))
    return TAMPERINGS[name]
