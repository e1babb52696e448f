"""Linear models of many clients trained side by side: a step of all of them is one product.

What a step of a small model costs is its calls, not its arithmetic. Clients that start from the same
vector and take the same kind of steps are therefore stacked: batches ``(clients, n, features)``,
weights ``(clients, outputs, features)``. Clients are sorted by the length of their passes, so those
that still have a batch are the first ones; rows a batch lacks are zeros that count nothing. Outputs lie
in front, ``(outputs, clients, rows)``: what runs over classes then runs over whole matrices. Losses are
formed for all steps of a chunk at once, from the outputs that the steps leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from atoll.core.layout import Array, dtype_name
from atoll.core.values import freeze
from atoll.models.scores import sigmoid

__all__ = ["Passes", "Stack", "residual"]

_GATHER = 1 << 18
"""Values gathered at a time."""
_COURSES = 4
"""Kinds of passes that are kept ready: whole ones, and a last one that ends early."""

Passes = Sequence[Array]
"""For each client the rows of one pass in their order; no client has more rows than the one before."""


def residual(kind: str, z: Array, y: Array) -> Array:
    """Loss of each row, without penalty; ``z`` becomes its derivative by z.

    Args:
        kind: ``linear``, ``logistic`` or ``multinomial``; see :mod:`atoll.models.linear`.
        z: outputs, ``(..., outputs, n)``; overwritten.
        y: targets of that shape, classes of ``multinomial`` as one-hot.

    Returns:
        ``(..., n)``.
    """
    if kind == "linear":
        z -= y
        loss = z[..., 0, :] ** 2
        z *= 2.0
        return np.asarray(loss)
    if kind == "logistic":
        loss = np.logaddexp(0, z) - y * z
        np.subtract(sigmoid(z), y, out=z)
        return np.asarray(loss[..., 0, :])
    # Ufunc reductions called directly and in place: in a small batch the calls are the cost.
    z -= np.maximum.reduce(z, axis=-2, keepdims=True)
    own = np.add.reduce(z * y, axis=-2)
    np.exp(z, out=z)
    total = np.add.reduce(z, axis=-2, keepdims=True)
    z /= total
    z -= y
    return np.asarray(np.log(total[..., 0, :]) - own)


def _slope(kind: str, at: _Step) -> None:
    """Derivative of a step's mean batch losses by its outputs, into ``at.slope``."""
    z, share, out = at.z, at.share, at.slope
    if kind == "linear":
        np.multiply(z, share, out)
        np.subtract(out, at.aim, out)
        np.multiply(out, 2.0, out)
    elif kind == "logistic":
        np.negative(z, out)
        np.exp(out, out)
        np.add(out, 1.0, out)
        np.divide(share, out, out)
        np.subtract(out, at.aim, out)
    else:
        np.subtract(z, np.maximum.reduce(z, 0), z)
        np.exp(z, out)
        np.multiply(out, share / np.add.reduce(out, 0, out=at.total), out)
        np.subtract(out, at.aim, out)


def _losses(kind: str, chunk: _Chunk) -> Array:
    """Sum over a client's rows of loss times share, ``(k,)``, from what the steps left."""
    z, y = chunk.z, chunk.hot
    if kind == "linear":
        each = (z[0] - y[0]) ** 2
    elif kind == "logistic":
        each = (np.logaddexp(0, z) - y * z)[0]
    else:
        each = np.log(chunk.total)
        each -= np.add.reduce(z * y, 0)
    each *= chunk.share
    return np.asarray(np.add.reduce(each, 1, np.float64))


