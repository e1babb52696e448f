"""Linear, logistic and multinomial regression in plain NumPy, with gradients in closed form.

With rows x_i, weights W, intercept b and z_i = W x_i + b, the mean loss over n rows is

* ``linear``       (1/n) sum (z_i - y_i)^2
* ``logistic``     (1/n) sum log(1 + exp(z_i)) - y_i z_i,  y_i in {0, 1}
* ``multinomial``  (1/n) sum log sum_c exp(z_ic) - z_i,y_i

plus ``(l2 / 2) |W|^2``; the intercept is never penalised. All start at zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from atoll.core.contracts import Lane, Together
from atoll.core.errors import DataError, JobConflict
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metrics
from atoll.core.ranges import check
from atoll.core.seeds import Seed
from atoll.models.batches import full_batch, learning_rate, order, passes
from atoll.models.linear_stack import Held, Stack, alike, residual
from atoll.models.optimizers import OPTIMIZERS, Step, flat_optimizer
from atoll.models.scores import check_labels, classification_scores, hits, regression_scores

__all__ = ["LinearTrainer", "one_a_row"]

_KINDS = ("linear", "logistic", "multinomial")
_PRODUCT = 9000
"""Values of a matrix handed to BLAS at a time. OpenBLAS splits larger products among threads, and
the last bits would then depend on how many there are: serial and worker processes must agree."""
_GATHER = 1 << 16
"""Values gathered at a time, for as many small batches as that is: they stay in the cache."""

_ONES = {dtype: np.ones(_PRODUCT, dtype) for dtype in ("float32", "float64")}
"""A product with ones sums the few rows of a batch in half the time of a reduction."""
_STACK = 1 << 15
"""Values that a step of all clients trained side by side reads at most: they stay in the cache."""

_Block = tuple[Array, Array]
"""Rows ``(n, features)`` and targets ``(outputs, n)`` in the trainer's dtype; classes as one-hot."""


class _Affine:
    """A vector (weights or their gradient) seen as a matrix with a column of intercepts.

    A model with a single output is one with a matrix of one row, so all kinds share their lines.
    """

    def __init__(self, vector: Array, layout: Layout, features: int) -> None:
        views = layout.views(vector)
        self.vector = vector
        self.weight = views["weight"].reshape(-1, features)
        self.intercept = views["intercept"].reshape(-1, 1) if "intercept" in views else None

    def outputs(self, rows: Array) -> Array:
        """z, ``(outputs, n)``."""
        z: Array = np.dot(self.weight, rows.T)
        if self.intercept is not None:
            z += self.intercept
        return z


_FIGURES = ("accuracy", "loss")
"""Of single rows; the first is for classes only."""


def one_a_row(targets: Any) -> Array:
    """Targets ``(n,)``, of as many or of a single column ``(n, 1)``; others as they are."""
    found = np.asarray(targets)
    return found[:, 0] if found.shape[1:] == (1,) else found


