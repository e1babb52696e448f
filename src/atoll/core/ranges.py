"""Options of a job's parts, checked against ranges written as in the papers: ``"[0, 1)"``, ``"(0, inf)"``.

Every part of a job checks itself when it is made, whoever makes it: a job file, a script or the runtime. Its
ranges stand in its ``__post_init__``, one rule per option:

====================  ==========================================================
``"[0, 1)"``          a number in this interval; never NaN
``"whole [1, inf)"``  a whole number in it
``"each [0, inf)"``   a mapping whose values are numbers in it
``"bool"``            true or false
``"text"``            a text
``("sum", "mean")``   one of these values
``Optimizer``         an object of this class
====================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from atoll.core.errors import Fault, JobError, raise_faults, suggest

__all__ = ["check", "inside", "range_faults"]

Rule = str | type | tuple[object, ...]


def check(
    part: object,
    table: str,
    *,
    names: Mapping[str, str] | None = None,
    optional: Sequence[str] = (),
    also: Sequence[Fault] = (),
    **rules: Rule,
) -> None:
    """Refuse options out of range, all of them at once.

    Args:
        part: holds one attribute per option.
        table: of a job file that these options stand in; empty for none.
        names: an option's key in that table, where it is called otherwise.
        optional: options that may be None.
        also: faults found elsewhere, reported together with these.
        rules: by option.

    Raises:
        JobError: naming each option, its value, what is wrong with it and what it may be.
    """
    found = [*range_faults(part, table, names=names, optional=optional, **rules), *also]
    if found:
        raise_faults(JobError, f"options of {type(part).__name__}", found)


def range_faults(
    part: object,
    table: str,
    *,
    names: Mapping[str, str] | None = None,
    optional: Sequence[str] = (),
    **rules: Rule,
) -> Iterator[Fault]:
    """What :func:`check` would raise.

    >>> from types import SimpleNamespace
    >>> print(*range_faults(SimpleNamespace(size=2.5), "rounds", size="whole [1, inf)"))
    rounds.size: 2.5 is not a whole number (give a whole number, at least 1)
    """
    for name, rule in rules.items():
        value = getattr(part, name)
        if not (value is None and name in optional):
            key = names.get(name, name) if names else name
            yield from _faults(f"{table}.{key}" if table else key, value, rule)


def inside(value: Any, rule: str) -> bool:
    """Whether ``value`` is a number in an interval.

    >>> inside(0.5, "[0, 1)"), inside(float("nan"), "[0, inf]"), inside(True, "[0, 1]")
    (True, False, False)
    """
    return _range(rule).why_not(value) == ""


def _faults(place: str, value: Any, rule: Rule) -> Iterator[Fault]:
    if isinstance(rule, tuple):
        if type(value).__hash__ is None or value not in rule:
            yield Fault(place, f"unknown {value!r:.60}", suggest(str(value), map(str, rule)))
    elif isinstance(rule, type):
        if not isinstance(value, rule):
            remedy = f"give an object of that class, such as {rule.__name__}()"
            yield Fault(place, f"{value!r:.60} is no {rule.__name__}", remedy)
    elif rule == "bool":
        if not isinstance(value, bool | np.bool_):
            yield Fault(place, f"{value!r:.60} is not true or false", "give True or False")
    elif rule == "text":
        if not isinstance(value, str):
            yield Fault(place, f"{value!r:.60} is no text", "give a text")
    elif rule.startswith("each "):
        yield from _each(place, value, _range(rule.removeprefix("each ")))
    elif why := _range(rule).why_not(value):
        yield Fault(place, why, _range(rule).remedy)


def _each(place: str, value: Any, allowed: _Range) -> Iterator[Fault]:
    if not isinstance(value, Mapping):
        yield Fault(place, f"{value!r:.60} is no mapping", "give numbers by name")
        return
    for name, one in value.items():
        if why := allowed.why_not(one):
            yield Fault(f"{place}.{name}", why, allowed.remedy)


_NUMBER, _WHOLE = (int, float, Real), (int, Integral)


class _Range(NamedTuple):
    """An interval of numbers, or of whole ones."""

    text: str
    whole: bool
    low: float
    high: float

    def why_not(self, value: Any) -> str:
        """What is wrong with a value; empty where nothing is."""
        if isinstance(value, bool) or not isinstance(value, _NUMBER):
            return f"{value!r:.60} is not a number"
        if self.whole and not isinstance(value, _WHOLE):
            return f"{value} is not a whole number"
        number: Any = value
        above = number >= self.low if self.text[0] == "[" else number > self.low
        below = number <= self.high if self.text[-1] == "]" else number < self.high
        return "" if above and below else f"{value} is not in {self.text}"

    @property
    def remedy(self) -> str:
        """What to give instead, in words."""
        ends = []
        if self.low > -np.inf:
            ends.append(f"{'at least' if self.text[0] == '[' else 'above'} {self.low:g}")
        if self.high < np.inf:
            ends.append(f"{'at most' if self.text[-1] == ']' else 'below'} {self.high:g}")
        kind = "whole number" if self.whole else "number"
        return f"give a {kind}, {' and '.join(ends) or 'not infinite'}"


@cache
def _range(rule: str) -> _Range:
    text = rule.removeprefix("whole ")
    low, high = map(float, text[1:-1].split(","))
    return _Range(text, text != rule, low, high)
