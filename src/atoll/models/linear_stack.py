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
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from atoll.core.layout import Array, dtype_name
from atoll.core.values import freeze
from atoll.models.scores import sigmoid

__all__ = ["Passes", "Stack", "residual"]

_GATHER = 1 << 18
"""Values gathered at a time."""

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


def _slope(kind: str, z: Array, target: Array, share: Array, out: Array) -> None:
    """Derivative of the mean batch loss by ``z`` into ``out``, all but ``share`` ``(outputs, k, n)``.

    Args:
        kind: see :func:`residual`.
        z: outputs.
        target: targets times ``share``.
        share: what each row counts in its batch, ``(k, n)``.
        out: overwritten.
    """
    if kind == "linear":
        np.multiply(z, share, out=out)
        out -= target
        out *= 2.0
    elif kind == "logistic":
        np.negative(z, out=out)
        np.exp(out, out=out)
        out += 1.0
        np.divide(share, out, out=out)
        out -= target
    else:
        np.subtract(z, np.maximum.reduce(z, axis=0), out=out)
        np.exp(out, out=out)
        out *= share / np.add.reduce(out, axis=0)
        out -= target


def _losses(kind: str, z: Array, chunk: _Chunk) -> Array:
    """Sum over a client's rows of loss times share, ``(k,)``; ``z`` is used up."""
    y, share = chunk.targets, chunk.share
    if kind == "linear":
        z -= y
        each = z[0] ** 2 * share
    elif kind == "logistic":
        each = (np.logaddexp(0, z) - y * z)[0] * share
    else:
        z -= np.maximum.reduce(z, axis=0)
        own = np.add.reduce(z * y, axis=0)
        each = (np.log(np.add.reduce(np.exp(z, out=z), axis=0)) - own) * share
    return np.asarray(np.add.reduce(each, axis=1, dtype=np.float64))


@lru_cache(maxsize=32)
def _shares(left: tuple[int, ...], count: int, size: int, dtype: str) -> Array:
    """One over the rows of its batch for each of ``count`` rows, 0 behind a pass's end: ``(k, count)``."""
    ends, here = np.array(left)[:, None], np.arange(count)
    rows = np.clip(ends - here // size * size, 1, size)
    return freeze(np.where(here < ends, 1.0 / rows, 0.0).astype(dtype))


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows of some consecutive batches: how many each client has left, and what is in them.

    Args:
        left: rows of each client, from the chunk's first one to the end of its pass, falling.
        rows: ``(k, n, features)``.
        targets: ``(outputs, k, n)``, classes as one-hot.
        share: what a row counts in its batch's mean, ``(k, n)``.
    """

    left: Sequence[int]
    rows: Array
    targets: Array
    share: Array


@dataclass(frozen=True, eq=False)
class Stack:
    """The rows of several clients and how their losses are formed.

    Args:
        kind: see :func:`residual`.
        outputs: values of z per row.
        l2: coefficient of the penalty on the weights.
        rows: features of each client, ``(n_i, features)``.
        targets: targets of each client, ``(n_i,)``.
    """

    kind: str
    outputs: int
    l2: float
    rows: Sequence[Array]
    targets: Sequence[Array]

    def train(
        self,
        vectors: Array,
        passes: Passes,
        size: int,
        step: Callable[[Array, Array], None],
    ) -> Array:
        """Take one pass over the rows, a step for every batch.

        Args:
            vectors: weights, then intercepts if there are any, of each client, ``(clients, d)``;
                trained in place.
            passes: rows of each client, in the order of the clients.
            size: rows of a batch.
            step: moves the first of the clients given their vectors and gradients, both ``(k, d)``.

        Returns:
            Sum over a client's steps of its mean batch loss with penalty, ``(clients,)``.
        """
        slopes, losses = np.zeros_like(vectors), np.zeros(len(vectors))
        for chunk in self._chunks(passes, size, dtype_name(vectors.dtype)):
            k, n = chunk.share.shape
            z = np.zeros((self.outputs, k, n), vectors.dtype)
            losses[:k] += self._steps(vectors[:k], slopes[:k], chunk, size, z, step)
            losses[:k] += _losses(self.kind, z, chunk)
        return losses

    def _steps(
        self,
        vectors: Array,
        slopes: Array,
        chunk: _Chunk,
        size: int,
        z: Array,
        step: Callable[[Array, Array], None],
    ) -> Array | float:
        """Take a chunk's steps, leave their outputs in ``z``; the sum of the penalties."""
        k, features = len(vectors), chunk.rows.shape[2]
        cut = self.outputs * features
        w, into = (v[:, :cut].reshape(k, self.outputs, features) for v in (vectors, slopes))
        b, into_b = (v[:, cut:].T for v in (vectors, slopes))
        share, aim = chunk.share, chunk.targets * chunk.share
        room, penalties = np.empty((self.outputs, k, size), z.dtype), np.zeros(k)
        for start in range(0, z.shape[2], size):
            while chunk.left[k - 1] <= start:
                k -= 1
            own = slice(start, start + size)
            x, zt = chunk.rows[:k, own], z[:, :k, own]
            np.matmul(w[:k], x.transpose(0, 2, 1), out=zt.transpose(1, 0, 2))
            if b.size:
                zt += b[:, :k, None]
            slope = room[:, :k, : zt.shape[2]]
            _slope(self.kind, zt, aim[:, :k, own], share[:k, own], slope)
            np.matmul(slope.transpose(1, 0, 2), x, out=into[:k])
            if b.size:
                np.add.reduce(slope, axis=2, out=into_b[:, :k])
            if self.l2:
                into[:k] += self.l2 * w[:k]
                penalties[:k] += 0.5 * self.l2 * np.einsum("kof,kof->k", w[:k], w[:k])
            step(vectors[:k], slopes[:k])
        return penalties

    def _chunks(self, passes: Passes, size: int, dtype: str) -> Iterator[_Chunk]:
        """The batches in their order, as many at a time as stay in the cache."""
        lengths = [len(order) for order in passes]
        features = self.rows[0].shape[1]
        many = max(1, _GATHER // (len(passes) * size * features)) * size
        for first in range(0, lengths[0], many):
            left = [length - first for length in lengths if length > first]
            yield self._gather(passes[: len(left)], left, first, min(many, left[0]), size, dtype)

    def _gather(
        self, passes: Passes, left: Sequence[int], first: int, count: int, size: int, dtype: str
    ) -> _Chunk:
        """``count`` rows of each pass from ``first`` on; zeros where one ends before."""
        k, features = len(passes), self.rows[0].shape[1]
        x = np.empty((k, count, features), dtype)
        y = np.empty((k, count), self.targets[0].dtype)
        for i, order in enumerate(passes):
            n, part = min(left[i], count), order[first : first + count]
            x[i, :n] = self.rows[i].take(part, 0)
            y[i, :n] = self.targets[i].take(part)
            if n < count:
                x[i, n:], y[i, n:] = 0, 0
        hot = y[None]
        if self.kind == "multinomial":
            hot = hot == np.arange(self.outputs)[:, None, None]
        share = _shares(tuple(left), count, size, dtype)
        return _Chunk(left, x, hot.astype(dtype, copy=False), share)
