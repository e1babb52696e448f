"""Sums of floats that do not depend on order, to the last bit.

Each value is rounded once, to the nearest multiple of a fixed step (ties to even); from there on all
is integers, and integers add exactly in any order. An integer is kept in two 64-bit limbs: the fine
one counts steps, the coarse one takes what the fine one carries.

==========  ==============  =======================  ====================  =====================
dtype       step            coarse limb counts       one value, at most    total of absolutes
==========  ==============  =======================  ====================  =====================
float32     2^-43, 1.1e-13  2^-12                    2^39, 5.5e11          2^41, 2.2e12
float64     2^-54, 5.6e-17  2^-2                     2^49, 5.6e14          2^51, 2.3e15
==========  ==============  =======================  ====================  =====================

What would leave these ranges is refused, so a sum is right or absent. The idea of one wide
fixed-point register is Kulisch's; binned sums are treated by Demmel and Nguyen, "Parallel
Reproducible Summation", IEEE Trans. Computers 64 (2015), doi:10.1109/TC.2014.2345391.

To round and convert in one instruction, ``1.5 * 2^52`` is added: near that number neighbouring
doubles are 1 apart, so the sum is rounded to a whole number, and its bit pattern, read as an
integer, is a constant plus that number. The constants are taken off at the next carry.

As long as the total of absolutes stays below 2^53 steps (float32: 1024), no limbs are needed: float64
holds every such multiple of the step, and adding them is exact as well. Sums begin in this *short* form,
which needs no carries, is half as much memory to go through, and is merged in one pass; they go over to
limbs when they must. Which form a sum has cannot be seen in its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import numpy as np

from atoll.aggregation.whole import INTEGERS, WholeSum
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array, dtype_name
from atoll.core.metrics import Metric, Metrics, merge_metrics
from atoll.core.values import Aggregate, Update

__all__ = ["ExactSum", "Fold", "sum_of", "total_of"]

_GRIDS = {"float32": (-12, -43), "float64": (-2, -54)}
"""Exponents of what the coarse and the fine limb count."""
_BLOCK = 1 << 15
"""Values handled at a time: the temporaries of one block stay in the second-level cache."""
_CARRY_EVERY = 1 << 10
"""Additions between carries: each adds at most 2^51 to the fine limb, which holds 2^63."""
_BIG = 1.5 * 2.0**52


@cache
def _pattern(power: int) -> int:
    """The bits of the constant that rounds to multiples of two to this power."""
    return int(np.float64(_BIG * 2.0**power).view(np.int64))


class ExactSum:
    """Running sum of vectors of one length; adding and merging commute exactly.

    Args:
        size: length of the vectors.
        dtype: ``float32`` or ``float64``, the dtype of what is added; chooses the step.
        limbs: ``(2, size)`` int64 to sum in, whatever they hold; None for memory of its own.

    >>> exact = ExactSum(1, "float64")
    >>> for value in (1e11, 1e-13, -1e11):
    ...     exact.add(np.array([value]))
    >>> bool(abs(exact.total()[0] - 1e-13) <= 2**-55)
    True
    """

    def __init__(self, size: int, dtype: str = "float32", limbs: Array | None = None) -> None:
        if dtype not in _GRIDS:
            raise UpdateRefused(f"vectors of dtype {dtype} do not add up exactly; use float32")
        self.dtype = dtype
        self._kind = np.dtype(dtype)
        self.reach = 0
        """Upper bound on any total so far, as a whole number."""
        self._coarse, self._fine = _GRIDS[dtype]
        self.limit = 1 << (53 + self._coarse)
        """The sum of absolute values stays below this (and one value below a quarter of it)."""
        self._limbs = np.empty((2, size), np.int64) if limbs is None else limbs
        self._form: Literal["empty", "short", "limbs"] = "empty"  # what the limbs' memory holds
        self._pending = [0, 0]  # bit patterns in either limb whose constant is still to come off

    @property
    def size(self) -> int:
        """Length of the vectors; 0 for a shell."""
        return int(self._limbs.shape[1])

    @property
    def bins(self) -> Array:
        """The limbs in canonical form, coarse and fine, ``(2, size)`` int64: equal for equal sums."""
        if self.size:  # a shell keeps the form that its memory has
            self._widen()
        self._carry()
        return self._limbs

    @property
    def _short(self) -> Array:
        """The sum in short form, ``(size,)`` float64, in the memory of the coarse limb."""
        return np.asarray(self._limbs[0].view(np.float64))

    def check(self, vector: Array, factor: float) -> int:
        """The reach of ``factor * vector``.

        Raises:
            UpdateRefused: another shape or dtype, or a value that is not finite or is too large to
                add exactly.
        """
        size = self._limbs.shape[1]
        if vector.shape != (size,) or vector.dtype != self._kind:
            raise UpdateRefused(
                f"vector of shape {vector.shape} and dtype {vector.dtype} "
                f"where ({size},) {self.dtype} is expected"
            )
        # Ufuncs called directly: for a small model the calls are the cost, for a large one a copy.
        if size <= _BLOCK:
            top = float(np.maximum.reduce(np.abs(vector), initial=0.0))
        else:
            high = np.maximum.reduce(vector, initial=0.0)
            top = max(float(high), -float(np.minimum.reduce(vector, initial=0.0)))
        if not math.isfinite(top):
            bad = int(np.count_nonzero(~np.isfinite(vector)))
            raise UpdateRefused(f"{bad} of {size} values are not finite")
        if not math.isfinite(factor * 2.0**-self._fine):
            raise UpdateRefused(f"weight {factor:g} is not finite or too large")
        bound = math.nextafter(top * abs(factor), math.inf)  # at least the exact product
        reach = self.limit if bound >= self.limit else math.ceil(bound) + 1
        if reach > self.limit // 4:
            raise UpdateRefused(f"value {top * factor:.3g} is beyond {self.limit // 4:.3g}")
        return reach

    def spare(self, reach: int) -> None:
        """Refuse what would bring the sum out of its exact range.

        Raises:
            UpdateRefused: the reach so far and ``reach`` together exceed the limit.
        """
        if self.reach + reach >= self.limit:
            raise UpdateRefused(
                f"the sum leaves the exact range {self.limit:.3g}", remedy="scale the weights down"
            )

    def add(self, vector: Array, factor: float = 1.0) -> None:
        """Add ``factor * vector``, each product rounded once to float64 before it is added.

        Raises:
            UpdateRefused: see :meth:`check` and :meth:`spare`; the sum is then unchanged.
        """
        reach = self.check(vector, factor)
        self.spare(reach)
        self.take(vector, factor, reach)

    def take(self, vector: Array, factor: float, reach: int) -> None:
        """Add what :meth:`check` gave ``reach`` for and :meth:`spare` let pass."""
        # A float32 of 2^51 steps or more is a whole number of them as it is.
        even = reach <= 2.0 ** (51 + self._fine) or (factor == 1.0 and self._kind.itemsize == 4)
        few = self._few(self.reach + reach)
        self.reach += reach
        if even and few and self._form != "limbs":
            self._take_short(vector, factor)
            return
        self._widen()
        if max(self._pending) >= _CARRY_EVERY:
            self._carry()
        wide = reach * 2.0**-self._fine > 2.0**51
        big = _BIG * 2.0 ** (self._coarse - self._fine)
        scale = float(factor) * 2.0**-self._fine  # a power of two: values become counts of steps
        size = len(vector)
        work = np.empty((1 + wide, min(size, _BLOCK)))
        bits = work.view(np.int64)
        for start in range(0, size, _BLOCK):
            block = vector[start : start + _BLOCK]
            here, n = slice(start, start + len(block)), len(block)
            rest = work[0, :n]
            rest[:] = block
            rest *= scale
            if wide:
                part = work[1, :n]
                np.add(rest, big, out=part)
                self._limbs[0, here] += bits[1, :n]
                part -= big
                rest -= part  # exact: Rump's extraction
            rest += _BIG
            self._limbs[1, here] += bits[0, :n]
        self._pending[0] += wide
        self._pending[1] += 1

    def _few(self, reach: int) -> bool:
        """Whether float64 holds every step of a total that reaches so far."""
        return reach <= 2.0 ** (53 + self._fine)

    def _take_short(self, vector: Array, factor: float) -> None:
        """Add in float64: rounded to a step by adding 1.5 * 2^52 of them and taking them off again."""
        first, self._form = self._form == "empty", "short"
        total, big, size = self._short, _BIG * 2.0**self._fine, len(vector)
        work = total if first else np.empty(min(size, _BLOCK))
        for start in range(0, size, _BLOCK):
            block, here = vector[start : start + _BLOCK], total[start : start + _BLOCK]
            into = here if first else work[: len(block)]
            into[:] = block
            if factor != 1.0:
                into *= factor
            into += big
            into -= big
            if not first:
                here += into

    def _widen(self) -> None:
        """Go over to limbs, if that has not been done."""
        form, self._form = self._form, "limbs"
        if form == "empty":
            self._limbs.fill(0)
        elif form == "short":
            gap = self._coarse - self._fine
            for start in range(0, self.size, _BLOCK):
                high, low = self._limbs[:, start : start + _BLOCK]
                steps = (high.view(np.float64) * 2.0**-self._fine).astype(np.int64)
                np.right_shift(steps, gap, out=high)
                np.bitwise_and(steps, (1 << gap) - 1, out=low)

    def _carry(self) -> None:
        if not any(self._pending):
            return
        gap = self._coarse - self._fine
        high, low = self._limbs
        for limb, power, count in zip((high, low), (gap, 0), self._pending, strict=True):
            if count:  # 64-bit integers wrap around, so the constant may be summed modulo 2^64
                limb -= (count * _pattern(power) + 2**63) % 2**64 - 2**63
        high += low >> gap
        low &= (1 << gap) - 1
        self._pending = [0, 0]

    def merge(self, other: Any) -> None:
        """Add another running sum of the same length and dtype, which stays as it is.

        Raises:
            UpdateRefused: another length or dtype, or the range is exceeded; nothing has changed.
        """
        if self.size != other.size or self.dtype != other.dtype:
            raise UpdateRefused(
                f"sums of ({other.size},) {other.dtype} and ({self.size},) {self.dtype}"
            )
        self.spare(other.reach)
        self.reach += other.reach
        if "limbs" not in (self._form, other._form) and self._few(self.reach):
            self._merge_short(other)
            return
        mine, theirs = self.bins, other.bins
        mine += theirs
        mine[0] += mine[1] >> (self._coarse - self._fine)
        mine[1] &= (1 << (self._coarse - self._fine)) - 1

    def _merge_short(self, other: ExactSum) -> None:
        if other._form == "empty":
            return
        if self._form == "empty":
            self._short[:] = other._short
        else:
            into = self._short
            into += other._short
        self._form = "short"

    def detach(self) -> Array:
        """The memory of the sum, ``(2, size)`` int64; what is left is a shell until :meth:`attach`."""
        self._carry()
        limbs, self._limbs = self._limbs, np.zeros((2, 0), np.int64)
        return limbs

    def attach(self, limbs: Array) -> None:
        """Take back what :meth:`detach` gave, or a copy of it."""
        self._limbs = limbs

    def total(self) -> Array:
        """The sum, rounded once to float64: ``(size,)``."""
        if self._form != "limbs":
            return self._short.copy() if self._form == "short" else np.zeros(self.size)
        high, low = self.bins.astype(np.float64)  # exact: both stay below 2^53
        high *= 2.0**self._coarse
        low *= 2.0**self._fine
        high += low
        return np.asarray(high)


def sum_of(size: int, dtype: str, limbs: Array | None = None) -> ExactSum | WholeSum:
    """The running sum for vectors of this dtype, floats or integers.

    Args:
        size: length of the vectors.
        dtype: of what is added.
        limbs: ``(2, size)`` int64 to sum in, zeros where integers are added; None for memory of its own.

    Raises:
        UpdateRefused: such vectors do not add up exactly.
    """
    if dtype in INTEGERS:
        return WholeSum(size, dtype, limbs)
    return ExactSum(size, dtype, limbs)


def total_of(terms: Sequence[tuple[Array, float, int]], dtype: str) -> Array:
    """The sum of vectors that are all there: the bits of :meth:`ExactSum.total`, in fewer passes.

    A total of fewer than 2^53 steps needs no limbs: each value is rounded to a multiple of the step by
    adding ``1.5 * 2^52`` steps and taking them off again, and such multiples add up exactly in float64.

    Args:
        terms: vector, factor, and the reach that :meth:`ExactSum.check` gave for both; at least one.
        dtype: of all vectors.

    Returns:
        ``(size,)``, float64, or int64 where integers are added.
    """
    size = len(terms[0][0])
    reaches = [reach for _, _, reach in terms]
    fine = _GRIDS[dtype][1] if dtype in _GRIDS else 0
    if not fine or max(reaches) > 2.0 ** (51 + fine) or sum(reaches) > 2.0 ** (53 + fine):
        whole = sum_of(size, dtype)
        for vector, factor, reach in terms:
            whole.take(vector, factor, reach)
        return whole.total()
    total, work, big = np.empty(size), np.empty(size), _BIG * 2.0**fine
    for number, (vector, factor, _) in enumerate(terms):
        into = work if number else total
        into[:] = vector
        if factor != 1.0:
            into *= factor
        into += big
        into -= big
        if number:
            total += work
    return total


class Fold:
    """Folds updates one by one into an :class:`~atoll.core.values.Aggregate`; memory O(model).

    An update is validated whole before any of it is added, so a refused one leaves no trace.

    Args:
        updates: how many may come. Each gets an equal share of the exact range, so that whether one
            is refused as too large does not depend on the others, nor on their order.
        room: where sums are formed: called with a vector's name and size, gives ``(2, size)`` int64,
            whatever they hold, or None for memory of the fold's own.

    Attributes:
        odd: how updates differed in names, shapes, dtypes or kinds of metric; empty while none did.
            Which of two is refused depends on their order: who trusts both asks for this.
    """

    def __init__(
        self, updates: int = 1, room: Callable[[str, int], Array | None] | None = None
    ) -> None:
        self._updates = updates
        self._room = room
        self.sums: dict[str, ExactSum | WholeSum] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._weight: int | Fraction = 0
        self._scaled: int | Fraction = 0
        self._count = self._examples = 0
        self._metrics: Mapping[str, Metric] = {}
        self.odd = ""

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Fold one update whose vectors count ``scale * update.weight`` times.

        Raises:
            UpdateRefused: not finite, out of range, a negative weight or scale, or other names,
                shapes, dtypes or kinds of metric than the updates before it.
        """
        weight = _factor("weight", update.weight)
        factor = _factor("scaled weight", _factor("scale", scale) * weight)
        self._take(update.vectors, factor, update.metrics)
        self._weight += _whole(weight)
        self._scaled += _whole(factor)
        self._count += 1
        self._examples += int(update.examples)

    def add_sum(self, group: Aggregate) -> None:
        """Fold what a group of updates adds up to, formed elsewhere in an order of its own.

        Raises:
            UpdateRefused: see :meth:`add`; nothing of the group has then been added.
        """
        weight = _factor("weight", group.weight)
        scaled = _factor("scaled weight", group.scaled_weight)
        self._take(group.sums, 1.0, group.metrics)
        self._weight += _whole(weight)
        self._scaled += _whole(scaled)
        self._count += group.count
        self._examples += int(group.examples)

    def _take(self, vectors: Mapping[str, Array], factor: float, metrics: Metrics) -> None:
        """Add vectors that count ``factor`` times, and metrics: all of them or, where it raises, nothing."""
        shapes = {name: v.shape for name, v in vectors.items()}
        self._agree(shapes)
        merged = self._merged(metrics)
        ready = []
        for name, v in vectors.items():
            into = self.sums.get(name) or self._sum(name, v)
            vector = v.ravel()
            try:
                reach = into.check(vector, factor)
                if reach * self._updates >= into.limit:
                    share = into.limit // self._updates
                    raise UpdateRefused(f"a value of {reach:.3g} is beyond its share {share:.3g}")
                into.spare(reach)
            except UpdateRefused as error:
                told = f"{name!r}: {error.message}"
                if v.dtype != into.dtype:
                    raise self._unlike(told) from error
                raise UpdateRefused(told, remedy=error.remedy) from error
            ready.append((name, into, vector, reach))
        for name, into, vector, reach in ready:
            self.sums[name] = into
            into.take(vector, factor, reach)
        self._shapes, self._metrics = shapes, merged

    def merge(self, other: Fold) -> None:
        """Fold in everything another fold holds; ``other`` stays as it is.

        Raises:
            UpdateRefused: the two hold other names, shapes, dtypes or kinds of metric, or a sum
                would leave its exact range; nothing has then changed.
        """
        self.odd = self.odd or other.odd
        if not other._count:
            return
        self._agree(other._shapes)
        metrics = self._merged(other._metrics)
        fresh = {n: self.sums.get(n) or sum_of(s.size, s.dtype) for n, s in other.sums.items()}
        for name, theirs in other.sums.items():
            if fresh[name].dtype != theirs.dtype:
                raise self._unlike(f"{name!r} is {theirs.dtype}, not {fresh[name].dtype}")
            fresh[name].spare(theirs.reach)
        for name, theirs in other.sums.items():
            fresh[name].merge(theirs)
        self.sums, self._shapes = fresh, dict(other._shapes)
        self._weight += other._weight
        self._scaled += other._scaled
        self._count += other._count
        self._examples += other._examples
        self._metrics = metrics

    def __getstate__(self) -> dict[str, Any]:
        """Rooms do not travel."""
        return {**self.__dict__, "_room": None}

    def _sum(self, name: str, vector: Array) -> ExactSum | WholeSum:
        room = None if self._room is None else self._room(name, vector.size)
        dtype = dtype_name(vector.dtype)
        if room is not None and dtype in INTEGERS:
            room.fill(0)
        return sum_of(vector.size, dtype, room)

    def _agree(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if self._count and shapes != self._shapes:
            raise self._unlike(f"vectors {_listed(shapes)}, not {_listed(self._shapes)}")

    def _merged(self, metrics: Mapping[str, Metric]) -> Mapping[str, Metric]:
        try:
            return merge_metrics(self._metrics, metrics)
        except (TypeError, ValueError) as error:
            raise self._unlike(f"its metrics do not fit those before it: {error}") from error

    def _unlike(self, told: str) -> UpdateRefused:
        self.odd = self.odd or told
        return UpdateRefused(told)

    def aggregate(self) -> Aggregate:
        """What has been folded so far; vectors and metrics in the order of their names."""
        return Aggregate(
            sums={n: s.total().reshape(self._shapes[n]) for n, s in sorted(self.sums.items())},
            weight=float(self._weight),
            scaled_weight=float(self._scaled),
            count=self._count,
            examples=self._examples,
            metrics=dict(sorted(self._metrics.items())),
        )


def _whole(number: float) -> int | Fraction:
    """The same number, as an integer where it is one: integers add several times faster."""
    return int(number) if number.is_integer() else Fraction(number)


def _factor(what: str, given: float) -> float:
    number = float(given)
    if not (math.isfinite(number) and number >= 0):
        raise UpdateRefused(f"{what} {number!r} is not a finite number >= 0")
    return number


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "none"
