"""Whether answers about sets of persons can be combined so that few persons are left.

An answer is a sum over a set of persons. Adding and subtracting answers gives weighted sums, and one whose
weights are zero but for a few persons tells about those. Persons whom every answer treats alike form an
*atom*, and have the same weight in every combination; so atoms, not persons, are looked at.

Combinations are searched in full (:func:`isolates`). Most logs hold none that is confined to small atoms,
which one elimination shows. Where there are some, they fall apart into groups that share no atom, and within a
group the sparsest ones are those that vanish on as many atoms as can be chosen freely: these are all tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice

import numpy as np

from atoll.core.layout import Array

__all__ = ["isolates", "nearly_nested"]

_MOST_TRIES = 20_000
"""Combinations that are tried; what needs more is not known to be harmless."""
_BATCH = 512
_ZERO = 1e-9
_MOST_PAIRS = 1 << 20


def isolates(sets: Array, shared: Array, minimum: int, persons: Array | None = None) -> bool | None:
    """Whether a combination of these sets is not zero for 1 to ``minimum - 1`` persons only.

    Args:
        sets: who is in each, ``(sets, persons)`` bool.
        shared: which of them are seen only together with the persons of other sites, ``(sets,)`` bool.
        minimum: least number of persons.
        persons: the person behind each, where ``sets`` are of rows, ``(persons,)``.

    Returns:
        None where it takes too long to tell.

    >>> everybody, but_two = np.ones(30, bool), np.arange(30) > 1
    >>> isolates(np.array([everybody, but_two]), np.zeros(2, bool), 11)
    True
    """
    packed = np.packbits(sets, axis=0)  # one word a person sorts faster than a column of booleans
    keys = packed.T.copy().view([("", np.uint8)] * packed.shape[0])[:, 0]
    _, first, atom, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    if persons is not None:  # who has several rows in an atom is one person there
        pairs = np.unique(np.column_stack([atom.ravel(), persons]), axis=0)
        sizes = np.bincount(pairs[:, 0], minlength=len(first))
    patterns = sets[:, first]
    if shared.any():  # the persons of other sites, who are in every such sum
        patterns = np.column_stack([patterns, shared])
        sizes = np.append(sizes, minimum)
    inside = patterns.any(axis=0)  # who was never asked about is in no combination
    patterns, sizes = patterns[:, inside].astype(np.float64), sizes[inside]
    small = sizes < minimum
    if not small.any():
        return False
    large = int(np.count_nonzero(~small))
    rows, pivots = _reduced(np.column_stack([patterns[:, ~small], patterns[:, small]]))
    # What vanishes on all large atoms.
    basis = rows[[number for number, pivot in enumerate(pivots) if pivot >= large], large:]
    found: bool | None = False
    for group in _groups(basis):
        columns = np.flatnonzero((basis[group] != 0).any(axis=0))
        told = _few(basis[np.ix_(np.array(group), columns)], sizes[small][columns], minimum)
        if told:
            return True
        found = None if told is None else found
    return found


def _reduced(matrix: Array) -> tuple[Array, list[int]]:
    """The reduced row echelon form without its zero rows, and the column of each row's first 1."""
    rows, pivots = matrix.copy(), list[int]()
    for column in range(rows.shape[1]):
        at = len(pivots)
        if at == len(rows):
            break
        best = at + int(np.abs(rows[at:, column]).argmax())
        if abs(rows[best, column]) < _ZERO:
            rows[at:, column] = 0.0
            continue
        rows[[at, best]] = rows[[best, at]]
        rows[at] /= rows[at, column]
        touched = np.flatnonzero(rows[:, column])
        touched = touched[touched != at]
        rows[touched] -= np.outer(rows[touched, column], rows[at])
        rows[np.abs(rows) < _ZERO] = 0.0
        pivots.append(column)
    return rows[: len(pivots)], pivots


def _groups(basis: Array) -> Iterator[list[int]]:
    """Rows that share columns, directly or through others."""
    touches, left = basis != 0, set(range(len(basis)))
    while left:
        group, columns = {left.pop()}, np.zeros(basis.shape[1], bool)
        fresh = set(group)
        while fresh:
            columns |= touches[sorted(fresh)].any(axis=0)
            fresh = {row for row in left if (touches[row] & columns).any()}
            left -= fresh
            group |= fresh
        yield sorted(group)


