"""Losses of torch models by name, each a mean over the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from atoll.core.errors import LayoutError

__all__ = ["LOSSES", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> scalar mean loss of the batch."""


def _aligned(output: Tensor, target: Tensor) -> Tensor:
    """The output in the target's shape: ``(n, 1)`` and ``(n,)`` are the same thing."""
    if output.numel() != target.numel():
        raise LayoutError(
            f"the model gives {tuple(output.shape)} for targets of {tuple(target.shape)}",
            remedy="give it one output per target, or use loss cross_entropy",
        )
    return output.reshape(target.shape)


def _bce(output: Tensor, target: Tensor) -> Tensor:
    z = _aligned(output, target)
    return functional.binary_cross_entropy_with_logits(z, target.to(z.dtype))


def _mse(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(_aligned(output, target), target.to(output.dtype))


def _l1(output: Tensor, target: Tensor) -> Tensor:
    return functional.l1_loss(_aligned(output, target), target.to(output.dtype))


LOSSES: dict[str, Loss] = {
    "cross_entropy": functional.cross_entropy,
    "nll_sum": partial(functional.cross_entropy, reduction="sum"),
    "bce": _bce,
    "mse": _mse,
    "l1": _l1,
}
"""Losses by name. All take logits; ``nll_sum`` is summed over the batch instead of averaged (it takes
log-probabilities as well, which the softmax leaves as they are), reported per row all the same."""