@dataclass(frozen=True, eq=False)
class LinearTrainer:
    """A linear model behind the :class:`~atoll.core.contracts.Trainer` contract, without torch.

    Entries: ``weight``, ``(features,)`` or ``(classes, features)``, and ``intercept``, ``()`` or
    ``(classes,)``. The loss of :meth:`fit` and :meth:`gradient` holds the penalty; that of
    :meth:`evaluate` is of the rows alone, so that it merges over sites.

    Args:
        kind: ``linear``, ``logistic`` (labels 0 and 1, one weight vector) or ``multinomial``.
        features: values per row; rows of another shape are flattened.
        classes: C, for ``multinomial``.
        l2: coefficient of the penalty ``l2 / 2 * |W|^2``.
        intercept: whether there is one.
        dtype: of the vector and the arithmetic, ``float32`` or ``float64``.
        exact_auc: see :func:`atoll.models.scores.classification_scores`.
        personal: patterns of entries that stay at the client.

    >>> from atoll.core.contracts import Examples
    >>> trainer = LinearTrainer("linear", 1, intercept=False)
    >>> rows = Examples(np.array([[1.0], [2.0]]), np.array([2.0, 4.0]))
    >>> trainer.gradient(np.array([1.0]), rows)
    (array([-5.]), 2.5)
    """

    kind: Literal["linear", "logistic", "multinomial"]
    features: int
    classes: int = 2
    l2: float = 0.0
    intercept: bool = True
    dtype: str = "float64"
    exact_auc: bool = True
    personal: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown kind, a penalty below 0, and what is of another kind.

        Raises:
            JobError: with every such option.
        """
        check(
            self,
            "model",
            kind=_KINDS,
            features="whole [0, inf)",
            classes="whole [1, inf)",
            l2="[0, inf)",
            intercept="bool",
            exact_auc="bool",
        )

    @property
    def corrects(self) -> bool:
        """True: local rules are applied."""
        return True

    @property
    def optimizers(self) -> Collection[str]:
        """Names of the local optimisers that there are."""
        return OPTIMIZERS

    @cached_property
    def layout(self) -> Layout:
        """``weight`` and, if there is one, ``intercept``."""
        outputs = (self.classes,) if self.kind == "multinomial" else ()
        entries = [Entry("weight", (*outputs, self.features), self.dtype)]
        if self.intercept:
            entries.append(Entry("intercept", outputs, self.dtype))
        return Layout.of(entries, personal=self.personal, dtype=self.dtype)

    def initial(self, seed: Seed) -> Array:
        """Zeros, whatever the seed."""
        return np.zeros(self.layout.size, self.dtype)

    def fit(
        self,
        parameters: Array,
        data: Any,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        """Train from ``parameters``; see :class:`~atoll.core.local.LocalWork` for the steps.

        Each step: gradient of the batch, clipping, the rule's correction, the optimiser.

        Raises:
            DataError: no rows, another number of features, or labels outside the classes.
        """
        self.layout.check(parameters, what="parameters")
        rows, targets = self._examples(data)
        vector, gradient = parameters.copy(), np.zeros(self.layout.size, self.dtype)
        model, slope = self._affine(vector), self._affine(gradient)
        step = flat_optimizer(work.optimizer)
        part = self.layout.shared_trainable
        anchor, shift = self._corrections(rule)
        losses, rates = list[float](), list[float]()
        with np.errstate(all="ignore"):  # a diverged client is refused by name at the aggregator
            for epoch, order, size in passes(len(targets), work, seed):
                lr = learning_rate(work, round=round, epoch=epoch)
                for n, blocks in self._batches(rows, targets, order, size):
                    losses.append(self._slope(model, n, blocks, slope))
                    if work.clip_norm:
                        norm = math.sqrt(float(np.sum(gradient * gradient)))
                        gradient *= min(1.0, work.clip_norm / (norm + 1e-6))
                    if not rule.trivial:
                        rule.correct(gradient[part], vector[part], anchor, shift)
                    step(vector, gradient, lr)
                    rates.append(lr)
        mean = sum(losses) / len(losses) if losses else math.nan
        return Fit(vector, len(losses), sum(rates), len(targets), mean)

    def together(self, work: LocalWork, rows: int, *, clients: int | None = None) -> int:
        """How many clients of up to ``rows`` rows are trained side by side; 1 where that does not pay.

        Only plain SGD by epochs is: momentum would have to be kept for clients whose pass is over.
        """
        values = self._batch(work, rows)
        return 1 if self._why_alone(work, values) else _STACK // values

    def _batch(self, work: LocalWork, rows: int) -> int:
        """Values of a batch and its outputs at a client of so many rows."""
        return full_batch(max(1, rows), work) * (self.features + self.classes)

    def _why_alone(self, work: LocalWork, values: int) -> str:
        """Why clients with batches of so many values are trained one by one; empty where they need not be."""
        o = work.optimizer
        if o.name != "sgd":
            return f"{o.name} is not plain SGD"
        if o.momentum:
            return f"momentum {o.momentum}"
        if work.steps is not None:
            return f"{work.steps} steps are asked for, not epochs"
        return f"a batch of {values} values, more than {_PRODUCT}" if values > _PRODUCT else ""

    def explain(self, work: LocalWork, data: Any, *, sums: bool = True) -> str:
        """Whether clients with rows like these are trained side by side, and if not, why.

        Args:
            work: the local work.
            data: one client's rows.
            sums: whether the algorithm wants no more than sums over a group, and nothing is personal.
        """
        rows = len(data)
        values = self._batch(work, rows)
        alone = self._why_alone(work, values) if sums else "single clients' models are wanted"
        return (
            f"one by one: {alone}"
            if alone
            else f"stacked, {self.together(work, rows)} clients at once"
        )

    def fit_together(self, parameters: Array, lanes: Sequence[Lane], *, round: int) -> Together:
        """Train every lane from ``parameters`` and add up their changes.

        Each lane takes the steps of :meth:`fit`; sums are formed in another order.

        Raises:
            DataError: a client's rows are not those of the model.
            JobConflict: the lanes differ in their local work or rule, or part of the model is personal.
        """
        self.layout.check(parameters, what="parameters")
        if self.layout.shared.stop < self.layout.size:
            raise JobConflict("clients with a personal part are trained one by one")
        first = lanes[0]
        work, rule = first.work, first.rule
        if not all(alike(lane, first) for lane in lanes):
            raise JobConflict("clients with different local work are trained one by one")
        # Taken away while it is in use: what runs meanwhile in another thread makes its own.
        held: Held | None = self.__dict__.pop("_held", None)
        if held is None or not held.of(lanes):
            held = self._hold(lanes)
        turn, vectors, cuts = held.turn, held.stack.vectors, held.plans(work)
        seeds = [lanes[i].seed for i in turn]
        vectors[...] = parameters
        losses = np.zeros(len(lanes))
        step = self._stacked_step(work, rule)
        with np.errstate(all="ignore"):  # a diverged client is refused by name at the aggregator
            for epoch in range(cuts[0].epochs):
                orders = [order(cut, seed, epoch) for cut, seed in zip(cuts, seeds, strict=True)]
                lr = learning_rate(work, round=round, epoch=epoch)
                losses += held.stack.train(orders, cuts[0].size, step, lr)
            moved = np.subtract(vectors, parameters, dtype=np.float64)
            moved *= held.weighed(lanes)
            change = np.add.reduce(moved, 0).astype(self.dtype)
        steps, means = [0] * len(lanes), [math.nan] * len(lanes)
        for i, cut, loss in zip(turn, cuts, losses.tolist(), strict=True):
            if cut.steps:
                steps[i], means[i] = cut.steps, loss / cut.steps
        self.__dict__["_held"] = held
        return Together(change, steps, means)

    def _hold(self, lanes: Sequence[Lane]) -> Held:
        """The lanes' rows, checked, side by side.

        Raises:
            JobConflict: targets are not one a row.
            DataError: see :meth:`fit`.
        """
        data: list[Any] = [lane.data for lane in lanes]
        if any(np.ndim(each.targets) != 1 for each in data):
            raise JobConflict("targets are not one a row")
        given = [self._pair(each) for each in data]
        self._check_all([targets for _, targets in given])
        counts = [len(targets) for _, targets in given]
        turn = sorted(range(len(lanes)), key=lambda i: -counts[i])
        outputs = self.classes if self.kind == "multinomial" else 1
        rows, targets = zip(*(given[i] for i in turn), strict=True)
        vectors = np.empty((len(lanes), self.layout.size), self.dtype)
        stack = Stack(self.kind, outputs, self.l2, rows, targets, vectors)
        return Held([lane.data for lane in lanes], counts, turn, stack)

    def __getstate__(self) -> dict[str, Any]:
        """What was made for the last group of clients does not travel."""
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    def _stacked_step(self, work: LocalWork, rule: LocalRule) -> Step:
        """What :meth:`fit` does with the gradient of a batch, for ``(clients, d)`` at once."""
        optimise, part = flat_optimizer(work.optimizer), self.layout.shared_trainable
        if rule.trivial and not work.clip_norm:
            return optimise
        anchor, shift = self._corrections(rule)

        def step(vectors: Array, slopes: Array, lr: float) -> None:
            if work.clip_norm:
                norms = np.sqrt(np.add.reduce(slopes * slopes, axis=1, keepdims=True))
                slopes *= np.minimum(1.0, work.clip_norm / (norms + 1e-6))
            if not rule.trivial:
                rule.correct(slopes[:, part], vectors[:, part], anchor, shift)
            optimise(vectors, slopes, lr)

        return step

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Gradient of the mean loss over all rows with its penalty, and that loss.

        Raises:
            DataError: as in :meth:`fit`.
        """
        rows, targets = self._examples(data)
        gradient, n = np.zeros(self.layout.size, self.dtype), len(targets)
        with np.errstate(all="ignore"):
            blocks = self._blocks(rows, targets)
            loss = self._slope(self._affine(parameters), n, blocks, self._affine(gradient))
        return gradient, loss

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """``loss``, and accuracy, confusion and auc, or mse, mae and r2."""
        if len(data) == 0:
            return {"loss": Mean.of(0.0, 0.0)}
        rows, targets = self._examples(data)
        model, parts, loss = self._affine(parameters), list[Array](), 0.0
        with np.errstate(all="ignore"):
            for x, y in self._blocks(rows, targets):
                z = model.outputs(x)
                parts.append(z.T.copy())
                loss += float(np.add.reduce(residual(self.kind, z, y)))
            outputs = np.concatenate(parts)
            if self.kind == "linear":
                found = regression_scores(targets, outputs[:, 0])
            else:
                found = classification_scores(targets, outputs, exact_auc=self.exact_auc)
        return {"loss": Mean.of(loss / len(targets), len(targets)), **found}

    def per_row(self, parameters: Array, data: Any) -> dict[str, Array]:
        """``loss`` of each row, and for classes ``accuracy``: whether it was right. Each ``(n,)``."""
        if len(data) == 0:
            return dict.fromkeys(_FIGURES[self.kind == "linear" :], np.zeros(0))
        rows, targets = self._examples(data)
        model, losses = self._affine(parameters), list[Array]()
        outputs = list[Array]()
        with np.errstate(all="ignore"):
            for x, y in self._blocks(rows, targets):
                z = model.outputs(x)
                outputs.append(z.T.copy())
                losses.append(residual(self.kind, z, y))
        found = {"loss": np.concatenate(losses)}
        if self.kind != "linear":
            found["accuracy"] = hits(targets, np.concatenate(outputs))
        return found

    def _examples(self, data: Any) -> tuple[Array, Array]:
        rows, targets = self._pair(data)
        self._check(targets)
        return rows, targets

    def _check_all(self, targets: Sequence[Array]) -> None:
        """All clients' labels in one go: a look at each client costs as much as one of its steps."""
        try:
            self._check(np.concatenate(targets))
        except DataError:
            for own in targets:
                self._check(own)  # names the row at the client it is of
            raise

    def _check(self, targets: Array) -> None:
        """Refuse labels outside the classes."""
        if self.kind != "linear":
            check_labels(targets, self.classes if self.kind == "multinomial" else 2)

    def _pair(self, data: Any) -> tuple[Array, Array]:
        """Rows ``(n, features)`` and targets, whose labels are still to be checked."""
        rows = np.asarray(data.features)
        targets = one_a_row(data.targets)
        if not len(targets):
            raise DataError("the client has no rows", remedy="leave it out of the cohort")
        flat = rows.reshape(len(rows), -1)
        if flat.shape[1] != self.features or len(flat) != len(targets):
            raise DataError(
                f"features of shape {rows.shape} with {len(targets)} targets; "
                f"the model takes {self.features} values per row",
                remedy="check the declared columns",
            )
        if self.kind == "linear":
            return flat, targets.astype(self.dtype, copy=False)
        if targets.dtype.kind == "f":  # the cast would make a number of a NaN
            self._check(targets)
        return flat, targets.astype(np.int64, copy=False)

    def _corrections(self, rule: LocalRule) -> tuple[Array | None, Array | None]:
        part = self.layout.shared_trainable
        anchor = None if rule.anchor is None else rule.anchor[part].astype(self.dtype, copy=False)
        shift = None if rule.shift is None else rule.shift[part].astype(self.dtype, copy=False)
        return anchor, shift

    def _affine(self, vector: Array) -> _Affine:
        return _Affine(vector, self.layout, self.features)

    def _batches(
        self, rows: Array, targets: Array, order: Array, size: int
    ) -> Iterator[tuple[int, Iterable[_Block]]]:
        """For each batch of ``order``, ``size`` rows but for the last, their number and blocks."""
        width = max(self.features, self.classes)
        many = max(1, _GATHER // (size * width)) * size
        if size * width > _PRODUCT:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                yield len(batch), self._blocks(rows, targets, batch)
            return
        for first in range(0, len(order), many):
            x, y = self._block(rows, targets, order[first : first + many])
            for start in range(0, len(x), size):
                own = slice(start, start + size)
                part = x[own]
                yield len(part), ((part, y[:, own]),)

    def _blocks(self, rows: Array, targets: Array, order: Array | None = None) -> Iterator[_Block]:
        """All rows (in ``order``) cut into blocks that BLAS does not split."""
        size = max(1, _PRODUCT // max(self.features, self.classes))
        for start in range(0, len(targets) if order is None else len(order), size):
            own = slice(start, start + size)
            yield self._block(rows, targets, own if order is None else order[own])

    def _block(self, rows: Array, targets: Array, own: slice | Array) -> _Block:
        if isinstance(own, slice):
            x, y = rows[own], targets[own]
        else:
            x, y = rows.take(own, 0), targets.take(own)
        if self.kind == "multinomial":
            hot = np.zeros((self.classes, len(y)), self.dtype)
            hot[y, np.arange(len(y))] = 1.0
        else:
            hot = y.astype(self.dtype, copy=False)[None]
        return x.astype(self.dtype, copy=False), hot

    def _slope(self, model: _Affine, n: int, blocks: Iterable[_Block], into: _Affine) -> float:
        """Write the gradient of the penalised mean loss of ``n`` rows into ``into``; returns that loss."""
        loss, ones, first = 0.0, _ONES[self.dtype], True
        weight, intercept = into.weight, into.intercept
        for x, y in blocks:
            z = model.outputs(x)
            loss += float(np.dot(residual(self.kind, z, y), ones[: len(x)]))
            if first:
                np.dot(z, x, out=weight)
                if intercept is not None:
                    np.dot(z, ones[: len(x), None], out=intercept)
            else:
                weight += np.dot(z, x)
                if intercept is not None:
                    intercept += np.dot(z, ones[: len(x), None])
            first = False
        into.vector /= n
        loss /= n
        if self.l2:
            weight += self.l2 * model.weight
            loss += 0.5 * self.l2 * float(np.vdot(model.weight, model.weight))
        return loss
