"""Row 5: the noise that is emitted is the noise that was declared, with sites lost as well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoll.privacy.audit.noise import normal_noise
from atoll.privacy.dp.distributed import SharedNoise
from atoll.privacy.dp.noise import SystemSource, gaussian, noised
from benchmarks.privacy.figures import Figure

GOAL = "sd within 0.5 %, chi-squared p > 1e-4"


def emitted(quick: bool = False) -> Sequence[Figure]:
    """Row 5."""
    draws, source = (200_000 if quick else 1_000_000), SystemSource()
    figures = [_judged("Gaussian", gaussian(source, draws, 1.7), 1.7)]
    values = np.random.default_rng(0).normal(0, 10, draws)
    bound, z = 2.0, 1.3
    added = noised(source, values, bound, z) - values
    figures.append(_judged("what a release adds to its values", added, z * bound))
    # rounding to the grid widens the declared deviation by some 2^-23 sqrt(size)
    for kind in ("skellam", "discrete_gaussian"):
        shares = SharedNoise(1000.0, threshold=14, kind=kind)  # type: ignore[arg-type]
        total = np.zeros(draws, np.int64)
        for _ in range(15):  # 15 of 20 sites stayed
            total += shares.draw(source, draws)
        found = _judged(
            f"{kind} in shares, 5 of 20 sites lost", total, shares.total_sd(15), step=1.0
        )
        figures.append(found)
    return figures


def control(quick: bool = False) -> Sequence[Figure]:
    """Row 5 with faults: the test sees them."""
    draws, source = 200_000, SystemSource()
    found = []
    for name, values in (
        ("3 % too little", gaussian(source, draws, 0.97)),
        ("one site's share left out of 15", gaussian(source, draws, (14 / 15) ** 0.5)),
        ("a generator that repeats", np.tile(gaussian(source, 2000, 1.0), draws // 2000)),
    ):
        p = normal_noise(values, 1.0).p
        found.append(Figure(5, f"control: {name}", "noticed: p < 1e-4", f"p = {p:.1e}", p < 1e-4))
    return found


def _judged(what: str, values: np.ndarray, sd: float, step: float = 0.0) -> Figure:
    found = normal_noise(values, sd, step=step)
    holds = abs(found.ratio - 1) <= 0.005 and found.p > 1e-4
    text = f"sd {100 * (found.ratio - 1):+.3f} %, p = {found.p:.3f}"
    return Figure(5, f"{what}, {found.draws:,} draws", GOAL, text, holds)
