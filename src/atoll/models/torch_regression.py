"""Torch modules that are a regression, and better off as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoll.core.contracts import Lane, Together
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Layout
from atoll.models.linear import LinearTrainer
from atoll.models.torch_chain import Chain

__all__ = ["regression_of", "side_by_side"]


def regression_of(chain: Chain | None, layout: Layout, loss: object) -> LinearTrainer | None:
    """The multinomial regression that a single dense layer is; None for anything else.

    Where its batches are small, what a step costs are its calls, and NumPy's are the shorter ones.
    """
    if chain is None or len(chain.layers) > 1 or loss != "cross_entropy":
        return None
    d = chain.layers[0]
    behind = d.weight.stop if d.bias is None else d.bias.start
    if d.out < 2 or d.weight.start or behind != d.weight.stop:
        return None
    return LinearTrainer(
        "multinomial", d.inputs, d.out, intercept=d.bias is not None, dtype=layout.dtype
    )


def side_by_side(
    regression: LinearTrainer, parameters: Array, lanes: Sequence[Lane], round: int
) -> Together:
    """Train every lane and add up the changes.

    Raises:
        JobConflict: targets are not one class a row; torch knows others, one client at a time.
        DataError: see :meth:`~atoll.models.linear.LinearTrainer.fit_together`.
    """
    for lane in lanes:
        if np.ndim(lane.data.targets) != 1:  # type: ignore[attr-defined]  # Examples
            raise JobConflict("targets are not one class a row")
    return regression.fit_together(parameters, lanes, round=round)
