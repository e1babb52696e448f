"""Linear models of many clients trained side by side: a step of all of them is one product.

What a step of a small model costs is its calls, not its arithmetic. Clients that start from the same
vector and take the same kind of steps are therefore stacked: batches ``(clients, n, features)``,
weights ``(clients, outputs, features)``. Clients are sorted by the length of their passes, so those
that still have a batch are the first ones; rows a batch lacks are zeros that count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.layout import Array
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
        features = self.rows[0].shape[1]
        cut = self.outputs * features
        slopes = np.zeros_like(vectors)
        w, into = (v[:, :cut].reshape(len(v), self.outputs, features) for v in (vectors, slopes))
        b, into_b = vectors[:, cut:, None], slopes[:, cut:]
        losses = np.zeros(len(vectors))
        for k, x, y, share in self._batches(passes, size, vectors.dtype.name):
            z = np.matmul(w[:k], x.transpose(0, 2, 1))
            if b.size:
                z += b[:k]
            each = residual(self.kind, z, y)
            losses[:k] += np.add.reduce(each * share, axis=1)
            z *= share[:, None]
            np.matmul(z, x, out=into[:k])
            if b.size:
                np.add.reduce(z, axis=2, out=into_b[:k])
            if self.l2:
                into[:k] += self.l2 * w[:k]
                losses[:k] += 0.5 * self.l2 * np.einsum("kof,kof->k", w[:k], w[:k])
            step(vectors[:k], slopes[:k])
        return losses

    def _batches(
        self, passes: Passes, size: int, dtype: str
    ) -> Iterator[tuple[int, Array, Array, Array]]:
        """For each step how many clients take it, their rows, targets, and what a row counts."""
        lengths = np.array([len(order) for order in passes])
        features = self.rows[0].shape[1]
        many = max(1, _GATHER // (len(passes) * size * features)) * size
        for first in range(0, int(lengths[0]), many):
            k = int(np.count_nonzero(lengths > first))
            x, y, share = self._gather(
                passes[:k], lengths[:k], slice(first, first + many), size, dtype
            )
            for start in range(0, x.shape[1], size):
                k = int(np.count_nonzero(lengths > first + start))
                own = slice(start, start + size)
                yield k, x[:k, own], y[:k, :, own], share[:k, own]

    def _gather(
        self, passes: Passes, lengths: Array, own: slice, size: int, dtype: str
    ) -> tuple[Array, Array, Array]:
        """Part ``own`` of each pass: rows, targets ``(k, outputs, n)``, and one over the batch."""
        here = np.arange(own.start, min(own.stop, int(lengths[0])))
        x = np.zeros((len(passes), len(here), self.rows[0].shape[1]), dtype)
        y = np.zeros((len(passes), len(here)), self.targets[0].dtype)
        for i, order in enumerate(passes):
            part = order[own]
            x[i, : len(part)] = self.rows[i].take(part, 0)
            y[i, : len(part)] = self.targets[i].take(part)
        left = lengths[:, None] - here // size * size
        share = np.where(here < lengths[:, None], 1.0 / np.clip(left, 1, size), 0.0)
        hot = y[:, None]
        if self.kind == "multinomial":
            hot = hot == np.arange(self.outputs)[:, None]
        return x, hot.astype(dtype, copy=False), share.astype(dtype, copy=False)
