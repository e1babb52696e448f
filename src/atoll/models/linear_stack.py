"""Linear models of many clients trained side by side: a step of all of them is one product.

What a step of a small model costs is its calls, not its arithmetic. Clients that start from the same
vector and take the same kind of steps are therefore stacked: batches ``(clients, n, features)``,
weights ``(clients, outputs, features)``. Clients are sorted by the length of their passes, so those
that still have a batch are the first ones; rows a batch lacks are zeros that count nothing. Outputs lie
in front, ``(outputs, clients, rows)``, and all of a step in one piece: an operation on memory that lies
apart, or on arrays of different shapes, takes two to three times as long. Losses are formed for all steps
of a chunk at once, from the outputs that the steps leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from atoll.core.contracts import Lane
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, dtype_name
from atoll.core.local import LocalWork
from atoll.core.values import freeze
from atoll.models.batches import Plan, plan
from atoll.models.scores import sigmoid

__all__ = ["Held", "Passes", "Stack", "alike", "residual"]

_GATHER = 1 << 18
"""Values gathered at a time."""
_COURSES = 4
"""Kinds of passes that are kept ready: whole ones, and a last one that ends early."""

_Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of NumPy and what it is called with, on memory that stays where it is."""

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


def _calls(kind: str, at: _Step) -> Iterator[_Call]:
    """What a step does, from rows and weights to gradients."""
    yield np.matmul, (at.w, at.columns, at.outer)
    if at.b.size:
        yield np.add, (at.z, at.b, at.z)
    yield from _slope(kind, at)
    yield np.matmul, (at.back, at.x, at.into)
    if at.b.size:
        yield np.add.reduce, (at.slope, 2, None, at.into_b)


def _slope(kind: str, at: _Step) -> Iterator[_Call]:
    """Derivative of a step's mean batch losses by its outputs, into ``at.slope``."""
    z, share, out = at.z, at.share, at.slope
    if kind == "linear":
        yield np.multiply, (z, share, out)
        yield np.subtract, (out, at.aim, out)
        yield np.multiply, (out, 2.0, out)
    elif kind == "logistic":
        yield np.negative, (z, out)
        yield np.exp, (out, out)
        yield np.add, (out, 1.0, out)
        yield np.divide, (share, out, out)
        yield np.subtract, (out, at.aim, out)
    else:
        yield _across(np.maximum, z, at.outputs, at.room)
        yield from _every(np.subtract, z, at.outputs, at.room)
        yield np.exp, (z, out)
        yield _across(np.add, out, at.powers, at.total)
        yield np.divide, (share, at.total, at.room)
        yield from _every(np.multiply, out, at.powers, at.room)
        yield np.subtract, (out, at.aim, out)


def _across(ufunc: np.ufunc, whole: Array, classes: Sequence[Array], out: Array) -> _Call:
    """A ufunc over the classes of ``whole``: of two, one operation in a third of a reduction's time."""
    if len(classes) == 2:
        return partial(ufunc, out=out), (classes[0], classes[1])
    return ufunc.reduce, (whole, 0, None, out)


def _every(ufunc: np.ufunc, whole: Array, classes: Sequence[Array], one: Array) -> Iterator[_Call]:
    """``whole``, of each class, with ``one`` for all: of two, an operation each takes less than one on both."""
    if len(classes) == 2:
        for own in classes:
            yield ufunc, (own, one, own)
    else:
        yield ufunc, (whole, one, whole)


