"""Before the first round of a job on arrays: nobody is asked for sums of columns, which arrays do not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import played_sites as played
import pytest

from atoll.core.contracts import Examples
from atoll.job.load import parse_job


def rows(seed: int) -> Examples:
    drawn = np.random.default_rng(seed)
    return Examples(drawn.standard_normal((40, 3)), drawn.integers(0, 2, 40))


@pytest.mark.parametrize("aggregation", ["plain", "quantised"])
def test_sites_with_arrays_are_not_asked_for_sums(tmp_path: Path, aggregation: str) -> None:
    world = played.World(tmp_path, {f"site-{n}": rows(n) for n in range(3)})
    plain: dict[str, Any] = {
        "name": "arrays",
        "data": {"source": "arrays/*.npz", "test_fraction": 0.2},
        "model": {"kind": "logistic"},
        "rounds": {"count": 2},
        "privacy": {"aggregation": aggregation},
        "evaluation": {"compare": False},
    }
    run = world.submit(parse_job(plain))
    world.run()
    assert world.service.job(run).status == "completed", world.service.job(run).reason
    asked = {task.kind for site in world.sites.values() for task in site.asked}
    assert asked == {"survey", "ready", "train", "evaluate"}
