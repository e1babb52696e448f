"""Combinations of answers that leave few persons: every one is found, by another road than the search's own."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.data import differences
from atoll.data.differences import isolates, nearly_nested


def tried(patterns: np.ndarray, sizes: np.ndarray, minimum: int) -> bool:
    """All sets of atoms, one after another."""
    full = np.linalg.matrix_rank(patterns)
    for count in range(1, len(sizes) + 1):
        for few in combinations(range(len(sizes)), count):
            if sizes[list(few)].sum() < minimum:
                rest = np.delete(patterns, few, axis=1)
                if (np.linalg.matrix_rank(rest) if rest.size else 0) < full:
                    return True
    return False


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 9), st.integers(2, 12))
def test_what_is_found_is_what_trying_everything_finds(seed, sets, atoms, minimum):
    rng = np.random.default_rng(seed)
    patterns = np.unique(rng.random((atoms, sets)) < 0.5, axis=0).T
    patterns = patterns[:, patterns.any(axis=0)]
    if not patterns.size:
        return
    sizes = rng.integers(1, minimum + 2, patterns.shape[1])
    members = np.repeat(patterns, sizes, axis=1)
    found = isolates(members, np.zeros(sets, bool), minimum)
    assert found is tried(patterns.astype(float), sizes, minimum)


def test_where_trying_takes_too_long_it_is_not_known(monkeypatch):
    """Three groups of six beside the same many: any two differ in twelve, and no combination in fewer."""
    people = np.arange(60)
    sets = np.array([(people // 6 == n) | (people >= 30) for n in range(3)])
    assert isolates(sets, np.zeros(3, bool), 11) is False
    monkeypatch.setattr(differences, "_MOST_TRIES", 2)
    assert isolates(sets, np.zeros(3, bool), 11) is None
    assert isolates(sets, np.zeros(3, bool), 13) is True


def places(rows, values, *cuts):
    place = np.searchsorted(np.array(cuts), values, side="right")
    return np.where(rows, place, -1), len(cuts) + 1


@pytest.mark.parametrize(("cut", "near"), [(49, True), (50, False), (51, True), (62, False)])
def test_a_stretch_that_holds_a_selection_and_few_more_is_found(cut, near):
    """Two persons of each age; asked about are those below 50, and all, counted below a cut point."""
    ages = np.repeat(np.arange(20.0, 80.0), 2)
    everybody, young = np.ones(len(ages), bool), ages < 50
    persons = np.arange(len(ages))
    found = nearly_nested(places(young, ages), places(everybody, ages, float(cut)), persons, 11)
    assert found is near
    again = nearly_nested(places(everybody, ages, float(cut)), places(young, ages), persons, 11)
    assert again is near


def test_rows_of_one_person_are_one_person():
    values, persons = np.arange(60.0), np.repeat(np.arange(40), [*[1] * 39, 21])
    below, every = values < 39, np.ones(60, bool)
    assert nearly_nested(places(below, values), places(every, values), persons, 11)
    assert not nearly_nested(places(below, values), places(every, values), np.arange(60), 11)