@lru_cache(maxsize=32)
def _shares(left: tuple[int, ...], count: int, size: int, dtype: str) -> Array:
    """One over the rows of its batch for each of ``count`` rows, 0 behind a pass's end: ``(k, count)``."""
    ends, here = np.array(left)[:, None], np.arange(count)
    rows = np.clip(ends - here // size * size, 1, size)
    return freeze(np.where(here < ends, 1.0 / rows, 0.0).astype(dtype))


class _Step(NamedTuple):
    """Where one step of the first k clients finds what it reads, and leaves what it makes.

    Args:
        w, b: weights ``(k, outputs, features)`` and intercepts ``(outputs, k, 1)``, perhaps none.
        into, into_b: their gradients; those of the intercepts ``(outputs, k)``.
        vectors, slopes: both together as vectors, and their gradients, ``(k, d)``.
        x, columns: rows ``(k, n, features)``, and the same transposed.
        z, outer: outputs ``(outputs, k, n)``, and the same with clients in front.
        slope, back: their derivatives likewise.
        share, aim, total: parts of the chunk's.
    """

    w: Array
    b: Array
    into: Array
    into_b: Array
    vectors: Array
    slopes: Array
    x: Array
    columns: Array
    z: Array
    outer: Array
    slope: Array
    back: Array
    share: Array
    aim: Array
    total: Array


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Room for the rows of some consecutive batches, and the steps that go over it.

    Args:
        first: place of its first row in a pass.
        parts: for each client the rows ``(n_i, features)`` and labels ``(n_i,)`` it has in here.
        labels: ``(k, n)``; 0 behind a pass's end, where rows are 0 too.
        hot: targets ``(outputs, k, n)``, classes as one-hot.
        share: what a row counts in its batch's mean, ``(k, n)``.
        aim: targets times share.
        z: outputs; of classes without their maximum, so that no exponential overflows.
        total: sum of those exponentials over the classes, ``(k, n)``.
        steps: see :class:`_Step`.
    """

    first: int
    parts: Sequence[tuple[Array, Array]]
    labels: Array
    hot: Array
    share: Array
    aim: Array
    z: Array
    total: Array
    steps: Sequence[_Step]


@dataclass(frozen=True, eq=False)
class Stack:
    """Clients side by side: their rows, their models, and how losses are formed.

    What a pass needs besides is made when a pass of its lengths first comes, and kept where the whole
    pass is in the cache at once: views of arrays cost as much as the arithmetic of a small batch.

    Args:
        kind: see :func:`residual`.
        outputs: values of z per row.
        l2: coefficient of the penalty on the weights.
        rows: features of each client, ``(n_i, features)``, no client with more than the one before.
        targets: targets of each client, ``(n_i,)``.
        vectors: weights, then intercepts if there are any, of each client, ``(clients, d)``; trained
            in place.
    """

    kind: str
    outputs: int
    l2: float
    rows: Sequence[Array]
    targets: Sequence[Array]
    vectors: Array
    _kept: dict[tuple[tuple[int, ...], int], _Chunk] = field(default_factory=dict)

    @cached_property
    def slopes(self) -> Array:
        """Gradients of the last step, ``(clients, d)``."""
        return np.zeros_like(self.vectors)

    def train(self, passes: Passes, size: int, step: Callable[[Array, Array], None]) -> Array:
        """Take one pass over the rows, a step for every batch.

        Args:
            passes: rows of each client, in the order of the clients.
            size: rows of a batch.
            step: moves the first of the clients given their vectors and gradients, both ``(k, d)``.

        Returns:
            Sum over a client's steps of its mean batch loss with penalty, ``(clients,)``.
        """
        losses = np.zeros(len(self.vectors))
        for chunk in self._chunks(tuple(map(len, passes)), size):
            self._fill(chunk, passes)
            own = losses[: len(chunk.share)]
            for at in chunk.steps:
                self._step(at, step, own)
            own += _losses(self.kind, chunk)
        return losses

    def _step(self, at: _Step, step: Callable[[Array, Array], None], losses: Array) -> None:
        """Take one step, leave its outputs in the chunk, and add its penalties."""
        np.matmul(at.w, at.columns, at.outer)
        if at.b.size:
            np.add(at.z, at.b, at.z)
        _slope(self.kind, at)
        np.matmul(at.back, at.x, at.into)
        if at.b.size:
            np.add.reduce(at.slope, 2, out=at.into_b)
        if self.l2:
            np.add(at.into, self.l2 * at.w, at.into)
            losses[: len(at.w)] += 0.5 * self.l2 * np.einsum("kof,kof->k", at.w, at.w)
        step(at.vectors, at.slopes)

    def _fill(self, chunk: _Chunk, passes: Passes) -> None:
        """Bring in each client's rows in the order of its pass."""
        for (x, y), order, rows, targets in zip(
            chunk.parts, passes, self.rows, self.targets, strict=False
        ):
            here = order[chunk.first : chunk.first + len(y)]
            # Row numbers are in range; mode "raise" would copy all once more to see that first.
            targets.take(here, 0, y, "clip")
            if rows.dtype == x.dtype:
                rows.take(here, 0, x, "clip")
            else:
                x[...] = rows.take(here, 0)
        if self.kind == "multinomial":
            np.equal(chunk.labels, np.arange(self.outputs)[:, None, None], chunk.hot)
        else:
            chunk.hot[0] = chunk.labels
        np.multiply(chunk.hot, chunk.share, chunk.aim)

    def _chunks(self, lengths: tuple[int, ...], size: int) -> Iterator[_Chunk]:
        """Room for the batches in their order, as many at a time as stay in the cache."""
        if (kept := self._kept.get((lengths, size))) is not None:
            yield kept
            return
        features = self.rows[0].shape[1]
        many = max(1, _GATHER // (len(lengths) * size * features)) * size
        for first in range(0, lengths[0], many):
            left = [length - first for length in lengths if length > first]
            chunk = self._chunk(left, first, min(many, left[0]), size)
            if lengths[0] <= many and len(self._kept) < _COURSES:
                self._kept[lengths, size] = chunk
            yield chunk

    def _chunk(self, left: Sequence[int], first: int, count: int, size: int) -> _Chunk:
        """Room for ``count`` rows of clients that have so many ``left``, with the steps over it."""
        k, features, dtype = len(left), self.rows[0].shape[1], self.vectors.dtype
        cut = self.outputs * features
        share = _shares(tuple(left), count, size, dtype_name(dtype))
        x = np.zeros((k, count, features), dtype)
        labels = np.zeros((k, count), self.targets[0].dtype)
        z, aim, hot = (np.zeros((self.outputs, k, count), dtype) for _ in range(3))
        room, total = np.empty((self.outputs, k, min(size, count)), dtype), np.ones_like(share)
        w, into = (
            v[:, :cut].reshape(-1, self.outputs, features) for v in (self.vectors, self.slopes)
        )
        b, into_b = (v[:, cut:].T for v in (self.vectors, self.slopes))
        steps = list[_Step]()
        for start in range(0, count, size):
            while left[k - 1] <= start:
                k -= 1
            own = slice(start, start + size)
            rows, outputs = x[:k, own], z[:, :k, own]
            slope = room[:, :k, : outputs.shape[2]]
            steps.append(
                _Step(
                    w=w[:k],
                    b=b[:, :k, None],
                    into=into[:k],
                    into_b=into_b[:, :k],
                    vectors=self.vectors[:k],
                    slopes=self.slopes[:k],
                    x=rows,
                    columns=rows.transpose(0, 2, 1),
                    z=outputs,
                    outer=outputs.transpose(1, 0, 2),
                    slope=slope,
                    back=slope.transpose(1, 0, 2),
                    share=share[:k, own],
                    aim=aim[:, :k, own],
                    total=total[:k, own],
                )
            )
        taken = [min(n, count) for n in left]
        parts = [(x[i, :n], labels[i, :n]) for i, n in enumerate(taken)]
        return _Chunk(first, parts, labels, hot, share, aim, z, total, steps)
