"""The adaptive server step of Reddi et al. 2021 (Algorithm 2), shared by FedAdagrad, FedAdam, FedYogi.

m_t = beta1 m_(t-1) + (1 - beta1) Delta_t
v_t = rule(v_(t-1), Delta_t^2)
x_(t+1) = x_t + eta m_t / (sqrt(v_t) + tau)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from atoll.algorithms.averaging import spread, stepped
from atoll.core.errors import Fault
from atoll.core.layout import Array, Layout
from atoll.core.values import Aggregate, State

__all__ = ["BIAS_CORRECTIONS", "adaptive_step", "bias_corrected", "correction_faults", "start"]

BIAS_CORRECTIONS = ("none", "t", "t+1")
"""``none`` as published; ``t`` as Kingma & Ba 2015; ``t+1`` as Flower, one round ahead of ``t``."""


def start(
    parameters: Array, layout: Layout, population: int, initial_v: float | None, tau: float
) -> State:
    """Start with m = 0 and v = ``initial_v`` on the trained part; tau^2, the paper's start, when None."""
    state = State.start(parameters, layout, population)
    v = tau**2 if initial_v is None else initial_v
    slots = {"m": spread(state, np.array(0.0)), "v": spread(state, np.array(v))}
    return State.start(parameters, layout, population, **slots)


def bias_corrected(lr: float, kind: str, round: int, beta1: float, beta2: float) -> float:
    """The rate eta times ``sqrt(1 - beta2^t) / (1 - beta1^t)``.

    Args:
        lr: eta.
        kind: one of :data:`BIAS_CORRECTIONS`.
        round: rounds done before this one, so that t = round + 1 is 1 in the first.
        beta1: decay of m.
        beta2: decay of v.
    """
    if kind == "none":
        return lr
    t = round + (1 if kind == "t" else 2)
    return float(lr * np.sqrt(1.0 - beta2**t) / (1.0 - beta1**t))


def adaptive_step(
    state: State,
    aggregate: Aggregate,
    second: Callable[[Array, Array], Array],
    *,
    lr: float,
    beta1: float,
    tau: float,
) -> State:
    """One server step with the second-moment rule ``second(v, Delta^2)``, in float64."""
    mean = aggregate.mean("delta")
    delta = mean[state.trained]
    m_old, v_old = (state.slots[name][state.trained].astype(np.float64) for name in "mv")
    m = beta1 * m_old + (1.0 - beta1) * delta
    v = second(v_old, delta * delta)
    step = lr * m / (np.sqrt(v) + tau)
    return state.next(stepped(state, mean, step), m=spread(state, m), v=spread(state, v))


def correction_faults(kind: str, beta2: float) -> list[Fault]:
    """Bias correction divides by what beta2 = 1 makes 0."""
    if kind == "none" or beta2 != 1.0:
        return []
    return [Fault("algorithm.bias_correction", f"{kind!r} needs beta2 < 1", 'use "none"')]
