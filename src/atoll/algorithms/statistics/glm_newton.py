"""Climbing to a maximum by Newton's method with step halving, one evaluation a round.

The state of a climb is a handful of arrays; :func:`advance` takes it and what the sites' sums say of the
point that was tried, and gives the next state. It stops where the Newton step is small against the
standard errors of the result, which for sums exact to 1e-16 is at 1e-10 of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from atoll.core.layout import Array

__all__ = ["CLIMBING", "REACHED", "STUCK", "Height", "advance", "begin", "dependent", "solve_kept"]

CLIMBING, REACHED, STUCK = 0.0, 1.0, 2.0
"""Values of ``status`` in the state of a climb."""

MOST_HALVINGS = 40
SMALL = 1e-20
"""Twice the gain that Newton's model still promises, in units of log-likelihood, when a climb is over."""
NOISE = 1e-15
"""What is called no loss: relative to the size of the objective."""

Stride = Callable[[Array, Array, Array, Array], Array]
"""(point, gradient, hessian, kept) -> step."""


@dataclass(frozen=True)
class Height:
    """What is known of one point.

    Args:
        value: objective, to be maximal.
        gradient: ``(k,)``.
        hessian: minus second derivatives, ``(k, k)``.
        outside: number of rows for which the point is impossible.
        unit: what one unit of log-likelihood is in the objective (phi).
        size: size of the sums behind the value, for rounding.
    """

    value: float
    gradient: Array
    hessian: Array
    outside: float = 0.0
    unit: float = 1.0
    size: float = 0.0


def begin(point: Array) -> dict[str, Array]:
    """The state of a climb that will try ``point`` first."""
    return {
        "trial": np.asarray(point, np.float64),
        "point": np.asarray(point, np.float64),
        "step": np.zeros(len(point)),
        "value": np.array(np.nan),
        "gain": np.array(np.inf),
        "halvings": np.array(0.0),
        "iterations": np.array(0.0),
        "status": np.array(CLIMBING),
        "kept": np.ones(len(point)),
    }


def advance(
    state: Mapping[str, Array], height: Height, stride: Stride, most: int = 100
) -> dict[str, Array]:
    """The next state, from what is known of ``state["trial"]``."""
    state = dict(state)
    first = bool(np.isnan(state["value"]))
    old = float(state["value"])
    slack = NOISE * max(abs(old), height.size, 1.0) if not first else 0.0
    worse = not first and not height.value >= old - 64 * slack
    if height.outside > 0 or worse or not np.isfinite(height.value):
        return _half(state, first)
    step = stride(state["trial"], height.gradient, height.hessian, state["kept"])
    gain = float(step @ height.hessian @ step)
    before, iterations = float(state["gain"]), float(state["iterations"]) + 1
    near = gain <= SMALL * height.unit
    # Rounding may keep the promised gain from falling below SMALL: then it no longer shrinks.
    floor = iterations > 2 and gain <= 1e-14 * height.unit and gain >= 0.1 * before
    status = REACHED if near or floor else CLIMBING
    if status == CLIMBING and iterations >= most:
        status = STUCK
    return {
        **state,
        "point": state["trial"],
        "trial": state["trial"] + step if status == CLIMBING else state["trial"],
        "step": step,
        "value": np.array(height.value),
        "gain": np.array(gain),
        "halvings": np.array(0.0),
        "iterations": np.array(iterations),
        "status": np.array(status),
        "gradient": height.gradient,
        "hessian": height.hessian,
    }


def _half(state: dict[str, Array], first: bool) -> dict[str, Array]:
    """A step that went too far is taken half as far; one that cannot be taken at all ends the climb."""
    halvings = float(state["halvings"]) + 1
    step = state["step"] / 2
    if first or halvings > MOST_HALVINGS:
        # Newton's model promised less than can be seen: this is the top, as far as numbers tell.
        top = not first and float(state["gain"]) <= 1e-9
        status = REACHED if top else STUCK
        return {**state, "trial": state["point"], "status": np.array(status)}
    return {**state, "step": step, "trial": state["point"] + step, "halvings": np.array(halvings)}


def dependent(hessian: Array, tolerance: float = 1e-11) -> tuple[Array, dict[int, tuple[int, ...]]]:
    """Columns of a Gram matrix that are combinations of earlier ones.

    Args:
        hessian: ``(k, k)``, positive semidefinite.
        tolerance: part of a column's square that earlier columns may leave unexplained.

    Returns:
        Mask of independent columns ``(k,)``, and for each other column those that it is made of.
    """
    diagonal = np.sqrt(np.maximum(np.diag(hessian), 0.0))
    scale = np.where(diagonal > 0, diagonal, 1.0)
    unit = hessian / np.outer(scale, scale)
    left, mask = unit.copy(), np.zeros(len(unit))
    for j in range(len(unit)):  # Gauss: what remains on the diagonal is what earlier columns leave
        if diagonal[j] > 0 and left[j, j] > tolerance:
            mask[j] = 1.0
            left[j + 1 :, j + 1 :] -= np.outer(left[j + 1 :, j], left[j, j + 1 :] / left[j, j])
    made: dict[int, tuple[int, ...]] = {}
    for j in np.flatnonzero(mask == 0).tolist():
        earlier = np.flatnonzero(mask[:j])
        parts = np.linalg.solve(unit[np.ix_(earlier, earlier)], unit[earlier, j])
        made[j] = tuple(earlier[np.abs(parts) > 1e-6].tolist())
    return mask, made


def solve_kept(hessian: Array, right: Array, kept: Array) -> Array:
    """``hessian^-1 right`` over the kept columns, zeros elsewhere; scaled before it is solved."""
    index = np.flatnonzero(kept)
    result = np.zeros(right.shape)
    if not len(index):
        return result
    part = hessian[np.ix_(index, index)]
    scale = 1.0 / np.sqrt(np.maximum(np.diag(part), 1e-300))
    unit = part * np.outer(scale, scale)
    wanted = right[index]
    shape = scale if wanted.ndim == 1 else scale[:, None]
    try:
        result[index] = shape * np.linalg.solve(unit, shape * wanted)
    except np.linalg.LinAlgError:
        result[index] = shape * np.linalg.lstsq(unit, shape * wanted, rcond=None)[0]
    return result
