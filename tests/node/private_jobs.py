"""One site's run of a job with differential privacy, driven task by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_federation as ff
import numpy as np

from atoll.core.chain import COHORT
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.home import Home
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Limit, composed_epsilon
from atoll.node.settings import Policy
from atoll.privacy.dp.events import Gaussian, to_plain
from atoll.privacy.links.clip import BOUND
from atoll.wire.frames import encode
from atoll.wire.messages import TaskBody

Z = 4.0
"""Noise multiplier of every job here."""

TRUSTING = Policy(server_noise=True)
"""A site that trusts the server's noise: the shortest way to a job with a cost."""


def cost(rounds: int, delta: float = 1e-5) -> float:
    """Epsilon of so many rounds."""
    if not rounds:
        return 0.0
    return composed_epsilon([to_plain(Gaussian(Z, 1.0, rounds))], delta, "add_or_remove")


def limit(folder: Path, name: str, rounds: float, unit: str = "site") -> Limit:
    """A limit that so many rounds keep to, and no more."""
    made = Limit("sites", cost(int(rounds)) + 1e-6, 1e-5, unit)
    Budgets(Home(folder / name).budgets).set(made)
    return made


class Private(ff.Solo):
    """A run whose rounds cost what :func:`cost` says."""

    def __init__(self, server: Any, folder: Path, run: str = "r1", **client: Any) -> None:
        super().__init__(server, folder, run)
        plain = spec_to_plain(self.run.spec)
        noise = {"noise_multiplier": Z, **client}
        plain["privacy"] = {"clip": 1.0, "client": noise}
        plain["evaluation"]["federated"] = False
        plain["rounds"]["count"] = 100
        plain["name"] = f"toy-{run}"
        self.run.spec = parse_job(plain)

    def task(self, seconds: float = 0.0, **more: Any) -> TaskBody:
        made = super().task(seconds, **more)
        vector = np.zeros(self.size)
        vector[0] = seconds
        vectors = {"parameters": vector, BOUND: np.ones(1), COHORT: np.full(1, 2.0)}
        ref = self.server.keep(encode({}, vectors))
        return made.model_copy(update={"broadcast": ref})
