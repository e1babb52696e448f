"""Row 10: who was trained on? LiRA with a few shadow models, with and without DP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoll.core.layout import Array
from atoll.privacy.audit.membership import Risk, confidence, lira_risk, loss_risk
from benchmarks.privacy.figures import Figure
from benchmarks.privacy.inversion import digits
from benchmarks.privacy.one_run import noise_for
from benchmarks.privacy.training import Setting, probabilities, trained


def risks(setting: Setting, models: int, rows: int = 300) -> tuple[Risk, Risk]:
    """Risk by LiRA and by a threshold on the loss, over ``models`` models on random halves."""
    x, y = digits()
    taken = np.random.default_rng(10).choice(len(x), rows, replace=False)
    x, y = x[taken], y[taken]
    included = np.random.default_rng(11).random((models, rows)) < 0.5
    losses = np.stack([_losses(x, y, inside, setting) for inside in included])
    threshold = loss_risk(losses[included], losses[~included])
    return lira_risk(confidence(losses), included), threshold


def _losses(x: Array, y: Array, inside: Array, setting: Setting) -> Array:
    model = trained(x[inside], y[inside], 10, setting)
    p = probabilities(model, np.column_stack([x, np.ones(len(x))]))
    return np.asarray(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)))


def membership(quick: bool = False) -> Sequence[Figure]:
    """Row 10: 150 of 300 digits, softmax regression trained until it fits them."""
    models, figures = (16 if quick else 64), []
    off, by_loss = risks(Setting(0.0, steps=300, clip=1e9, lr=1.0), models)
    figures.append(_figure("no DP", "", off, by_loss))
    for target in (8.0, 1.0):
        setting = Setting(noise_for(target), lr=1.0)
        found, by_loss = risks(setting, models)
        figures.append(_figure(f"epsilon {target:g}", "TPR <= 3 %", found, by_loss))
    return figures


def _figure(what: str, goal: str, found: Risk, by_loss: Risk) -> Figure:
    text = f"LiRA {100 * found.tpr:.1f} % (AUC {found.auc:.3f}), loss {100 * by_loss.tpr:.1f} %"
    holds = not goal or found.tpr <= 0.03
    return Figure(10, f"TPR at 1 % FPR, {what}", goal, text, holds)
