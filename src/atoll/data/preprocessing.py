"""From typed tables to numbers a model can train on: impute, scale, encode.

What a preprocessor must know of the data is a handful of sums per column: how many values there are,
their sum and sum of squares, how often each category occurs. :func:`column_sums` computes them at a
site, they add up over sites (without rounding, see :mod:`atoll.data.limbs`), and :func:`finish` turns
them into a fitted :class:`Preprocessor`. So a fit over many sites equals the fit on the pooled rows
to the last bit, however rows are spread. :mod:`atoll.algorithms.preprocessing` runs it as a round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, suggest
from atoll.core.layout import Array
from atoll.data.columns import Column
from atoll.data.limbs import COUNT, decode, encode, exact_sum, exact_sum_of_squares
from atoll.data.schema import Schema
from atoll.data.table import Table

__all__ = [
    "CategoryRule",
    "NumberRule",
    "Plan",
    "Preprocessor",
    "column_lengths",
    "column_sums",
    "counted_levels",
    "finish",
    "summed_columns",
]

_MOST_VALUES = 1000
"""The most frequent whole number is sought among at most this many."""


@dataclass(frozen=True)
class Plan:
    """What preprocessing does.

    Args:
        impute: what replaces a missing value. ``mean``: the mean of a number, the most frequent
            category; ``most_frequent``: of booleans, categories and whole numbers with a declared
            range; ``constant``: ``fill``, and no category; ``none``: numbers stay NaN.
        scale: numbers and integers after imputation: ``standard`` to mean 0 and standard deviation
            1 (divisor n), ``minmax`` from the declared range to [0, 1], or ``none``. Booleans stay 0/1.
        encode: categories as ``onehot`` columns or as one ``ordinal`` code. Without a category all
            one-hot columns are 0 and the ordinal code is NaN, or ``fill`` under ``constant``.
        indicate_missing: add a 0/1 column "... is missing" for every feature.
        scale_target: standardise a regression's target as well (:meth:`Preprocessor.restore` undoes it).
        mode: ``federated``: one fit from sums over all sites; ``site``: every site its own.
        fill: the constant of ``impute = "constant"``.
        dtype: of features and of a regression's targets.
    """

    impute: Literal["mean", "most_frequent", "constant", "none"] = "mean"
    scale: Literal["standard", "minmax", "none"] = "standard"
    encode: Literal["onehot", "ordinal"] = "onehot"
    indicate_missing: bool = False
    scale_target: bool = False
    fill: float = 0.0
    mode: Literal["federated", "site"] = "federated"
    dtype: Literal["float32", "float64"] = "float32"

    def faults(self, schema: Schema) -> list[Fault]:
        """What in this plan is unknown or does not fit the declared columns."""
        return [*self._unknown(), *self._misfits(schema)]

    def _unknown(self) -> Iterator[Fault]:
        options = {
            "impute": ("mean", "most_frequent", "constant", "none"),
            "scale": ("standard", "minmax", "none"),
            "encode": ("onehot", "ordinal"),
            "mode": ("federated", "site"),
            "dtype": ("float32", "float64"),
        }
        for name, known in options.items():
            value = getattr(self, name)
            if value not in known:
                yield Fault(f"preprocessing.{name}", f"unknown {value!r}", suggest(value, known))
        if not math.isfinite(self.fill):
            yield Fault("preprocessing.fill", f"{self.fill} is not a finite number")

    def _misfits(self, schema: Schema) -> Iterator[Fault]:
        for column in schema.features:
            place = f"column {column.name!r}"
            if column.type == "category" and not column.categories:
                yield Fault(place, "its categories are not known", "declare categories")
            scaled = column.type in ("number", "integer")
            if self.scale == "minmax" and scaled and column.range is None:
                # A smallest value is one person's value: it is no sum and would leave the site bare.
                yield Fault(
                    place, "minmax needs a declared range", "declare it, or scale = 'standard'"
                )
            if self.impute == "most_frequent" and column.type == "number":
                yield Fault(place, "a number has no most frequent value", "use impute = 'mean'")
            if self.impute == "most_frequent" and column.type == "integer" and not _values(column):
                remedy = f"declare a range of at most {_MOST_VALUES} values, or impute = 'mean'"
                yield Fault(place, "the most frequent whole number needs a short range", remedy)
        if schema.task == "classification" and not schema.classes:
            yield Fault("classes", "are not known", "declare classes")
        if self.scale_target and schema.task == "classification":
            yield Fault("preprocessing.scale_target", "classes are not scaled", "remove it")


@dataclass(frozen=True)
class NumberRule:
    """``(x - shift) / scale`` of a number; a missing x is ``fill``, or stays NaN where that is None."""

    name: str
    fill: float | None
    shift: float = 0.0
    scale: float = 1.0
    indicate: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns it makes."""
        return (self.name, *_indicator(self.name, self.indicate))

    def apply(self, cells: Array) -> Array:
        """``(n, outputs)`` float64."""
        empty = np.isnan(cells)
        filled = cells if self.fill is None else np.where(empty, self.fill, cells)
        columns = [(filled - self.shift) / self.scale, *([empty] if self.indicate else [])]
        return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class CategoryRule:
    """One column per level, or the level's position; a missing cell counts as the level ``fill``.

    ``code`` is the ordinal code of a missing cell without ``fill``; None stands for NaN.
    """

    name: str
    levels: tuple[str, ...]
    onehot: bool
    fill: str | None
    code: float | None = None
    indicate: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns it makes."""
        own = (
            tuple(f"{self.name}={level}" for level in self.levels) if self.onehot else (self.name,)
        )
        return (*own, *_indicator(self.name, self.indicate))

    def apply(self, cells: Array) -> Array:
        """``(n, outputs)`` float64.

        Raises:
            DataError: a category that is not among the levels.
        """
        position = {level: i for i, level in enumerate(self.levels)}
        unknown = next((c for c in cells if c is not None and c not in position), None)
        if unknown is not None:
            raise DataError(
                f"column {self.name!r}: unknown category {unknown!r}",
                remedy=suggest(str(unknown), self.levels),
            )
        blank = -1 if self.fill is None else position[self.fill]
        empty = np.array([cell is None for cell in cells], bool)
        codes = np.array([blank if c is None else position[c] for c in cells], np.int64)
        if self.onehot:
            own = (codes[:, None] == np.arange(len(self.levels))).astype(np.float64)
        else:
            none = math.nan if self.code is None else self.code
            own = np.where(codes < 0, none, codes.astype(np.float64))[:, None]
        return np.concatenate([own, empty[:, None]], axis=1) if self.indicate else own


@dataclass(frozen=True)
class Preprocessor:
    """A fitted plan: typed table in, :class:`~atoll.core.contracts.Examples` out.

    Args:
        rules: one per feature, in declared order.
        target: its name.
        classes: names of the classes by index; empty for a regression.
        goal: the target's own scaling in a regression, or None.
        dtype: of features and of a regression's targets.
    """

    rules: tuple[NumberRule | CategoryRule, ...]
    target: str
    classes: tuple[str, ...] = ()
    goal: NumberRule | None = None
    dtype: str = "float32"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of ``features``, such as ``age`` and ``cp=asymptomatic``."""
        return tuple(name for rule in self.rules for name in rule.outputs)

    def apply(self, table: Table) -> Examples:
        """Features ``(n, d)`` and targets ``(n,)`` of a typed table, as the schema read it.

        Class indices are int64.

        Raises:
            DataError: a column is absent, or a category or class is unknown.
        """
        blocks = [rule.apply(table[rule.name]) for rule in self.rules]
        features = np.concatenate(blocks, axis=1).astype(self.dtype)
        return Examples(features, self.targets(table[self.target]))

    def targets(self, cells: Array) -> Array:
        """Numbers of classes (int64), or a regression's targets, of the target's typed cells, ``(n,)``.

        Raises:
            DataError: an unknown class.
        """
        if not self.classes:
            scaled = cells if self.goal is None else self.goal.apply(cells)[:, 0]
            return scaled.astype(self.dtype)
        if cells.dtype.kind == "f":  # a boolean target: false and true
            return cells.astype(np.int64)
        position = {name: i for i, name in enumerate(self.classes)}
        unknown = sorted({str(cell) for cell in cells} - set(position))
        if unknown:
            raise DataError(
                f"target {self.target!r}: unknown class {unknown[0]!r}",
                remedy=suggest(unknown[0], self.classes),
            )
        return np.array([position[cell] for cell in cells], np.int64)

    def restore(self, predictions: Array) -> Array:
        """A regression's predictions ``(n,)`` in the target's own unit."""
        if self.goal is None:
            return predictions
        return predictions * self.goal.scale + self.goal.shift

    def to_json(self) -> str:
        """As text; :meth:`from_json` gives an equal preprocessor back, every float to the bit."""
        return json.dumps(asdict(self), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Preprocessor:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            stored = json.loads(text)
            rules = tuple(_rule(rule) for rule in stored.pop("rules"))
            goal, classes = stored.pop("goal"), tuple(stored.pop("classes"))
            return cls(rules, classes=classes, goal=goal and NumberRule(**goal), **stored)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"not a stored preprocessor ({error})") from error


