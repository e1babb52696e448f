"""Row 10: who was trained on? LiRA with a few shadow models, with and without DP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.layout import Array
from atoll.core.local import LocalWork, Optimizer
from atoll.job.build import Job
from atoll.job.islands import Islands
from atoll.models.linear import LinearTrainer
from atoll.models.linear_private import PrivateLinearTrainer
from atoll.models.private import RecordPrivacy
from atoll.privacy.audit.membership import (
    Risk,
    confidence,
    lira_risk,
    loss_risk,
)
from atoll.privacy.dp.accounting import permitted
from atoll.privacy.dp.calibration import Goal, calibrate
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.noise import Draws
from atoll.runtime.loop import Stop
from atoll.simulation.audit import audit_job
from benchmarks.privacy.figures import Figure
from benchmarks.privacy.inversion import digits
from benchmarks.privacy.one_run import noise_for
from benchmarks.privacy.training import DELTA, Setting, probabilities, trained

GOALS = {f"epsilon {e:g}": Goal(e, DELTA) for e in (8.0, 6.0, 3.0, 1.0)} | {
    "asked for at most 3 %": Goal(found=0.03, delta=DELTA)
}
"""Of the models in one place, by what is said of them; from epsilon 6 down the goal is met."""


def risks(
    setting: Setting, models: int, sets: int = 1, rows: int = 300
) -> tuple[Risk, Risk, float]:
    """Means over sets of rows: risk by LiRA, by a threshold on the loss, and the standard error of the first.

    Args:
        setting: how models are trained.
        models: on random halves of each set.
        sets: how often rows are drawn.
        rows: of a set.
    """
    found = [_risks(setting, models, rows, 10 * (1 + number)) for number in range(sets)]
    each = [one.tpr for one, _ in found]
    error = float(np.std(each, ddof=1)) / sets**0.5 if sets > 1 else 0.0
    return _mean([one for one, _ in found]), _mean([other for _, other in found]), error


def _risks(setting: Setting, models: int, rows: int, seed: int) -> tuple[Risk, Risk]:
    """For one set of rows."""
    x, y = digits()
    taken = np.random.default_rng(seed).choice(len(x), rows, replace=False)
    x, y = x[taken], y[taken]
    included = np.random.default_rng(seed + 1).random((models, rows)) < 0.5
    losses = np.stack([_losses(x, y, inside, setting) for inside in included])
    by_loss = loss_risk(losses[included], losses[~included])
    return lira_risk(confidence(losses), included), by_loss


def _mean(found: Sequence[Risk]) -> Risk:
    tpr, auc = (float(np.mean([getattr(r, name) for r in found])) for name in ("tpr", "auc"))
    members, others = (sum(getattr(r, name) for r in found) for name in ("members", "others"))
    return Risk(tpr, found[0].fpr, auc, members, others)


def _losses(x: Array, y: Array, inside: Array, setting: Setting) -> Array:
    model = trained(x[inside], y[inside], 10, setting)
    p = probabilities(model, np.column_stack([x, np.ones(len(x))]))
    return np.asarray(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)))


def alone(quick: bool = False) -> Sequence[Figure]:
    """Row 10, the hardest case: 150 of 300 digits in one place, trained until the model fits them."""
    models, sets, figures = (16, 1, []) if quick else (128, 6, [])
    off, by_loss, error = risks(Setting(0.0, steps=300, clip=1e9, lr=1.0), models, sets)
    figures.append(_figure("300 digits in one place, no DP", "", off, by_loss, error=error))
    for said, goal in GOALS.items():
        setting = Setting(noise_for(goal), lr=1.0)
        found, by_loss, error = risks(setting, models, sets)
        most = permitted([Gaussian(setting.noise_multiplier, setting.rate, setting.steps)])
        name = f"300 digits in one place, {said}"
        figures.append(_figure(name, "TPR <= 3 %", found, by_loss, most, error))
    return figures


def federated(quick: bool = False) -> Sequence[Figure]:
    """Row 10 on a job: FedAvg over five sites with 200 digits each, 20 rounds, batches of 32."""
    models, rounds, batch = (8 if quick else 24), (3 if quick else 20), 32
    x, y = digits()
    taken = np.random.default_rng(10).permutation(len(x))[:1000]
    train = {f"site{i}": Examples(x[taken[i::5]], y[taken[i::5]]) for i in range(5)}
    # In a run a site keeps 120 of its 200 rows on average and hardly ever fewer than 90 (five standard
    # deviations); the account takes a batch's share of 90, so no fit samples at a higher rate.
    linear = LinearTrainer("multinomial", 64, 10)
    z = calibrate(Goal(8.0, DELTA), rounds * 7, batch / 90)
    private = PrivateLinearTrainer(linear, RecordPrivacy(1.0, z), Draws)
    figures, most = [], permitted([Gaussian(z, batch / 90, rounds * 7)])
    for name, trainer, goal in (("no DP", linear, ""), ("epsilon 8", private, "TPR <= 3 %")):
        job = Job(
            trainer,
            local=LocalWork(batch_size=batch, optimizer=Optimizer(lr=0.5)),
            stop=Stop(rounds),
            islands=lambda seed: Islands(train),
        )
        found = audit_job(job, models=models, rows=1000)["membership"]
        risk, by_loss = Risk(**found["lira"]), Risk(**found["loss"])
        what = f"five sites of 200 digits, {name}"
        figures.append(_figure(what, goal, risk, by_loss, most if goal else 1.0))
    return figures


def _figure(
    what: str, goal: str, found: Risk, by_loss: Risk, most: float = 1.0, error: float = 0.0
) -> Figure:
    """One line; ``most`` is what the account permits any attack, ``error`` the figure's."""
    width = f" ± {100 * error:.1f}" if error else ""
    text = f"LiRA {100 * found.tpr:.1f}{width} % (AUC {found.auc:.3f})"
    text += f", loss {100 * by_loss.tpr:.1f} %"
    text += f"; the account permits {100 * most:.1f} %" if most < 1 else ""
    holds = not goal or found.tpr <= 0.03
    return Figure(10, f"TPR at 1 % FPR, {what}", goal, text, holds)
