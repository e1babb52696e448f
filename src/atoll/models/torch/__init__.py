"""Modules of torch as models: general, compiled, in lanes, by algebra, and with privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.models.torch.adapter import TorchTrainer
    from atoll.models.torch.lanes import LanesTrainer

__all__ = ["LanesTrainer", "TorchTrainer"]


def __getattr__(name: str) -> Any:
    """Import what users name from its home when it is first asked for: most of this folder does without."""
    if name == "TorchTrainer":
        from atoll.models.torch.adapter import TorchTrainer

        return TorchTrainer
    if name == "LanesTrainer":
        from atoll.models.torch import adapter  # noqa: F401 (it imports torch as that is done best)
        from atoll.models.torch.lanes import LanesTrainer

        return LanesTrainer
    raise AttributeError(f"module 'atoll.models.torch' has no attribute {name!r}")
