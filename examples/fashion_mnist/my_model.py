"""A network of your own: any function that returns an ``nn.Module``."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """A dense layer whose output is added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, width)`` to ``(n, width)``."""
        return x + torch.relu(self.layer(x))


def make(width: int = 64, classes: int = 10) -> nn.Module:
    """784 pixels in, logits out; the arguments come from ``[model] options``."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), Residual(width), nn.Linear(width, classes)
    )
