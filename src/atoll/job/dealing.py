"""``[data.partition]``: one dataset dealt out to simulated clients."""

from __future__ import annotations

from typing import Any

from atoll.core.contracts import Examples
from atoll.core.errors import Fault, JobError
from atoll.core.seeds import Seed
from atoll.data import partition as parts
from atoll.job.schema import DataSpec

__all__ = ["partitioned"]


_BY_CLASS = ("dirichlet", "classes")


def partitioned(data: DataSpec, examples: Examples, seed: Seed) -> parts.Partition:
    """``[data.partition]`` applied to one dataset.

    Raises:
        JobError: there is no such table, or the rows cannot be dealt out as it says: by class where they
            have no class each.
    """
    given = data.partition
    if given is None:
        fault = Fault("data.partition", "is required for one dataset", "add [data.partition]")
        raise JobError(f"{data.source} is one dataset", faults=[fault])
    if given.kind in _BY_CLASS and (data.task == "regression" or examples.targets.ndim != 1):
        reason = f"{given.kind!r} deals out classes, and these rows have no class each"
        fault = Fault("data.partition.kind", reason, "choose 'iid' or 'quantity'")
        raise JobError("the partition does not fit the data", faults=[fault])
    every: dict[str, dict[str, Any]] = {
        "dirichlet": {
            "alpha": given.alpha,
            "balanced": given.balance,
            "min_rows": given.min_rows,
        },
        "quantity": {"alpha": given.alpha, "min_rows": given.min_rows},
        "classes": {"k": given.classes_per_client},
    }
    options = every.get(given.kind, {})
    scheme = parts.SCHEMES.get(given.kind, parts.iid)
    dealt = parts.deal(examples, scheme(examples.targets, given.clients, seed, **options))
    if given.kind == "feature_noise":
        return parts.add_noise(dealt, given.noise, seed / "noise")
    return parts.rotate(dealt) if given.kind == "rotation" else dealt
