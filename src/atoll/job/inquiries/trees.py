"""Boosted trees."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atoll.algorithms.statistics import boosting
from atoll.algorithms.statistics.analysis import Analysis
from atoll.core.errors import DataError, suggest
from atoll.core.layout import Array
from atoll.data.columns import is_missing, respelt
from atoll.data.readers import as_table
from atoll.data.table import label
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Estimator, Finding
from atoll.models.trees import Trees
from atoll.models.trees_xgboost import from_xgboost, to_xgboost

__all__ = ["BoostedTrees", "GradientBoosting", "predicted"]


@dataclass(frozen=True, eq=False)
class BoostedTrees(Finding):
    """An ensemble of trees; the table has one line a column, that which gained most first.

    Args:
        title: what was fitted, for the heading.
        result: the analysis' own result, with the trees.
        levels: names of categories, by column.
        notes: what a reader has to know.
    """

    title: str
    result: boosting.Boosted
    levels: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    index: str = "column"

    def records(self) -> list[dict[str, Any]]:
        """How often each column is read, what its splits gained, and its share of that."""
        splits, gain = self.result.importance()
        columns = self.result.trees.columns
        whole = float(gain.sum())
        return [
            {
                "column": columns[i].name,
                "splits": int(splits[i]),
                "gain": float(gain[i]),
                "share": float(gain[i]) / whole if whole else 0.0,
            }
            for i in np.argsort(-gain, kind="stable")
        ]

    def facts(self) -> dict[str, Any]:
        """Sizes, and the mean loss before the first tree and after the last."""
        found = self.result
        told = {
            "trees": len(found.trees),
            "rows": found.rows,
            "rows kept aside": found.kept,
            "excluded": found.excluded,
            "loss before": float(found.losses[0]),
            "loss": float(found.losses[-1]),
        }
        if len(found.kept_losses):
            told["loss before, rows kept aside"] = float(found.kept_losses[0])
            told["loss, rows kept aside"] = float(found.kept_losses[-1])
        return told

    def exported(self) -> dict[str, Any]:
        """The trees in XGBoost's format; a category is its place in the list under ``attributes``."""
        told = to_xgboost(self.result.trees, self.result.gain)
        names = {column.name for column in self.result.trees.columns}
        levels = {name: list(those) for name, those in self.levels.items() if name in names}
        told["learner"]["attributes"] = {"categories": json.dumps(levels)} if levels else {}
        return told

    def save(self, path: str | Path) -> None:
        """Write :meth:`exported` as JSON, which ``xgboost.Booster(model_file=path)`` reads; makes folders."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.exported()), encoding="utf-8")

    def predict(self, data: Any) -> Array:
        """The probability of the event, or the mean, for each row, ``(n,)``.

        Args:
            data: a pandas frame, a mapping of columns, a file or a :class:`~atoll.data.table.Table`; an unknown
                category counts as missing.

        Raises:
            DataError: a column is absent, or holds no numbers.
        """
        return _predicted(self.result.trees, self.levels, data)


def predicted(exported: Mapping[str, Any], data: Any) -> Array:
    """What :meth:`BoostedTrees.predict` gives, up to rounding, from what :meth:`BoostedTrees.exported` gave.

    Args:
        exported: the trees as they lie in a run's folder.
        data: as there.

    Raises:
        DataError: as there, or these are no such trees.
    """
    try:
        told = exported["learner"]["attributes"].get("categories", "{}")
        levels = {str(name): tuple(map(str, those)) for name, those in json.loads(told).items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError("these are no trees of a run's folder", remedy="fetch it again") from error
    sizes = {name: len(those) for name, those in levels.items()}
    return _predicted(from_xgboost(exported, sizes), levels, data)


def _predicted(trees: Trees, levels: Mapping[str, Sequence[str]], data: Any) -> Array:
    table, columns = as_table(data), {}
    for name in (column.name for column in trees.columns):
        if name not in table.columns:
            raise DataError(f"column {name!r} is missing", remedy=suggest(name, table.names))
        columns[name] = _coded(name, table[name], levels.get(name))
    return trees.predict(columns)


def _coded(name: str, cells: Array, known: Sequence[str] | None) -> Array:
    if known is not None:
        code = {level: float(i) for i, level in enumerate(known)}
        if cells.dtype.kind == "f":
            code |= {read: code[level] for read, level in respelt(known).items()}
        return np.array([np.nan if is_missing(c) else code.get(label(c), np.nan) for c in cells])
    try:
        return np.array([np.nan if is_missing(c) else float(c) for c in cells])
    except (TypeError, ValueError) as error:
        raise DataError(f"column {name!r} holds something that is no number") from error


@dataclass(frozen=True)
class GradientBoosting(Estimator):
    """Boosted decision trees (XGBoost's, on histograms) for a 0/1 outcome or a number.

    Args:
        outcome: column to be explained; of two categories the second is the event.
        features: columns that explain: numbers, categories; missing values may stay.
        loss: ``logistic`` for 0/1, ``squared`` for a number; ``auto`` looks which it is.
        trees: how many at most.
        depth: splits between root and leaf at most.
        rate: factor on every tree.
        bins: cells that a column of numbers is cut into, at quantiles of all sites.
        l2: penalty on squared leaf weights.
        gain: least gain of a split.
        weight: least sum of second derivatives in a leaf.
        kept: part of the rows that is kept aside, to judge the trees by.
        patience: stop when so many trees have not helped the rows kept aside; 0 for never.
        seed: of which rows those are.
    """

    outcome: str
    features: Sequence[str]
    loss: Literal["auto", "logistic", "squared"] = "auto"
    trees: int = 100
    depth: int = 3
    rate: float = 0.1
    bins: int = 32
    l2: float = 1.0
    gain: float = 0.0
    weight: float = 1.0
    kept: float = 0.0
    patience: int = 0
    seed: int = 0

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return tuple(dict.fromkeys((self.outcome, *self.features)))

    def analysis(self, book: Codebook) -> Analysis:
        """The trees."""
        book.check(*self.named())
        book.event(self.outcome)
        binary = self.outcome in book.binary or self.outcome in book.levels
        loss = ("logistic" if binary else "squared") if self.loss == "auto" else self.loss
        return boosting.GradientBoosting(
            self.features,
            self.outcome,
            book.categories(self.features),
            loss,
            self.trees,
            self.depth,
            self.rate,
            self.bins,
            {name: (0.5,) for name in self.features if name in book.binary},
            l2=self.l2,
            gain=self.gain,
            weight=self.weight,
            kept=self.kept,
            patience=self.patience,
            seed=self.seed,
            rule=book.rule,
        )

    def finding(self, book: Codebook, found: Any) -> BoostedTrees:
        """The trees, and what each column did for them."""
        title = f"Boosted trees for {self.outcome} over sites"
        notes = book.event(self.outcome)
        if self.loss == "auto" and self.outcome in set(book.numeric()) - book.binary:
            notes = (f"{self.outcome} is explained as a number (squared loss): not all are 0 or 1",)
        return BoostedTrees(title, found, book.levels, (*notes, *found.notes))
