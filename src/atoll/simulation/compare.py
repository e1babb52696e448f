"""Was it worth joining? Each site trained alone, and all rows pooled, by the same loop.

Pooling is possible in a simulation only; it is what the federation is measured against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from atoll.algorithms import FedAvg
from atoll.core.chain import Chain
from atoll.core.contracts import Examples, Weighting
from atoll.core.errors import ClientError, QuorumError
from atoll.core.metrics import values
from atoll.core.values import ClientId
from atoll.runtime.checkpoint import Progress
from atoll.runtime.client import Parts, evaluate_client
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.serial import SerialExecutor

__all__ = ["compare", "pooled"]


def pooled(clients: Mapping[ClientId, Any]) -> Examples | None:
    """All rows together; None when the data are not plain examples of one shape."""
    every = [e for e in clients.values() if isinstance(e, Examples)]
    if len(every) != len(clients) or len({e.features.shape[1:] for e in every}) != 1:
        return None
    return Examples(
        np.concatenate([e.features for e in every]), np.concatenate([e.targets for e in every])
    )


def compare(
    parts: Parts,
    rounds: int,
    federated: Mapping[ClientId, Mapping[str, float]],
    together: Examples | None,
) -> dict[str, Any]:
    """Metrics on each site's held-out rows: trained alone, federated, pooled.

    Every model gets the same start, local work and number of rounds.

    Args:
        parts: the federated run's parts.
        rounds: rounds of the federated run.
        federated: its metrics per site.
        together: all training rows; None when they cannot be pooled.

    Returns:
        ``{"metric": name, "sites": {site: {"alone": …, "federated": …, "pooled": …}}, "failed":
        {name: reason}}``; None for a model that could not be trained, with the reason in ``failed``.
    """
    failed: dict[str, str] = {}
    whole = None if together is None else _train(parts, "pooled", together, rounds, failed)
    found: dict[ClientId, dict[str, Any]] = {}
    for site in parts.held_out:
        alone = _train(parts, site, parts.clients[site], rounds, failed)
        found[site] = {
            "alone": None if alone is None else _on(parts, alone, site, site),
            "federated": dict(federated[site]),
            "pooled": None if whole is None else _on(parts, whole, site, "pooled"),
        }
    return {"metric": _headline(list(federated.values())), "sites": found, "failed": failed}


def _train(
    parts: Parts, name: ClientId, rows: Any, rounds: int, failed: dict[str, str]
) -> Progress | None:
    """One client's training; a site that fails alone must not cost the federation its result."""
    single = replace(
        parts,
        algorithm=FedAvg(),
        clients={name: rows},
        held_out={},
        weighting=Weighting("uniform"),
        # Integers are for sums over sites; noise stays, or the comparison would not be fair.
        chain=parts.chain if parts.chain.account is not None else Chain(),
    )
    loop = Loop(
        single, SerialExecutor(single), evaluation=Evaluation(every=0), stop=Stop(rounds=rounds)
    )
    try:
        return loop.run().progress
    except (ClientError, QuorumError) as error:
        failed[name] = error.message
        return None


def _on(parts: Parts, progress: Progress, site: ClientId, trained: ClientId) -> dict[str, float]:
    """Metrics on the site's rows, with the personal entries of the client that was ``trained``."""
    own = progress.memories.get(trained, {})
    return values(evaluate_client(parts, progress.state.parameters, site, own))


def _headline(sites: Sequence[Mapping[str, float]]) -> str:
    """The metric a reader looks at first."""
    names = set(sites[0]) if sites else set()
    return next((n for n in ("auc", "accuracy", "r2", "loss") if n in names), "loss")
