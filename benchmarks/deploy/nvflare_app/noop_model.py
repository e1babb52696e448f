"""The model that NVFlare sends around: ten arrays, as the other contestants have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Arrays"]


class Arrays(nn.Module):
    """Ten arrays of equal length.

    Args:
        values: of all of them together.
    """

    def __init__(self, values: int) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(1)
        arrays = [torch.randn(values // 10, generator=made) for _ in range(10)]
        self.arrays = nn.ParameterList(map(nn.Parameter, arrays))

    def forward(self, x: Tensor) -> Tensor:
        """Nobody asks for it."""
        return x
