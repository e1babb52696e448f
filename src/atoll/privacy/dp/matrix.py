"""Noise that is correlated over rounds, so that sums over rounds carry less of it.

A job without sampling releases what each round adds, x_t, and needs the sums of all rounds so far. With
A the lower triangle of ones and A = B C, releasing C x + w protects x, and multiplying by B gives sums with
noise B w: round t gets x_t + (C^-1 w)_t. Three choices of C, all made round by round:

* ``banded``: C is a Toeplitz matrix whose first b coefficients are those of the square root of A,
  binom(2j, j) / 4^j, normalised (Kalinin, Lampert, *Banded Square Root Matrix Factorization*, NeurIPS
  2024, https://arxiv.org/abs/2405.13763). Needs the last b - 1 noises. b = 1 is independent noise.
* ``tree``: a binary tree over rounds, each of whose nodes has noise of its own (Kairouz et al., *Practical
  and Private (Deep) Learning without Sampling or Shuffling*, ICML 2021,
  https://arxiv.org/abs/2103.00039). Needs one noise for each level.
* ``blt``: C is a Toeplitz matrix whose coefficients are a sum of a few falling powers, so that one vector for
  each of them stands for all noises before (:mod:`atoll.privacy.dp.buffers`).

Since C x is released under Gaussian noise, adaptively chosen x cost no more than fixed ones (Denisov et
al., NeurIPS 2022, https://arxiv.org/abs/2202.08312). What a unit that takes part in k rounds, at least s
rounds apart, may change in C x is :func:`sensitivity` times its bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from atoll.core.errors import StateError
from atoll.core.layout import Array
from atoll.privacy.dp import buffers
from atoll.privacy.dp.events import MatrixGaussian
from atoll.privacy.dp.noise import Source, gaussian

__all__ = ["Correlated", "coefficients", "dense", "error", "memory", "sensitivity", "start", "step"]


@dataclass(frozen=True, eq=False)
class Correlated:
    """Where a run of correlated noise stands: to be kept with the server's state, and secret.

    Args:
        round: rounds that have their noise.
        kept: what is still needed of earlier noises, ``(m, d)`` with m of :func:`memory`, float64.
    """

    round: int
    kept: Array


def start(spec: MatrixGaussian, size: int) -> Correlated:
    """Before the first round of a run over vectors of ``size`` values."""
    return Correlated(0, np.zeros((memory(spec), size)))


def memory(spec: MatrixGaussian) -> int:
    """How many vectors of the model's length a run keeps: bands less one, levels, or buffers."""
    match spec.mechanism:
        case "banded":
            return spec.bands - 1
        case "tree":
            return spec.rounds.bit_length()
        case "blt":
            return len(spec.decays)


def step(
    source: Source, spec: MatrixGaussian, state: Correlated, bound: float
) -> tuple[Array, Correlated]:
    """The noise of the next round and the state after it.

    Args:
        source: of random bits.
        spec: the mechanism.
        state: as it was left; it may be used once.
        bound: L2 bound of one unit's contribution to one round.

    Raises:
        StateError: all planned rounds have their noise: more would cost more than was accounted for.
    """
    if state.round >= spec.rounds:
        raise StateError(
            f"all {spec.rounds} planned rounds of correlated noise are used up",
            remedy="plan more rounds before the run starts",
        )
    fresh = gaussian(source, state.kept.shape[1], spec.deviation * bound)
    return _STEPS[spec.mechanism](spec, state, fresh)


def coefficients(spec: MatrixGaussian) -> Array:
    """First column of a Toeplitz C, starting with 1: ``(b,)`` of ``banded``, ``(T,)`` of ``blt``.

    Not scaled to length 1: the sensitivity counts the length.

    >>> coefficients(MatrixGaussian("banded", 1.0, rounds=4, bands=3)).tolist()
    [1.0, 0.5, 0.375]
    """
    if spec.mechanism == "blt":
        return buffers.coefficients(*_pairs(spec), spec.rounds)
    out = np.ones(spec.bands)
    for j in range(1, spec.bands):
        out[j] = out[j - 1] * (2 * j - 1) / (2 * j)
    return out


def _pairs(spec: MatrixGaussian) -> tuple[Array, Array]:
    return np.array(spec.decays), np.array(spec.scales)


