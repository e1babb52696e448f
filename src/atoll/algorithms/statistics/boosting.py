"""Gradient boosting of decision trees on histograms, the same trees as on pooled rows.

All sites cut their columns at the same quantiles. For each level of each tree they answer with sums of the
loss' first and second derivatives over cells (T. Chen and C. Guestrin, "XGBoost", KDD 2016), and the totals
say where to split. A tree of depth d takes d rounds. The sums are exact, so the trees do not depend on how
rows are spread over sites, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Columns, Question
from atoll.algorithms.statistics.boosting_rows import Rows, drawn, shares
from atoll.algorithms.statistics.boosting_split import Terms, best_splits
from atoll.algorithms.statistics.columns import numbers, reading
from atoll.algorithms.statistics.glm_design import Design, misfit
from atoll.algorithms.statistics.memo import Memo
from atoll.algorithms.statistics.quantiles import Quantiles
from atoll.core.errors import DataError, Forbidden, JobError
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import Released
from atoll.models.trees import Column, Loss, Trees, cells_of, packed, width_of

__all__ = ["Boosted", "GradientBoosting"]

MOMENTS, SPREAD, EDGES, GROW, DONE = range(5)

_EDGE = "edges|"
_GIVEN = ("cuts", "counts", "base")
_GROWN = ("split", "left", "value", "level")
_MOST_BINS, _MOST_DEPTH = 256, 10
_MOST_SUMS = 4_000_000
"""Sums in one round: 224 MB as digits, from each site."""


@dataclass(frozen=True, eq=False)
class Boosted:
    """Boosted trees and how well they fit.

    Args:
        trees: the ensemble.
        gain: how much each split lowered the loss, as ``trees.split``.
        losses: mean loss over the rows trained on before the first tree and after each, ``(trees + 1,)``:
            of a logistic loss the negative log-likelihood, of a squared one the squared error.
        kept_losses: the same over rows kept aside; empty where there are none.
        rows: rows trained on.
        kept: rows kept aside.
        excluded: rows left out because their outcome is missing.
        notes: what a reader has to know, in words.
    """

    trees: Trees
    gain: Array
    losses: Array
    kept_losses: Array
    rows: int
    kept: int
    excluded: int
    notes: tuple[str, ...]

    def importance(self) -> tuple[Array, Array]:
        """How many splits read each column, and what they gained together, ``(columns,)`` each."""
        used = self.trees.split >= 0
        read = self.trees.split[used].astype(np.int64)
        k = len(self.trees.columns)
        return np.bincount(read, minlength=k), np.bincount(read, self.gain[used], minlength=k)


@dataclass(frozen=True)
class GradientBoosting:
    """Boosted trees for an outcome of 0 and 1, or for a number.

    Args:
        features: columns that explain, in order; missing values are allowed.
        outcome: column to be explained; rows without it are left out.
        categories: for features that hold codes, all their levels.
        loss: ``logistic`` for 0 and 1, ``squared`` for a number.
        trees: how many at most.
        depth: splits between root and leaf at most.
        rate: factor on every tree.
        bins: cells that a column of numbers is cut into, at quantiles.
        cuts: cut points of columns that are not to be cut at quantiles.
        l2: penalty on squared leaf weights.
        gain: least gain of a split.
        weight: least sum of second derivatives in a leaf.
        kept: part of the rows that is kept aside to judge by; drawn by what is in them.
        patience: stop when so many trees have not lowered the loss of the rows kept aside; 0 for never.
        seed: of the draw.
        rule: disclosure control: no leaf has fewer persons than the minimum.

    Raises:
        JobError: an option out of its range.
    """

    features: Sequence[str]
    outcome: str
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    loss: Loss = "logistic"
    trees: int = 100
    depth: int = 3
    rate: float = 0.1
    bins: int = 32
    cuts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    l2: float = 1.0
    gain: float = 0.0
    weight: float = 1.0
    kept: float = 0.0
    patience: int = 0
    seed: int = 0
    rule: Disclosure = field(default_factory=lambda: Disclosure(minimum=1))
    memo: Memo[Rows] = field(default_factory=Memo, init=False, repr=False, compare=False)
    edges: Quantiles | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Design.of(self.features, self.categories)
        if not self.features or self.outcome in self.features:
            raise JobError("trees need features, and the outcome is none of them")
        for name, low, high in (
            ("trees", 1, 10_000),
            ("depth", 1, _MOST_DEPTH),
            ("bins", 2, _MOST_BINS),
            ("l2", 0, np.inf),
            ("gain", 0, np.inf),
            ("weight", 0, np.inf),
            ("patience", 0, np.inf),
            ("seed", 0, 2**64 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise JobError(
                    f"{name} must be from {low:g} to {high:g}, not {getattr(self, name)}"
                )
        if not 0 < self.rate <= 1 or not 0 <= self.kept <= 0.9:
            raise JobError("rate must be above 0 and at most 1, and kept from 0 to .9")
        if self.patience and not self.kept:
            raise JobError("patience needs rows kept aside", remedy="give kept, such as 0.2")
        cells = max([self.bins, *map(len, self.categories.values())]) + 1
        sums = 3 * len(self.features) * cells * 2 ** max(self.depth - 2, 0)
        if sums > _MOST_SUMS:
            raise JobError(
                f"the last level of a tree would take {sums:,} sums from each site",
                remedy="give a smaller depth, or fewer bins or features",
            )
        object.__setattr__(self, "edges", self._edges())

    def _edges(self) -> Quantiles | None:
        """What finds the cut points; None where all are given."""
        open_ones = [n for n in self.features if n not in self.categories and n not in self.cuts]
        levels = tuple(i / self.bins for i in range(1, self.bins))
        return Quantiles(tuple(open_ones), levels, 0.0, self.rule) if open_ones else None

    @property
    def terms(self) -> Terms:
        """What splits have to fulfil."""
        return Terms(self.rate, self.l2, self.gain, self.weight, float(self.rule.minimum))

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return reading(self.rule, *self.features, self.outcome)

    def start(self) -> Question:
        """Before the first round."""
        return {"phase": np.array(float(MOMENTS))}

    def ask(self, state: Question) -> Question | None:
        """The outcome's mean, its spread, cut points, then trees as far as they have grown."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        told = {"phase": state["phase"]}
        if phase == SPREAD:
            told["mean"] = state["mean"]
        if phase == EDGES and self.edges is not None:
            asked = self.edges.ask(_under(_EDGE, state)) or {}
            told.update({_EDGE + name: value for name, value in asked.items()})
        if phase == GROW:
            told.update({name: state[name] for name in (*_GIVEN, *_GROWN) if name in state})
        return told

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """What a site adds."""
        phase = int(question["phase"])
        if phase == EDGES and self.edges is not None:
            return self.edges.sums(_under(_EDGE, question), data, site=site, sites=sites)
        if phase != GROW:
            return self._outcome(question, data)
        trees, unit = self._told(question)
        level, width = int(question["level"]), trees.width
        rows = self._rows(trees, data, site)
        rows.advance(trees, unit)
        told = {}
        if level <= 0:
            kept = float(rows.kept.sum())
            told["losses"] = rows.losses(unit)
            told["rows"] = np.array([len(rows.outcome) - kept, kept])
        if level >= 0:
            own = (question["split"][-1], question["left"][-1])
            told["cells"] = rows.sums(*own, level, width)
        return told

    def _outcome(self, question: Question, data: Columns) -> Question:
        y = numbers(data, self.outcome)
        y = y[~np.isnan(y)]
        if int(question["phase"]) == SPREAD:
            return {"squares": np.array([((y - question["mean"]) ** 2).sum()])}
        if self.loss == "logistic" and not np.isin(y, (0.0, 1.0)).all():
            raise misfit(self.outcome, "holds other values than 0 and 1", "use loss = squared")
        return {"moments": np.array([float(len(data[self.outcome])), float(len(y)), y.sum()])}

    def _rows(self, trees: Trees, data: Columns, site: int) -> Rows:
        names = self.columns()
        return self.memo.of(site, data, names, lambda: self._prepared(trees, data, names))

    def _prepared(self, trees: Trees, data: Columns, names: Sequence[str]) -> Rows:
        present = ~np.isnan(data[self.outcome])
        chosen = {name: np.asarray(data[name])[present] for name in names}
        cells, y = cells_of(trees.columns, chosen), chosen[self.outcome]
        person = chosen[self.rule.person] if self.rule.person else None
        kept = drawn(cells, y, person, self.kept, self.seed)
        return Rows(cells, y, kept, shares(person, len(y)))

    def _told(self, told: Question) -> tuple[Trees, float]:
        """The trees that are whole, and the unit of derivatives."""
        base, unit = told["base"].tolist()
        split, left, value = (told[name][:-1] for name in ("split", "left", "value"))
        return Trees(self._columns(told), self.loss, base, split, left, value), unit

    def _columns(self, told: Question) -> tuple[Column, ...]:
        flat = told.get("cuts", np.zeros(0))
        ends = np.cumsum(told["counts"].astype(np.int64))
        return tuple(
            Column(name, flat[end - int(count) : end], tuple(self.categories.get(name, ())))
            for name, end, count in zip(self.features, ends, told["counts"], strict=True)
        )

    def learn(self, state: Question, totals: Question) -> Question:
        """The next state."""
        phase = int(state["phase"])
        if phase == MOMENTS:
            return self._begun(totals["moments"])
        if phase == SPREAD:
            return self._scaled(state, float(totals["squares"][0]))
        if phase == GROW:
            return self._grown(state, totals)
        edges = self.edges
        if edges is None:
            return self._planted(state, {})
        inner = edges.learn(_under(_EDGE, state), totals)
        if edges.ask(inner) is not None:
            kept = {name: value for name, value in state.items() if not name.startswith(_EDGE)}
            return kept | {_EDGE + name: value for name, value in inner.items()}
        found = edges.result(inner)
        return self._planted(state, dict(zip(found.columns, found.value, strict=True)))

    def _begun(self, moments: Array) -> Question:
        every, rows, total = moments.tolist()
        if not rows:
            raise DataError(f"column {self.outcome!r} is empty at all sites")
        if self.loss == "logistic" and not 0 < total < rows:
            raise DataError(f"column {self.outcome!r} holds one class only")
        least = self.rule.minimum
        if self.loss == "logistic" and min(total, rows - total) < least:
            raise Forbidden(f"a class of {self.outcome!r} has fewer than {least} rows")
        return {
            "phase": np.array(float(SPREAD)),
            "mean": np.array([total / rows]),
            "seen": np.array([rows, every - rows]),
        }

    def _scaled(self, state: Question, squares: float) -> Question:
        """The number before the first tree, and the unit: a power of two near the spread."""
        mean, rows = float(state["mean"][0]), float(state["seen"][0])
        base, unit = float(np.log(mean / (1 - mean))) if self.loss == "logistic" else mean, 1.0
        if self.loss == "squared":
            spread = np.sqrt(squares / rows)
            if not spread > 1e-14 * abs(mean):
                raise DataError(f"column {self.outcome!r} is constant")
            unit = float(2.0 ** np.rint(np.log2(spread)))
            # What the order of additions did to the mean is rounded off.
            base = float(np.rint(mean / unit * 2.0**20) * unit / 2.0**20)
        following = {**state, "base": np.array([base, unit]), "phase": np.array(float(EDGES))}
        edges = self.edges
        if edges is None:
            return self._planted(following, {})
        return following | {_EDGE + name: value for name, value in edges.start().items()}

    def _planted(self, state: Question, found: Mapping[str, Array]) -> Question:
        """Cut points are known: the first tree may grow."""
        cuts = []
        for name in self.features:
            points = np.asarray(self.cuts.get(name, found.get(name, ())), np.float64)
            single = np.unique(points[np.isfinite(points)].astype(np.float32))
            cuts.append(np.zeros(0) if name in self.categories else single.astype(np.float64))
        flat = np.concatenate(cuts)
        following = {
            "phase": np.array(float(GROW)),
            "seen": state["seen"],
            "base": state["base"],
            "counts": np.array([float(len(points)) for points in cuts]),
            **({"cuts": flat} if len(flat) else {}),
        }
        width = width_of(self._columns(following))
        inner = 2**self.depth - 1
        words = packed(np.zeros(width, bool)).size
        return following | {
            "split": np.full((1, inner), -1.0),
            "left": np.zeros((1, inner, words)),
            "value": np.zeros((1, 2 * inner + 1)),
            "gain": np.zeros((1, inner)),
            "level": np.array(0.0),
        }

    def _grown(self, state: Question, totals: Question) -> Question:
        level = int(state["level"])
        following = dict(state)
        if level <= 0:
            self._judge(following, totals)
            if level < 0 or self._tired(following["losses"]):
                return following | {"phase": np.array(float(DONE))}
        cells = totals["cells"]
        if level:
            cells = _children(state["cells"], cells)
        columns = self._columns(state)
        found = best_splits(
            cells,
            np.array([column.cells for column in columns]),
            np.array([bool(column.levels) for column in columns]),
            self.terms,
        )
        tree = {n: state[n][-1].copy() for n in ("split", "left", "value", "gain")}
        for place, split in enumerate(found, 2**level - 1):
            if split is not None:
                tree["split"][place] = split.column
                tree["left"][place] = packed(split.goes_left)
                tree["gain"][place] = split.gain
                tree["value"][2 * place + 1] = self.terms.leaf(split.left)
                tree["value"][2 * place + 2] = self.terms.leaf(split.right)
        split_any = any(split is not None for split in found)
        following |= {n: np.concatenate([state[n][:-1], grown[None]]) for n, grown in tree.items()}
        if split_any and level + 1 < self.depth:
            gone = np.array([split is None for split in found])
            parents = np.where(gone[:, None, None, None], 0.0, cells)
            return following | {"cells": parents, "level": np.array(level + 1.0)}
        following.pop("cells", None)
        if not split_any and level == 0:
            return following | {"phase": np.array(float(DONE))}
        for name in tree:  # room for the next one
            blank = np.full_like(tree[name], -1.0 if name == "split" else 0.0)
            following[name] = np.concatenate([following[name], blank[None]])
        last = len(following["split"]) > self.trees
        return following | {"level": np.array(-1.0 if last else 0.0)}

    def _judge(self, following: dict[str, Array], totals: Question) -> None:
        """Note the mean losses of the trees that are whole."""
        rows = totals["rows"]
        least = self.rule.minimum
        if self.kept and rows.min() < max(least, 1):
            raise Forbidden(
                f"fewer than {max(least, 1)} rows are kept aside, or left to train on",
                remedy="keep another part aside, or none",
            )
        own = (totals["losses"] / np.maximum(rows, 1.0))[None]
        before = following.get("losses")
        following["losses"] = own if before is None else np.concatenate([before, own])
        following["rows"] = rows

    def _tired(self, losses: Array) -> bool:
        return (
            bool(self.patience) and len(losses) - 1 - int(np.argmin(losses[:, 1])) >= self.patience
        )

    def result(self, state: Question) -> Boosted:
        """The trees, up to the best one where patience ended them."""
        trees, _ = self._told(state)
        losses, notes = state["losses"], []
        rows, excluded = int(state["rows"].sum()), int(state["seen"][1])
        if excluded:
            notes.append(f"{excluded} rows have no outcome and were left out")
        empty = [c.name for c in trees.columns if not c.levels and not len(c.cuts)]
        notes += [f"column {name!r} has too few values to be cut" for name in empty]
        if self.patience and self._tired(losses):
            trees = trees.first(int(np.argmin(losses[:, 1])))
            notes.append(
                f"the trees after {len(trees)} lowered the loss no more, and were left out"
            )
        elif len(trees) < self.trees:
            notes.append(f"after {len(trees)} trees no split was left that gains and is allowed")
        count = len(trees)
        return Boosted(
            trees=trees,
            gain=state["gain"][:count],
            losses=losses[: count + 1, 0],
            kept_losses=losses[: count + 1, 1] if self.kept else np.zeros(0),
            rows=int(state["rows"][0]),
            kept=rows - int(state["rows"][0]),
            excluded=excluded,
            notes=tuple(notes),
        )

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows with an outcome, and of each feature those with a value."""
        return [Released((n,), ~np.isnan(data[n])) for n in (self.outcome, *self.features)]


def _under(prefix: str, arrays: Question) -> dict[str, Array]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _children(parents: Array, left: Array) -> Array:
    """Sums of both children of each parent, side by side; a parent that stays whole is zeros."""
    both = np.stack([left, parents - left], axis=1)
    return both.reshape(2 * len(parents), *parents.shape[1:])
