"""What a torch module gives for each row of some data, for figures that are bounded row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from atoll.core.errors import MissingExtra
from atoll.core.layout import Array
from atoll.models.scores import hits

try:
    import torch
    from torch import Tensor

    from atoll.models.torch.adapter import LOSSES, TorchTrainer
except ImportError as error:
    raise MissingExtra(
        "this model needs PyTorch", remedy="pip install torch, or pip install 'atoll[torch]'"
    ) from error

__all__ = ["per_row"]


def per_row(trainer: TorchTrainer, parameters: Array, data: Any) -> dict[str, Array]:
    """``loss`` of each row, and for classes ``accuracy``: whether it was right, or which part of it.

    The module sees the rows in the same chunks as in :meth:`~atoll.models.torch.adapter.TorchTrainer.evaluate`.

    Args:
        trainer: of the module.
        parameters: the whole vector.
        data: rows.
    """
    losses, right = [np.zeros(0)], [np.zeros(0)]
    loss = LOSSES[trainer.loss] if isinstance(trainer.loss, str) else trainer.loss

    def noted(output: Tensor, target: Tensor) -> Tensor:
        rows = range(len(output))
        losses.append(np.array([loss(output[i : i + 1], target[i : i + 1]).item() for i in rows]))
        if trainer.task != "regression":
            wide = output.to(torch.promote_types(output.dtype, torch.float32))
            right.append(hits(target.numpy(), wide.numpy()))
        return torch.zeros(())

    if len(data):
        replace(trainer, loss=noted).evaluate(parameters, data)
    found = {"loss": np.concatenate(losses)}
    if trainer.task != "regression":
        found["accuracy"] = np.concatenate(right)
    return found
