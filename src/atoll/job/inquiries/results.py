"""Results of tests as a run's folder keeps them: what comes back from institutions is what it was.

Of other analyses the folder holds what is shown, a table, figures and notes, and no more.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from atoll.algorithms.statistics.comparisons import TestResult
from atoll.algorithms.statistics.survival_logrank import LogRankResult
from atoll.core.errors import StateError

__all__ = ["result_from_plain", "result_to_plain"]

_KEPT: Mapping[str, type] = {"test": TestResult, "log_rank": LogRankResult}


def result_to_plain(result: Any) -> dict[str, Any] | None:
    """The result of a test, but for its notes, as JSON has it; None for any other.

    >>> result_to_plain(TestResult("Fisher", math.nan, (), 0.5))["statistic"] is None
    True
    """
    kind = next((kind for kind, made in _KEPT.items() if isinstance(result, made)), None)
    if kind is None:
        return None
    fields = {name: _plain(value) for name, value in asdict(result).items() if name != "notes"}
    return {"kind": kind, **fields}


def result_from_plain(plain: Mapping[str, Any], notes: tuple[str, ...]) -> Any:
    """Read what :func:`result_to_plain` gave.

    Raises:
        StateError: it is no such result.
    """
    made = _KEPT.get(plain.get("kind", ""))
    if made is None:
        raise StateError(f"{plain.get('kind')!r} is no kind of result that is known here")
    hints = typing.get_type_hints(made)
    fields = {
        name: _back(value, hints.get(name)) for name, value in plain.items() if name != "kind"
    }
    return made(**fields, notes=notes)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | np.ndarray):
        return [_plain(each) for each in value]
    item = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _back(value: Any, hint: Any) -> Any:
    if value is None:
        return math.nan
    if not isinstance(value, list):
        return value
    each = [math.nan if one is None else one for one in value]
    return tuple(each) if typing.get_origin(hint) is tuple else np.array(each)