def column_sums(table: Table, plan: Plan, schema: Schema) -> dict[str, Array]:
    """What one site's typed table contributes: vectors that add up over sites, float64.

    Returns:
        ``rows`` (1,); ``present`` (numbers,), values per numeric column; ``limbs``
        (numbers * 2 * COUNT,), their sums and sums of squares; ``levels`` (all levels,), counts.
    """
    present, limbs = [], []
    for column in summed_columns(plan, schema):
        known = table[column.name][~np.isnan(table[column.name])]
        present.append(float(len(known)))
        try:
            limbs += [encode(exact_sum(known)), encode(exact_sum_of_squares(known))]
        except DataError as error:
            remedy = f"{error.remedy}; correct it, or declare the column's range to find it"
            place, told = f"column {column.name!r}", "holds a value too large to be summed"
            fault = Fault(place, error.message, remedy, told)
            raise DataError("the columns' sums", faults=[fault]) from error
    levels: list[float] = []
    for column in schema.features:
        values, counted = table[column.name], counted_levels(plan, column)
        levels += [float(np.count_nonzero(values == level)) for level in counted]
        levels += [0.0] * (len(_levels(plan, column)) - len(counted))  # nobody asks how often
    return {
        "rows": np.array([float(len(table))]),
        "present": np.array(present, np.float64),
        "limbs": np.concatenate([np.zeros(0), *limbs]),
        "levels": np.array(levels, np.float64),
    }