def _losses(kind: str, chunk: _Chunk) -> Array:
    """Sum over a client's rows of loss times share, ``(k,)``, from what the steps left."""
    z, y, each = chunk.z, chunk.y, chunk.each
    if kind == "linear":
        np.subtract(z, y, each)
        np.square(each, each)
    elif kind == "logistic":
        np.subtract(np.logaddexp(0, z), y * z, each)
    else:
        np.log(chunk.total, each)
        z.take(chunk.own, 0, chunk.total, "clip")
        np.subtract(each, chunk.total, each)
    each *= chunk.share
    for own, part in chunk.turned:
        own[...] = part
    return np.asarray(np.add.reduce(chunk.losses, 1, np.float64))


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
        outputs, powers: ``z`` and ``slope`` of each class, ``(k, n)``.
        room: for what lives no longer than the step, ``(k, n)``.
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
    outputs: Sequence[Array]
    powers: Sequence[Array]
    room: Array


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Room for the rows of some consecutive batches, and the steps that go over it.

    What there is for each row lies in the order of the steps: batch after batch, in a batch client after
    client, N in all. Of each client in turn are only rows, labels, and losses in the end.

    Args:
        first: place of its first row in a pass.
        parts: for each client the rows ``(n_i, features)`` and labels ``(n_i,)`` it has in here.
        labels: ``(k, n)``; 0 behind a pass's end, where rows are 0 too.
        places: where in ``labels`` the N rows are found.
        y: targets ``(N,)`` that are no classes.
        own: where in ``z`` the output of a row's own class lies, ``(N,)``.
        zeroth, apart: where that of the first class lies, and how far it is to the next one, ``(N,)``.
        share: what a row counts in its batch's mean, ``(N,)``.
        aim: targets times share, classes as one-hot; in the order of ``z``.
        z: outputs, step after step, ``(outputs * N,)``; of classes without their maximum, so that no
            exponential overflows.
        total: sum of those exponentials over the classes, ``(N,)``.
        each: losses times share, ``(N,)``.
        losses: the same of each client, ``(k, n)``.
        turned: for each step its part of ``losses``, and where in ``each`` it is found.
        steps: see :class:`_Step`; before it its calls, which are looked up and given their arguments once.
    """

    first: int
    parts: Sequence[tuple[Array, Array]]
    labels: Array
    places: Array
    y: Array
    own: Array
    zeroth: Array
    apart: Array
    share: Array
    aim: Array
    z: Array
    total: Array
    each: Array
    losses: Array
    turned: Sequence[tuple[Array, Array]]
    steps: Sequence[tuple[Sequence[_Call], _Step]]


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

    def train(
        self, passes: Passes, size: int, step: Callable[[Array, Array, Any], None], lr: float
    ) -> Array:
        """Take one pass over the rows, a step for every batch.

        Args:
            passes: rows of each client, in the order of the clients.
            size: rows of a batch.
            step: moves the first of the clients given their vectors and gradients, both ``(k, d)``.
            lr: the learning rate, given to ``step`` as an array: NumPy would make one at every step.

        Returns:
            Sum over a client's steps of its mean batch loss with penalty, ``(clients,)``.
        """
        losses, rate = np.zeros(len(self.vectors)), np.array(lr, self.vectors.dtype)
        for chunk in self._chunks(tuple(map(len, passes)), size):
            self._fill(chunk, passes)
            own = losses[: len(chunk.labels)]
            for calls, at in chunk.steps:
                for call, given in calls:
                    call(*given)
                if self.l2:
                    np.add(at.into, self.l2 * at.w, at.into)
                    own[: len(at.w)] += 0.5 * self.l2 * np.einsum("kof,kof->k", at.w, at.w)
                step(at.vectors, at.slopes, rate)
            own += _losses(self.kind, chunk)
        return losses

    def _fill(self, chunk: _Chunk, passes: Passes) -> None:
        """Bring in each client's rows in the order of its pass."""
        for (x, y), order, rows, targets in zip(
            chunk.parts, passes, self.rows, self.targets, strict=False
        ):
            here = order if len(order) == len(y) else order[chunk.first :][: len(y)]
            # Row numbers are in range; mode "raise" would copy all once more to see that first.
            targets.take(here, 0, y, "clip")
            if rows.dtype == x.dtype:
                rows.take(here, 0, x, "clip")
            else:
                x[...] = rows.take(here, 0)
        labels = chunk.labels.take(chunk.places)
        if self.kind == "multinomial":
            np.multiply(labels, chunk.apart, chunk.own)
            np.add(chunk.own, chunk.zeroth, chunk.own)
            chunk.aim.fill(0)
            chunk.aim[chunk.own] = chunk.share
        else:
            chunk.y[...] = labels
            np.multiply(chunk.y, chunk.share, chunk.aim)

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
        spans = _spans(left, count, size)
        every = np.arange(k * count).reshape(k, count)
        places = np.concatenate([every[:n, batch].ravel() for n, batch in spans])
        x = np.zeros((k, count, features), dtype)
        labels = np.zeros((k, count), self.targets[0].dtype)
        z, aim = (np.zeros(self.outputs * len(places), dtype) for _ in range(2))
        own, zeroth, apart = (np.zeros(len(places), np.int64) for _ in range(3))
        share = _shares(tuple(left), count, size, dtype_name(dtype)).take(places)
        y, total, each = (np.ones_like(share) for _ in range(3))
        losses = np.zeros((k, count), dtype)
        room = np.empty((1 + self.outputs) * k * min(size, count), dtype)
        steps, turned, behind = (
            list[tuple[tuple[_Call, ...], _Step]](),
            list[tuple[Array, Array]](),
            0,
        )
        for n, batch in spans:
            shape = n, batch.stop - batch.start
            here = slice(behind, behind + n * shape[1])
            wide = slice(self.outputs * here.start, self.outputs * here.stop)
            behind = here.stop
            apart[here] = n * shape[1]
            zeroth[here] = np.arange(wide.start, wide.start + n * shape[1])
            outputs = z[wide].reshape(self.outputs, *shape)
            scratch = room[: (1 + self.outputs) * n * shape[1]].reshape(-1, *shape)
            at = _Step(
                *self._models(n),
                x=x[:n, batch],
                columns=x[:n, batch].transpose(0, 2, 1),
                z=outputs,
                outer=outputs.transpose(1, 0, 2),
                slope=scratch[1:],
                back=scratch[1:].transpose(1, 0, 2),
                share=share[here].reshape(shape),
                aim=aim[wide].reshape(self.outputs, *shape),
                total=total[here].reshape(shape),
                outputs=tuple(outputs),
                powers=tuple(scratch[1:]),
                room=scratch[0],
            )
            steps.append((tuple(_calls(self.kind, at)), at))
            turned.append((losses[:n, batch], each[here].reshape(shape)))
        parts = [
            (x[i, :n], labels[i, :n]) for i, n in enumerate(left)
        ]  # no more than there is room
        rows = labels, places, y, own, zeroth, apart, share, aim, z, total, each, losses
        return _Chunk(first, parts, *rows, turned, steps)

    def _models(self, k: int) -> tuple[Array, Array, Array, Array, Array, Array]:
        """What a step of the first k clients reads and leaves of their models; see :class:`_Step`."""
        vectors, slopes = self.vectors[:k], self.slopes[:k]
        shape = k, self.outputs, self.rows[0].shape[1]
        cut = shape[1] * shape[2]
        w, into = (v[:, :cut].reshape(shape) for v in (vectors, slopes))
        return w, vectors[:, cut:].T[:, :, None], into, slopes[:, cut:].T, vectors, slopes