def _few(basis: Array, sizes: Array, minimum: int) -> bool | None:
    """Whether a combination of the rows, other than zero, has fewer than ``minimum`` persons in it."""
    if ((basis != 0) @ sizes < minimum).any():
        return True
    free, atoms = len(basis) - 1, len(sizes)
    if free == 0:
        return False
    if math.comb(atoms, free) <= _MOST_TRIES:
        # The sparsest vanish on as many atoms as can be chosen: one combination is left of each choice.
        return any(
            _sparse(basis, chosen, sizes, minimum)
            for chosen in _batches(combinations(range(atoms), free))
        )
    if _subsets(sizes, minimum) <= _MOST_TRIES:
        return any(
            _confined(basis, list(within)) for within in _within(sizes, minimum, list[int](), 0)
        )
    return None


def _batches(choices: Iterator[tuple[int, ...]]) -> Iterator[Array]:
    while batch := list(islice(choices, _BATCH)):
        yield np.array(batch)


def _sparse(basis: Array, chosen: Array, sizes: Array, minimum: int) -> bool:
    """Whether of the combinations that vanish on these atoms, ``(n, rows - 1)``, one has few persons."""
    left, _, _ = np.linalg.svd(np.moveaxis(basis[:, chosen], 0, 1))
    found = left[:, :, -1] @ basis
    return bool(((np.abs(found) > 1e-7) @ sizes < minimum).any())


def _subsets(sizes: Array, minimum: int) -> int:
    """How many sets of atoms have fewer persons than the minimum."""
    ways = [1, *[0] * (minimum - 1)]
    for size in sizes.tolist():
        for total in range(minimum - 1, size - 1, -1):
            ways[total] += ways[total - size]
    return sum(ways)


def _within(sizes: Array, minimum: int, taken: list[int], start: int) -> Iterator[Sequence[int]]:
    """Sets of atoms with fewer persons than the minimum, none of which could take in a later atom."""
    left = minimum - 1 - int(sizes[taken].sum())
    fitting = [i for i in range(start, len(sizes)) if sizes[i] <= left]
    if not fitting and taken:
        yield taken
    for i in fitting:
        yield from _within(sizes, minimum, [*taken, i], i + 1)


def _confined(basis: Array, within: list[int]) -> bool:
    """Whether a combination other than zero vanishes outside these atoms."""
    rest = np.delete(basis, within, axis=1)
    return (int(np.linalg.matrix_rank(rest)) if rest.size else 0) < len(basis)


def nearly_nested(
    one: tuple[Array, int], other: tuple[Array, int], persons: Array, minimum: int
) -> bool:
    """Whether few persons lie between what is counted between cut points of two sets of rows.

    What is counted of a set are the rows from any cut point to any later one. If those of one set hold those of
    the other and a few persons more, the difference of the two counts tells of these.

    Args:
        one: the place of each row between the cut points of the first, ``(n,)`` from 0, -1 for rows not
            in it; and the number of places.
        other: the same of the second.
        persons: the person behind each row, ``(n,)``.
        minimum: least number of persons.
    """
    (first, firsts), (second, seconds) = one, other
    width = (firsts + 1) * (seconds + 1)
    cell = (first + 1) * (seconds + 1) + second + 1
    # A person is counted once in a cell, however many rows it has there.
    cells = np.unique(persons.astype(np.int64) * width + cell) % width
    table = np.bincount(cells, minlength=width).reshape(firsts + 1, -1)
    begins, ends = _spans(firsts, seconds)
    starts, stops = _spans(seconds, firsts)
    inner = _summed(table[1:, 1:])
    whole, across = (
        _summed(table[1:, :].sum(axis=1)[:, None]),
        _summed(table[:, 1:].sum(axis=0)[:, None]),
    )
    sizes = whole[ends, 1] - whole[begins, 1]
    others = across[stops, 1] - across[starts, 1]
    for i, size in enumerate(sizes):
        row = inner[ends[i]] - inner[begins[i]]
        both = row[stops] - row[starts]
        less, more = size - both, others - both
        near = ((less == 0) & (more > 0) & (more < minimum)) | (
            (more == 0) & (less > 0) & (less < minimum)
        )
        if size >= minimum and (near & (others >= minimum)).any():
            return True
    return False


def _summed(table: Array) -> Array:
    """Sums of everything above and to the left, with a first row and column of zeros."""
    return np.pad(table, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)


def _spans(places: int, others: int) -> tuple[Array, Array]:
    """First and last cut point of each stretch of places; of many only those that begin or end at an end."""
    every = places * (places + 1) // 2 * (others * (others + 1) // 2)
    found: Iterable[tuple[int, int]]
    if every <= _MOST_PAIRS:
        found = combinations(range(places + 1), 2)
    else:
        found = sorted(
            {*((0, j) for j in range(1, places + 1)), *((i, places) for i in range(places))}
        )
    spans = np.array(list(found))
    return spans[:, 0], spans[:, 1]
