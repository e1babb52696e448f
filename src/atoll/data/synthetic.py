"""Made-up federations with known heterogeneity, as published: Synthetic(alpha, beta) and FCUBE."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.data.partition import Partition, deal

__all__ = ["fcube", "synthetic"]

_DEVICES, _DIMENSION, _CLASSES = 30, 60, 10


def synthetic(
    alpha: float, beta: float, seed: Seed, *, iid: bool = False
) -> tuple[Partition, Partition]:
    """Synthetic(alpha, beta) of Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.

    30 devices with 60 features and 10 classes. Device k draws

    - ``n_k = int(lognormal(4, 2)) + 50`` rows,
    - ``u_k ~ N(0, alpha)``, then its model ``W_k ~ N(u_k, 1)`` (60 x 10), ``b_k ~ N(u_k, 1)``,
    - ``B_k ~ N(0, beta)``, then the mean of its features ``v_k ~ N(B_k, 1)``,
    - rows ``x ~ N(v_k, diag(j^-1.2))`` with classes ``y = argmax(x W_k + b_k)``.

    As in the authors' code alpha and beta are standard deviations.

    Args:
        alpha: how much local models differ.
        beta: how much local features differ.
        seed: the draw.
        iid: the IID set: one global model and ``v_k = 0``; alpha and beta are not read.

    Returns:
        Training and test rows of every device: 90 % (rounded down) and the rest, shuffled.
    """
    generator = seed.generator()
    sizes = generator.lognormal(4, 2, _DEVICES).astype(np.int64) + 50
    u = generator.normal(0, alpha, _DEVICES)
    centre = generator.normal(0, beta, _DEVICES)
    spread = np.arange(1, _DIMENSION + 1, dtype=np.float64) ** -0.6  # sd: root of j^-1.2
    shared = _model(0.0, generator)
    parts = []
    for k, n in enumerate(sizes):
        v = np.zeros(_DIMENSION) if iid else generator.normal(centre[k], 1, _DIMENSION)
        weights, bias = shared if iid else _model(u[k], generator)
        x = v + spread * generator.standard_normal((n, _DIMENSION))
        parts.append((x, np.argmax(x @ weights + bias, axis=1)))
    whole = Examples(
        np.concatenate([x for x, _ in parts]).astype(np.float32),
        np.concatenate([y for _, y in parts]).astype(np.int64),
    )
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shuffled = [a + generator.permutation(b - a) for a, b in pairwise(starts)]
    cuts = [int(0.9 * n) for n in sizes]
    train = [rows[:cut] for rows, cut in zip(shuffled, cuts, strict=True)]
    test = [rows[cut:] for rows, cut in zip(shuffled, cuts, strict=True)]
    return deal(whole, train), deal(whole, test)


def _model(mean: float, generator: np.random.Generator) -> tuple[Array, Array]:
    weights = generator.normal(mean, 1, (_DIMENSION, _CLASSES))
    return weights, generator.normal(mean, 1, _CLASSES)


def fcube(seed: Seed, *, rows: int = 1000, test_rows: int = 1000) -> tuple[Partition, Examples]:
    """FCUBE of Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022.

    Points uniform in the cube [-1, 1]^3, class 0 where x1 > 0 and 1 where x1 < 0. The planes through
    the centre cut the cube in 8 octants; each of 4 clients holds one octant and its mirror image
    through the centre, so labels are balanced everywhere while features differ.

    Args:
        seed: the draw.
        rows: training rows of each client.
        test_rows: test rows, uniform in the whole cube.

    Returns:
        The clients' training rows, and one central test set.
    """
    parts = []
    for client, octant in enumerate([(1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1)]):
        generator = (seed / client).generator()
        side = generator.choice((-1.0, 1.0), rows)
        parts.append(_nonzero(generator, rows) * np.array(octant) * side[:, None])
    generator = (seed / "test").generator()
    cube = _nonzero(generator, test_rows) * generator.choice((-1.0, 1.0), (test_rows, 3))
    train = _by_sign(np.concatenate(parts))
    return Partition(train, rows * np.arange(5, dtype=np.int64)), _by_sign(cube)


def _nonzero(generator: np.random.Generator, rows: int) -> Array:
    """Uniform in (0, 1]: no point lies on a boundary."""
    return np.asarray(1.0 - generator.random((rows, 3)))


def _by_sign(points: Array) -> Examples:
    return Examples(points.astype(np.float32), (points[:, 0] < 0).astype(np.int64))
