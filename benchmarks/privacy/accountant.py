"""Row 7: is the accountant right? Beside published tables, the closed form, and a looser bound."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atoll.privacy.dp.accounting import account, epsilon
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.losses import gaussian_epsilon
from atoll.privacy.dp.rdp import rdp_epsilon
from benchmarks.privacy.figures import Figure

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "privacy" / "dp"))

from published import TABLE

DELTA = 1e-5


def published(quick: bool = False) -> Sequence[Figure]:
    """Epsilons of papers and of dp-accounting, by the three rules."""
    off: dict[str, list[float]] = {"the classic rule": [], "RDP": [], "PLD": []}
    for q, z, rounds, delta, classic, rdp, pld in TABLE:
        events = [Gaussian(z, q, rounds)]
        off["RDP"].append(rdp_epsilon(events, delta) / rdp - 1)
        off["PLD"].append(epsilon(events, delta, method="pld") / pld - 1)
        if classic:
            off["the classic rule"].append(rdp_epsilon(events, delta, classic=True) / classic - 1)
    figures = []
    for rule, apart in off.items():
        most = max(map(abs, apart))
        figures.append(
            Figure(
                7,
                f"{len(apart)} published epsilons, {rule}",
                "within 1 %",
                f"at most {most:.2%} apart",
                most <= 0.01,
            )
        )
    return figures


def bounds(quick: bool = False) -> Sequence[Figure]:
    """The closed form of one Gaussian release, and the order of the two bounds."""
    apart = []
    for z in np.geomspace(0.5, 20.0, 5 if quick else 30):
        sampled = epsilon([Gaussian(float(z), 1 - 1e-9)], DELTA)  # of all units: no sampling
        apart.append(abs(sampled / gaussian_epsilon(float(z), DELTA) - 1))
    rng, wrong, number = np.random.default_rng(7), 0, 10 if quick else 100
    for _ in range(number):
        z, q = float(rng.uniform(0.8, 5.0)), float(10 ** rng.uniform(-2.7, -0.7))
        both = account([Gaussian(z, q, int(rng.integers(1, 1000)))], 1e-6)
        wrong += both.pld is None or both.rdp is None or both.pld > both.rdp + 1e-6
    return [
        Figure(
            7,
            f"composed Gaussian losses, {len(apart)} multipliers from 0.5 to 20",
            "within 1 % of the closed form",
            f"at most {max(apart):.2%} apart",
            max(apart) <= 0.01,
        ),
        Figure(
            7,
            f"{number} sampled jobs, PLD and RDP",
            "PLD <= RDP",
            f"{number - wrong}/{number}",
            not wrong,
        ),
    ]