def _banded(spec: MatrixGaussian, state: Correlated, fresh: Array) -> tuple[Array, Correlated]:
    """Forward substitution in C y = w: y_t = w_t - c_1 y_(t-1) - ... ; the latest noise is row 0."""
    if not len(state.kept):
        return fresh, Correlated(state.round + 1, state.kept)
    held = min(spec.bands - 1, state.round)
    made = fresh - coefficients(spec)[1 : held + 1] @ state.kept[:held]
    kept = np.empty_like(state.kept)
    kept[0], kept[1:] = made, state.kept[:-1]
    return made, Correlated(state.round + 1, kept)


def _buffered(spec: MatrixGaussian, state: Correlated, fresh: Array) -> tuple[Array, Correlated]:
    """Forward substitution again; row j holds y_(t-1) + theta_j y_(t-2) + theta_j^2 y_(t-3) + ..."""
    decays, scales = _pairs(spec)
    made = fresh - scales @ state.kept
    return made, Correlated(state.round + 1, decays[:, None] * state.kept + made)


def _tree(spec: MatrixGaussian, state: Correlated, fresh: Array) -> tuple[Array, Correlated]:
    """Round t closes the nodes that end there; the sum up to t is that of the bits of t.

    Row l holds the noise of the node of 2^l rounds that is in the sum at present, or zeros.
    """
    t = state.round + 1
    level = (t & -t).bit_length() - 1
    kept = state.kept.copy()
    before = kept[: level + 1].sum(axis=0)
    kept[:level] = 0.0
    kept[level] = fresh
    return fresh - before, Correlated(t, kept)


_STEPS = {"banded": _banded, "tree": _tree, "blt": _buffered}


@lru_cache(maxsize=64)
def sensitivity(spec: MatrixGaussian) -> float:
    """Most that a unit with contributions of L2 norm 1 changes C x by, in L2 (Frobenius).

    Contributions of one unit may point anywhere, so rows of C that see several count them in line.
    Participations that do not fit into the rounds are not counted.
    """
    if spec.mechanism == "tree":
        k = min(spec.participations, 1 + (spec.rounds - 1) // spec.separation)
        return _tree_sensitivity(spec, k)
    plan = spec.rounds, spec.participations, spec.separation
    return buffers.unit_change(coefficients(spec), *plan)


def _tree_sensitivity(spec: MatrixGaussian, k: int) -> float:
    """An upper bound: at each level, nodes are taken to be as full as their width allows."""
    total = 0
    for level in range(spec.rounds.bit_length()):
        fullest = min(k, 1 + ((1 << level) - 1) // spec.separation)
        nodes, rest = divmod(k, fullest)
        if nodes >= (limit := ((spec.rounds >> level) + 1) // 2):  # odd multiples of its width
            nodes, rest = limit, 0
        total += nodes * fullest**2 + rest**2
    return math.sqrt(total)


def dense(spec: MatrixGaussian) -> tuple[Array, Array]:
    """B and C as matrices, for checks at small T: ``(T, m)`` and ``(m, T)``, B C = the sums.

    Toeplitz C have m = T; ``tree`` has one row for each node that is ever closed.
    """
    rounds = spec.rounds
    sums = np.tri(rounds)
    if spec.mechanism != "tree":
        matrix = sum(c * np.eye(rounds, k=-j) for j, c in enumerate(coefficients(spec)))
        return np.linalg.solve(matrix.T, sums.T).T, np.asarray(matrix)
    # Node t is closed at round t and covers the rounds that its lowest bit says.
    cover = np.zeros((rounds, rounds))
    use = np.zeros((rounds, rounds))
    for t in range(1, rounds + 1):
        cover[t - 1, t - (t & -t) : t] = 1.0
        rest = t
        while rest:
            use[t - 1, rest - 1] = 1.0
            rest &= rest - 1
    return use, cover


def error(spec: MatrixGaussian) -> float:
    """Root mean square over rounds of the noise in the sums, for a contribution of 1 at multiplier 1.

    Mechanisms that are to cost the same are compared by it.
    """
    left, _ = dense(spec)
    return sensitivity(spec) * math.sqrt(float((left**2).sum()) / spec.rounds)