def column_lengths(plan: Plan, schema: Schema) -> dict[str, int]:
    """How long each vector of :func:`column_sums` is; it follows from the declared columns alone."""
    numbers = len(summed_columns(plan, schema))
    levels = sum(len(_levels(plan, column)) for column in schema.features)
    return {"rows": 1, "present": numbers, "limbs": numbers * 2 * COUNT, "levels": levels}


def finish(sums: Mapping[str, Array], plan: Plan, schema: Schema) -> Preprocessor:
    """The preprocessor that (added) :func:`column_sums` describe.

    A column without any value is filled with 0 (or the plan's constant) and left unscaled.
    """
    rows = int(sums["rows"][0])
    moments = dict(zip((c.name for c in summed_columns(plan, schema)), _moments(sums), strict=True))
    rules: list[NumberRule | CategoryRule] = []
    start = 0
    for column in schema.features:
        levels = _levels(plan, column)
        counts = sums["levels"][start : start + len(levels)]
        start += len(levels)
        top = levels[int(np.argmax(counts))] if len(levels) and counts.any() else None
        if column.type == "category":
            rules.append(_category_rule(column, plan, top))
        else:
            rules.append(_number_rule(column, plan, rows, moments[column.name], top))
    goal = None
    if plan.scale_target:
        whole = Plan(impute="none", scale="standard")
        name = schema.target
        goal = _number_rule(Column(name), whole, rows, moments[name], None)
    return Preprocessor(tuple(rules), schema.target, schema.classes, goal, plan.dtype)


