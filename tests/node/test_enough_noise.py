"""A site that adds a share of the noise takes part only where enough shares are surely in the sum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atoll.core.chain import COHORT
from atoll.core.errors import AuthError
from atoll.node.sums.masking import _enough_noise

SITES = {"client": {"where": "sites"}, "threshold": 0}


def told(cohort: int) -> dict[str, Any]:
    return {COHORT: np.full(1, float(cohort))}


@pytest.mark.parametrize(
    ("privacy", "arrays", "threshold", "refused"),
    [
        (SITES, told(6), 5, False),
        (SITES, told(6), 4, True),  # made for 5 shares of 6
        (SITES, told(100), 5, True),  # a server that says there are many, so that each adds little
        ({**SITES, "threshold": 4}, told(6), 4, False),
        (SITES, {}, 5, True),
        ({"client": {"where": "server"}}, {}, 3, False),
        ({"client": None}, {}, 3, False),
        ({}, {}, 3, False),
    ],
)
def test_terms_must_open_no_sum_with_fewer_shares_than_were_counted_on(
    privacy: Any, arrays: Any, threshold: int, refused: bool
) -> None:
    terms: Any = SimpleNamespace(threshold=threshold)
    if refused:
        with pytest.raises(AuthError):
            _enough_noise(privacy, arrays, terms)
    else:
        _enough_noise(privacy, arrays, terms)
