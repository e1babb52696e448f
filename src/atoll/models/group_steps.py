"""Which rows the clients of a group visit in each step, all clients side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.contracts import Lane
from atoll.core.layout import Array
from atoll.core.local import LocalWork
from atoll.models.batches import Plan, learning_rate, passes, plan

__all__ = ["GroupSteps", "earlier_rows", "group_steps"]

_LEAST = 32
"""Rows up to which a few products that nobody reads cost less than further calls."""


@dataclass(eq=False)
class GroupSteps:
    """Which rows each client visits in each step, how long the step is, and its learning rate.

    ``at`` ``(steps, k, b)`` are positions among a client's rows in the order of its first epoch, None
    where step t visits the positions from ``t * width`` on at every client. ``share`` ``(steps, k, b)`` is
    what a row counts in its batch's loss, 0 beyond the batch; ``lr`` ``(steps, k)`` is 0 at who is done.
    """

    order: list[Array]
    at: Array | None
    share: Array
    lr: Array
    width: int


_Pass = tuple[int, Array, int]
"""(local epoch, rows in order, batch size)."""


def group_steps(lanes: Sequence[Lane], round: int, *, summed: bool) -> GroupSteps:
    """The steps of ``lanes`` in this round.

    Args:
        lanes: the clients.
        round: version of the model, for the learning-rate schedule.
        summed: whether the loss is a sum over a batch's rows, and no mean.
    """
    kinds: dict[
        tuple[int, int], _Kind
    ] = {}  # clients with the same work and as many rows step alike
    walks, members = list[list[_Pass]](), list[_Kind]()
    for i, lane in enumerate(lanes):
        rows, work = len(lane.data), lane.work
        kind = kinds.get((id(work), rows))
        if kind is None:
            kind = kinds[id(work), rows] = _Kind(plan(rows, work))
        kind.lanes.append(i)
        members.append(kind)
        walks.append(list(passes(rows, work, lane.seed, cut=kind.cut)))
    for kind in kinds.values():
        kind.pace(walks[kind.lanes[0]], lanes[kind.lanes[0]].work, round, summed)
    width = max((min(kind.cut.size, kind.cut.rows) for kind in kinds.values()), default=1)
    shape = (max(len(kind.lr) for kind in kinds.values()), len(lanes), width)
    share, lr = np.zeros(shape), np.zeros(shape[:2])
    for kind in kinds.values():
        steps, size = kind.share.shape
        share[:steps, kind.lanes, :size] = kind.share[:, None]
        lr[:steps, kind.lanes] = kind.lr[:, None]
    orders = [_first_order(kind.cut.rows, walk) for kind, walk in zip(members, walks, strict=True)]
    once = all(k.passes <= 1 and (len(k.lr) <= 1 or k.cut.size == width) for k in kinds.values())
    return GroupSteps(orders, None if once else _places(walks, orders, shape), share, lr, width)


class _Kind:
    """Clients that step alike: how their rows are cut, and the ``lanes`` they are."""

    def __init__(self, cut: Plan) -> None:
        self.cut, self.lanes = cut, list[int]()
        self.passes, self.lr, self.share = 0, np.zeros(0), np.zeros((0, cut.size))

    def pace(self, walk: Sequence[_Pass], work: LocalWork, round: int, summed: bool) -> None:
        """Set each step's learning rate ``(steps,)``, and what a row counts in it, ``(steps, size)``."""
        lengths, rates = list[int](), list[float]()
        for epoch, rows, size in walk:
            taken = [size] * (len(rows) // size) + [len(rows) % size] * (len(rows) % size > 0)
            lengths += taken
            rates += [learning_rate(work, round=round, epoch=epoch)] * len(taken)
        self.passes, self.lr = len(walk), np.array(rates)
        self.share = np.zeros((len(rates), self.cut.size))
        for t, length in enumerate(lengths):
            self.share[t, :length] = 1.0 if summed else 1.0 / length


def _places(
    walks: Sequence[Sequence[_Pass]], orders: Sequence[Array], shape: tuple[int, ...]
) -> Array:
    """What :class:`GroupSteps` calls ``at``."""
    at = np.zeros(shape, np.int64)
    for i, (walk, order) in enumerate(zip(walks, orders, strict=True)):
        place, t = np.argsort(order), 0
        for _, rows, size in walk:
            for start in range(0, len(rows), size):
                taken = rows[start : start + size]
                at[t, i, : len(taken)] = place[taken]
                t += 1
    return at


def _first_order(rows: int, walk: Sequence[_Pass]) -> Array:
    """All row numbers, those of the first epoch in its order and first."""
    first = walk[0][1] if walk else np.zeros(0, np.int64)
    if len(first) == rows:
        return first
    rest = np.ones(rows, bool)
    rest[first] = False
    return np.concatenate([first, np.flatnonzero(rest)])


def earlier_rows(rows: int, width: int) -> list[tuple[slice, slice]]:
    """Blocks (rows, rows before them) in which each row meets all rows of the steps before its own.

    Args:
        rows: of a client, visited in order.
        width: of a step.

    >>> earlier_rows(60, 10)  # doctest: +NORMALIZE_WHITESPACE
    [(slice(30, 60, None), slice(0, 30, None)), (slice(10, 30, None), slice(0, 20, None)),
     (slice(40, 60, None), slice(30, 50, None))]
    """
    return _earlier(0, rows, width)


def _earlier(start: int, stop: int, width: int) -> list[tuple[slice, slice]]:
    steps = -(-(stop - start) // width)
    if steps < 2:
        return []
    if stop - start <= _LEAST or steps == 2:
        return [(slice(start + width, stop), slice(start, start + (steps - 1) * width))]
    middle = start + (steps + 1) // 2 * width
    half = (slice(middle, stop), slice(start, middle))
    return [half, *_earlier(start, middle, width), *_earlier(middle, stop, width)]