Moments = tuple[int, Fraction, Fraction]
"""Number of values, their sum, their sum of squares, all exact."""


def _moments(sums: Mapping[str, Array]) -> Iterator[Moments]:
    digits = sums["limbs"].reshape(-1, 2, COUNT)
    for count, (total, squares) in zip(sums["present"], digits, strict=True):
        yield int(count), decode(total), decode(squares)


def _number_rule(
    column: Column, plan: Plan, rows: int, moments: Moments, top: float | str | None
) -> NumberRule:
    n, total, squares = moments
    fill: float | None = plan.fill
    if plan.impute == "mean":
        fill = float(total / n) if n else 0.0
    elif plan.impute == "most_frequent":
        fill = float(top) if top is not None else 0.0
    elif plan.impute == "none":
        fill = None
    shift, scale = 0.0, 1.0
    if column.type != "boolean" and plan.scale == "minmax" and column.range:
        shift, scale = column.range[0], (column.range[1] - column.range[0]) or 1.0
    if column.type != "boolean" and plan.scale == "standard":
        if fill is not None:  # statistics of the column after imputation
            blank, value = rows - n, Fraction(fill)
            n, total, squares = rows, total + blank * value, squares + blank * value * value
        if n:
            mean = total / n
            shift = float(mean)
            # Below 0 where squares were too small to be counted; see LOW in atoll.data.limbs.
            scale = math.sqrt(max(squares / n - mean * mean, Fraction(0))) or 1.0
    return NumberRule(column.name, fill, float(shift), float(scale), plan.indicate_missing)


def _category_rule(column: Column, plan: Plan, top: float | str | None) -> CategoryRule:
    most = str(top) if top is not None and plan.impute in ("mean", "most_frequent") else None
    return CategoryRule(
        column.name,
        column.categories,
        plan.encode == "onehot",
        most,
        plan.fill if plan.impute == "constant" else None,
        plan.indicate_missing,
    )


def summed_columns(plan: Plan, schema: Schema) -> list[Column]:
    """The columns whose values are summed, with their squares."""
    own = [column for column in schema.features if column.type != "category"]
    return [*own, schema.goal] if plan.scale_target else own


def counted_levels(plan: Plan, column: Column) -> tuple[str, ...] | tuple[float, ...]:
    """The values that are really counted, in order: none where no missing cell is filled with the commonest."""
    if column.type == "category" and plan.impute not in ("mean", "most_frequent"):
        return ()
    return _levels(plan, column)


def _levels(plan: Plan, column: Column) -> tuple[str, ...] | tuple[float, ...]:
    """The values of a column that have a place among the counts."""
    if column.type == "category":
        return column.categories
    return _values(column) if plan.impute == "most_frequent" else ()


def _values(column: Column) -> tuple[float, ...]:
    if column.type == "boolean":
        return (0.0, 1.0)
    if column.type != "integer" or column.range is None:
        return ()
    low, high = math.ceil(column.range[0]), math.floor(column.range[1])
    return tuple(float(v) for v in range(low, high + 1)) if high - low < _MOST_VALUES else ()


def _indicator(name: str, indicate: bool) -> tuple[str, ...]:
    return (f"{name} is missing",) if indicate else ()


def _rule(stored: dict[str, Any]) -> NumberRule | CategoryRule:
    if "levels" in stored:
        return CategoryRule(**{**stored, "levels": tuple(stored["levels"])})
    return NumberRule(**stored)
