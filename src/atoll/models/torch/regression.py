"""Torch modules that are a regression, and better off as one."""

from __future__ import annotations

from atoll.core.layout import Layout
from atoll.models.linear import LinearTrainer
from atoll.models.torch.chain import Chain

__all__ = ["regression_of"]


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
