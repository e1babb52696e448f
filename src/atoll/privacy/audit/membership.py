"""Was this row trained on? By its loss, and by the likelihood ratio of models with and without it.

The figure that counts is the true positive rate at a low false positive rate: an attack that is sure
about a few rows does harm even where its accuracy is that of a coin.

References: Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning", CSF 2018,
https://arxiv.org/abs/1709.01604; Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership Inference
Attacks From First Principles", IEEE S&P 2022, https://arxiv.org/abs/2112.03570 (LiRA; here its online
form with few shadow models and therefore one variance for all rows, section VI-C).

==============================  =======================
symbol in the LiRA paper        name here
==============================  =======================
phi(f(x)_y)                     ``confidence``
shadow models f_in, f_out       rows of ``confidences``
Lambda                          ``lira``
==============================  =======================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["Risk", "confidence", "lira", "lira_risk", "loss_risk", "risk_of"]

_LEAST, _MOST = 1e-12, 500.0
"""Losses are held within these before logarithms are taken."""


@dataclass(frozen=True)
class Risk:
    """How well an attack tells members from others.

    Args:
        tpr: true positive rate at a false positive rate of at most ``fpr``.
        fpr: that rate.
        auc: chance that a member scores above another row; .5 is guessing.
        members: how many members were scored.
        others: how many others were.
    """

    tpr: float
    fpr: float
    auc: float
    members: int
    others: int


def risk_of(members: Array, others: Array, fpr: float = 0.01) -> Risk:
    """The risk from scores, higher for "trained on".

    Args:
        members: scores of rows that were trained on, ``(m,)``.
        others: scores of rows that were not, ``(n,)``.
        fpr: false positive rate that is allowed, in (0, 1).

    Raises:
        DataError: one of the two groups is empty.

    >>> risk_of(np.array([3.0, 2.0, 0.0]), np.array([1.0, -1.0])).auc
    0.8333333333333334
    """
    if not (len(members) and len(others)):
        raise DataError("no members or no others to score", remedy="hold back some rows")
    ranked = np.sort(others)[::-1]
    wrong = int(fpr * len(others) + 1e-9)
    # Strictly above the first score that would be one false positive too many.
    tpr = float(np.mean(members > ranked[wrong])) if wrong < len(others) else 1.0
    below = np.searchsorted(np.sort(others), members, "left")
    equal = np.searchsorted(np.sort(others), members, "right") - below
    auc = float(np.mean((below + 0.5 * equal) / len(others)))
    return Risk(tpr, fpr, auc, len(members), len(others))


def loss_risk(members: Array, others: Array, fpr: float = 0.01) -> Risk:
    """The loss threshold: what was trained on has the lower loss.

    Args:
        members: losses of rows that were trained on.
        others: losses of rows that were not.
        fpr: allowed false positive rate.
    """
    return risk_of(-np.asarray(members), -np.asarray(others), fpr)


def confidence(losses: Array) -> Array:
    """Phi = log(p / (1 - p)) with p = exp(-loss): close to a normal variable over shadow models."""
    held = np.clip(losses, _LEAST, _MOST)
    return np.asarray(-held - np.log(-np.expm1(-held)))


def lira(confidences: Array, included: Array, target: int) -> Array:
    """Log Lambda of every row for the model ``target``, ``(rows,)``; the other models are its shadows.

    Args:
        confidences: phi by model and row, ``(models, rows)``.
        included: whether the model was trained on the row, bool, ``(models, rows)``.
        target: the attacked model; its own line of ``included`` is not looked at.

    Raises:
        DataError: fewer than two shadows have, or lack, any row.
    """
    shadows = np.arange(len(confidences)) != target
    phi, inside = confidences[shadows], included[shadows]
    with_mean, with_sd = _side(phi, inside)
    out_mean, out_sd = _side(phi, ~inside)
    aim = confidences[target]
    score = _log_density(aim, with_mean, with_sd) - _log_density(aim, out_mean, out_sd)
    return np.asarray(score)


def _side(phi: Array, chosen: Array) -> tuple[Array, float]:
    """Mean of each row over the shadows of one side, and one standard deviation for all rows."""
    count = chosen.sum(axis=0)
    if int(count.sum()) < 2:
        raise DataError("too few shadow models", remedy="train more of them, 8 at least")
    overall = float(phi[chosen].mean())
    total = np.where(chosen, phi, 0.0).sum(axis=0)
    mean = np.where(count > 0, total / np.maximum(count, 1), overall)
    rest = np.where(chosen, phi - mean, 0.0)
    free = max(1, int(count.sum() - np.count_nonzero(count)))  # one mean was taken off per row
    return mean, max(float(np.sqrt((rest**2).sum() / free)), 1e-9)


def _log_density(x: Array, mean: Array, sd: float) -> Array:
    return np.asarray(-0.5 * ((x - mean) / sd) ** 2 - np.log(sd))


def lira_risk(confidences: Array, included: Array, fpr: float = 0.01) -> Risk:
    """The risk with every model in turn the target and all others its shadows.

    Args:
        confidences: phi by model and row, ``(models, rows)``.
        included: whether the model was trained on the row, bool, ``(models, rows)``.
        fpr: allowed false positive rate.

    Raises:
        DataError: there are too few models.
    """
    scores = np.stack([lira(confidences, included, t) for t in range(len(confidences))])
    return risk_of(scores[included], scores[~included], fpr)