def _spans(left: Sequence[int], count: int, size: int) -> list[tuple[int, slice]]:
    """For each batch of ``count`` rows how many clients have rows in it, and which rows it holds."""
    found, k = list[tuple[int, slice]](), len(left)
    for start in range(0, count, size):
        while left[k - 1] <= start:
            k -= 1
        found.append((k, slice(start, min(start + size, count))))
    return found


@dataclass(eq=False)
class Held:
    """The group of clients that was trained last, kept for the next round if the same ones come.

    Args:
        data: of each.
        rows: how many each has.
        turn: the group's numbers, most rows first: the order of the stack.
        stack: their rows and models.
        work: the local work that came last; None before the first.
        cuts: how it cuts their rows into steps, in the order of the stack.
        shares: their weights, in the order of the stack, and the same as a column.
    """

    data: Sequence[object]
    rows: Sequence[int]
    turn: Sequence[int]
    stack: Stack
    work: LocalWork | None = None
    cuts: Sequence[Plan] = ()
    shares: tuple[list[float], Array] | None = None

    def of(self, lanes: Sequence[Lane]) -> bool:
        """Whether it holds these clients, in this order."""
        return len(lanes) == len(self.data) and all(map(is_, [x.data for x in lanes], self.data))

    def weighed(self, lanes: Sequence[Lane]) -> Array:
        """What each counts, in the order of the stack, ``(clients, 1)``."""
        weights = [lanes[i].weight for i in self.turn]
        if self.shares is None or self.shares[0] != weights:
            self.shares = weights, np.array(weights)[:, None]
        return self.shares[1]

    def plans(self, work: LocalWork) -> Sequence[Plan]:
        """How ``work`` cuts their rows into steps, in the order of the stack.

        Raises:
            JobConflict: some of them begin more epochs than others.
        """
        if work is not self.work:
            each = {n: plan(n, work) for n in set(self.rows)}
            if len({cut.epochs for cut in each.values()}) > 1:
                raise JobConflict("clients with more epochs than others are trained one by one")
            self.work, self.cuts = work, [each[self.rows[i]] for i in self.turn]
        return self.cuts


def alike(one: Lane, other: Lane) -> bool:
    """Whether two clients take the same kind of steps."""
    mine, theirs = one.rule, other.rule
    ruled = mine is theirs or (
        mine.mu == theirs.mu and mine.anchor is theirs.anchor and mine.shift is theirs.shift
    )
    return ruled and (one.work is other.work or one.work == other.work)
