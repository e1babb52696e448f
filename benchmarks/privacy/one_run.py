"""Row 6: what one run proves about epsilon is never more than what was reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoll.core.layout import Array
from atoll.privacy.audit.one_run import Bound, audit
from atoll.privacy.dp.calibration import Goal, calibrate
from benchmarks.privacy.figures import Figure
from benchmarks.privacy.training import DELTA, Setting, trained

CANARIES = 1000


def bound_of(setting: Setting, seed: int, canaries: int = CANARIES) -> Bound:
    """Train once with each canary in or out by a coin, and guess which were in.

    A canary is a row with a column of its own: nothing else moves that weight, so the auditor sees each
    canary as clearly as a model can show it.
    """
    draw = np.random.default_rng(seed)
    included = draw.random(canaries) < 0.5
    plain = draw.normal(size=(canaries, 20))
    labels = (plain[:, 0] > 0).astype(np.int64)
    marked = np.zeros((canaries, 20 + canaries))
    marked[np.arange(canaries), 20 + np.arange(canaries)] = 10.0
    rows = np.vstack([np.hstack([plain, np.zeros((canaries, canaries))]), marked[included]])
    truth = np.concatenate([labels, np.ones(int(included.sum()), np.int64)])
    model = trained(rows, truth, 2, setting)
    return audit(_seen(model, canaries), included, delta=DELTA)


def _seen(model: Array, canaries: int) -> Array:
    own = slice(20, 20 + canaries)
    return np.asarray(model[1, own] - model[0, own])


def noise_for(goal: Goal, steps: int = 100, rate: float = 0.25) -> float:
    """The noise multiplier with which the steps keep ``goal``."""
    return calibrate(goal, steps, rate)


def bounds(quick: bool = False) -> Sequence[Figure]:
    """Row 6 at three budgets, and with the noise off."""
    seeds, figures = range(3 if quick else 20), []
    for target in (1.0, 3.0, 8.0):
        setting = Setting(noise_for(Goal(target, DELTA)))
        found = [bound_of(setting, seed).epsilon for seed in seeds]
        below = sum(bound <= setting.epsilon for bound in found)
        text = f"{below}/{len(found)} at most the reported {setting.epsilon:.2f}; largest {max(found):.2f}"
        what = f"{CANARIES:,} canaries, epsilon {target:g}, {len(found)} seeds"
        figures.append(Figure(6, what, "bound <= reported in all", text, below == len(found)))
    off = [bound_of(Setting(0.0), seed).epsilon for seed in seeds]
    text = f"bounds {min(off):.2f} to {max(off):.2f}"
    figures.append(Figure(6, "control: noise off", "bound >= 4", text, min(off) >= 4))
    return figures
