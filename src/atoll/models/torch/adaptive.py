"""Adaptive local optimisers in one pass over the flat vector: the kernels of torch's fused optimisers.

``torch.optim`` comes to the same kernels and the same bits, but makes its moments anew for each client, spends
some Python on each step, and imports torch's compiler when it is first used.

Sources: Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW), Duchi et al. 2011 (Adagrad).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from atoll.core.local import Optimizer
from atoll.models.torch.flat import Bench

__all__ = ["single_pass"]


def single_pass(optimizer: Optimizer, bench: Bench) -> Callable[[float], None] | None:
    """``move(lr)``: one client's next step of the flat weights along the flat gradient, from moments of 0.

    None for optimisers that torch has no such kernel for.
    """
    o = optimizer
    if o.name not in ("adam", "adamw", "adagrad"):
        return None
    count = torch.zeros((), dtype=torch.float32)  # as torch.optim counts steps
    moments = bench.moments[: 1 if o.name == "adagrad" else 2]
    for moment in moments:
        moment.zero_()
    held = [[tensor] for tensor in (bench.weights, bench.gradient, *moments)]
    common: dict[str, Any] = {"weight_decay": o.weight_decay, "eps": o.eps, "maximize": False}
    if o.name == "adagrad":
        kernel = partial(torch._fused_adagrad_, *held, [count], lr_decay=0.0, **common)
    else:
        made = torch._fused_adamw_ if o.name == "adamw" else torch._fused_adam_
        betas = {"beta1": o.betas[0], "beta2": o.betas[1]}
        kernel = partial(made, *held, [], [count], amsgrad=False, **betas, **common)

    def move(lr: float) -> None:
        count.add_(1)
        kernel(lr=lr)

    return move
