"""Rows 1 to 4: lies, collusion, dropouts, overflow. The tests' own harnesses, at the promised numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.privacy.figures import Figure

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "privacy" / "secagg"))

import test_collusion
import test_dropouts
import test_lies
from cohorts import Cohort, released

from atoll.privacy.secagg.fixed import quantised, signed_values
from atoll.privacy.secagg.terms import Lane


def lies(quick: bool = False) -> Sequence[Figure]:
    """Row 1: the twelve lies of a byzantine server."""
    aborted = shares = 0
    for lie in test_lies.LIES:
        guests = lie()
        aborted += all(guest.aborted for guest in guests.values())
        shares += len(released(guests))
    count = len(test_lies.LIES)
    found = f"{aborted}/{count} aborted, {shares} shares released"
    holds = aborted == count == 12 and not shares
    return [
        Figure(1, "byzantine server, twelve lies to five sites", "12/12, 0 shares", found, holds)
    ]


def collusion(quick: bool = False) -> Sequence[Figure]:
    """Row 2: the server and c of five sites against one victim, t = 4."""
    trials, values = (20 if quick else 1000), (500 if quick else 10)
    test_collusion.VALUES, test_collusion.TRIALS = values, trials
    figures = []
    for count in (1, 2, 3, 4):
        pairs = [
            test_collusion.attack(trial, tuple(range(2, 2 + count)))
            for trial in range(1, trials + 1)
        ]
        guessed, true = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
        r = abs(float(np.corrcoef(guessed.astype(np.float64), np.clip(true, -1, 1))[0, 1]))
        within = count < 4
        what = f"server + {count} of 5 sites (t = 4), {trials:,} trials of {values} values"
        goal = "correlation < 0.05" if within else "the attack works from t on: > 0.99"
        figures.append(Figure(2, what, goal, f"{r:.3f}", r < 0.05 if within else r > 0.99))
    return figures


def dropouts(quick: bool = False) -> Sequence[Figure]:
    """Row 3: who stays is in the sum, exactly."""
    figures = []
    for size, rounds in ((5, 0), (20, 5 if quick else 40), (100, 1 if quick else 10)):
        exact = ended = wrong = 0
        for cohort, gone in _losses(size, rounds):
            try:
                total = test_dropouts.check(cohort, gone)
            except AssertionError:
                wrong += 1
                continue
            exact, ended = exact + (total is not None), ended + (total is None)
        kind = "subsets and steps" if size == 5 else "random losses"
        what = f"{exact + ended + wrong} {kind} of {size}"
        found = f"{exact} sums exact, {ended} ended without a sum, {wrong} wrong"
        figures.append(Figure(3, what, "exact whenever >= t remain", found, not wrong))
    return figures


def _losses(size: int, rounds: int) -> list[tuple[Cohort, dict[str, int]]]:
    if not rounds:
        steps = range(5)
        return [
            (Cohort(), dict.fromkeys(gone, step))
            for step in steps
            for gone in test_dropouts.SUBSETS
        ]
    found = []
    for seed in range(rounds):
        draw, cohort = random.Random(seed), Cohort(size)
        lost = draw.sample(sorted(cohort.keys), draw.randrange(size // 3 + 2))
        found.append((cohort, {name: draw.randrange(5) for name in lost}))
    return found


def overflow(quick: bool = False) -> Sequence[Figure]:
    """Row 4: sums of the most extreme inputs, held against whole numbers without a limit."""
    wanted = 20_000 if quick else 1_000_000
    draw, tried, wrong = np.random.default_rng(4), 0, 0
    while tried < wanted:
        sites = int(draw.integers(3, 1001))
        bits = 32 if draw.random() < 0.5 else 64
        bound = float(10.0 ** draw.integers(-6, 7))
        lane = Lane("x", 1000, bound, bits)  # type: ignore[arg-type]  # drawn above: 32 or 64
        values = _extremes(draw, bound)
        whole = quantised(lane, sites, values, None)
        # Everybody sends the same extreme input: the ring's own sum against Python's integers.
        ring = whole.astype(np.int64) * sites
        if bits == 32:
            ring = ring.astype(np.int32).astype(np.int64)
        exact = [int(v) * sites for v in whole.tolist()]
        wrong += sum(a != b for a, b in zip(ring.tolist(), exact, strict=True))
        back = signed_values(lane, sites, sites, ring)
        wrong += int(np.count_nonzero(np.abs(back) > sites * bound * (1 + 1e-9)))
        tried += values.size
    what = f"{tried:,} values at the extremes, 3 to 1,000 sites, both rings"
    return [Figure(4, what, "0 failures", f"{wrong} failures", wrong == 0)]


def _extremes(draw: np.random.Generator, bound: float) -> np.ndarray:
    kinds = np.array([bound, -bound, np.nextafter(bound, 0), 2 * bound, -1e30, 1e30, 0.0])
    values = draw.choice(kinds, 1000)
    return np.where(draw.random(1000) < 0.2, draw.uniform(-bound, bound, 1000), values)
