"""Sums of clipped row gradients for a chain of dense layers, without autograd and without hooks.

A dense layer's row gradient is the outer product of what goes in, ``a_i``, and the gradient of what comes
out, ``g_i``: its squared norm is ``|g_i|^2 |a_i|^2``. One pass forward and one back give all ``a`` and
``g``; then each layer's clipped sum is one product of matrices, ``(c g)^T a`` with the factors c of the
rows (Goodfellow, *Efficient Per-Example Gradient Computations*, 2015, https://arxiv.org/abs/1510.01799).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from atoll.core.layout import Array
from atoll.models.private import TINY
from atoll.models.torch.chain import Chain, Dense, chain_of
from atoll.models.torch.flat import Bench

__all__ = ["Chained"]

Total = Callable[[nn.Module, Tensor, Tensor], Tensor]

_ROWS = 4096
"""Most rows of a micro-batch."""


class Chained:
    """Row gradients of a chain of dense layers; see :class:`atoll.models.torch.private_rows.Rows`.

    Args:
        bench: whose weights are used.
        chain: what its module is.
        total: the summed loss.
        loss: its name; the slope of some is written out here.
    """

    def __init__(self, bench: Bench, chain: Chain, total: Total, loss: object = None) -> None:
        self.bench, self.total = bench, total
        self._slope = _softmax if loss in ("cross_entropy", "nll_sum") else self._differentiated
        self._layers = [(layer, *_views(bench, layer)) for layer in chain.layers]
        self._outputs = nn.Identity()
        # What a bias sees beside a layer's inputs.
        dtype = np.dtype(bench.layout.dtype).type
        self._seen = [dtype(TINY if d.bias is None else 1.0) for d in chain.layers]

    @classmethod
    def of(cls, bench: Bench, total: Total, loss: object, x: Tensor) -> Chained | None:
        """For the module of a bench and rows like ``x``; None where it is no such chain."""
        chain = chain_of(bench.module, bench.layout)
        if chain is None or x.flatten(1).shape[1] != chain.layers[0].inputs:
            return None
        return cls(bench, chain, total, loss)

    @property
    def largest(self) -> int:
        """Rows of a micro-batch where its size is not given; nothing is held by row."""
        return _ROWS

    def add(
        self, x: Tensor, y: Tensor, clip: float, *, fresh: bool = False, unit: float = 1.0
    ) -> Tensor:
        """Add the rows' clipped gradients, or write them; returns their norms before clipping, ``(n,)``."""
        given, before, out = self._forward(x.flatten(1))
        slopes = self._backward(given, before, out, y)
        norms = self._norms(given, slopes)
        scale = (clip / unit) / np.maximum(norms, clip)
        if not scale.min() > 0:  # 0 times infinity would not be 0, and NaN is not above 0 either
            kept = torch.from_numpy(scale > 0)
            if fresh:
                self.bench.gradient.zero_()
            if kept.any():
                self.add(x[kept], y[kept], clip, unit=unit)
            return torch.from_numpy(norms)
        factors = torch.from_numpy(scale[:, None])
        for (_, _, _, weight, bias), a, g in zip(self._layers, given, slopes, strict=True):
            g *= factors
            if not fresh:
                weight.addmm_(g.t(), a)
            else:
                torch.mm(g.t(), a, out=weight)
            if bias is not None and fresh:
                torch.sum(g, 0, out=bias)
            elif bias is not None:
                bias += g.sum(0)
        return torch.from_numpy(norms)

    def _norms(self, given: list[Tensor], slopes: list[Tensor]) -> Array:
        """Length of each row's gradient over all layers, ``(n,)``: in one, |g| sqrt(|a|^2 + 1).

        What is as small as this is counted in NumPy, whose code the noise has left in the cache.
        """
        lengths = list[Array]()
        with np.errstate(over="ignore", invalid="ignore"):
            for seen, a, g in zip(self._seen, given, slopes, strict=True):
                inputs = torch.linalg.vector_norm(a, dim=1).numpy()
                outputs = torch.linalg.vector_norm(g, dim=1).numpy()
                lengths.append(np.hypot(inputs, seen) * (outputs + TINY))
            return reduce(np.hypot, lengths)

    def _forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What goes into each layer, what it gives before its function, and the outputs."""
        given, before, h = [x], list[Tensor](), x
        for layer, weight, bias, *_ in self._layers:
            z = torch.mm(h, weight.t()) if bias is None else torch.addmm(bias, h, weight.t())
            before.append(z)
            h = z if layer.activation is None else layer.activation.forward(z)
            given.append(h)
        return given[:-1], before, h

    def _backward(
        self, given: list[Tensor], before: list[Tensor], out: Tensor, y: Tensor
    ) -> list[Tensor]:
        """The gradient of what each layer gives, before its function."""
        g = self._slope(out, y)
        slopes = [g]
        for i in range(len(self._layers) - 1, 0, -1):
            g = torch.mm(g, self._layers[i][1])
            activation = self._layers[i - 1][0].activation
            if activation is not None:
                g = activation.backward(g, before[i - 1], given[i])
            slopes.append(g)
        return slopes[::-1]

    def _differentiated(self, out: Tensor, y: Tensor) -> Tensor:
        """The gradient of any loss in the outputs."""
        out = out.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.total(self._outputs, out, y)
        return torch.autograd.grad(loss, out)[0]


def _softmax(out: Tensor, y: Tensor) -> Tensor:
    """The gradient of cross-entropy, summed over rows, in the outputs."""
    slope = torch.softmax(out, 1)
    slope.numpy()[np.arange(len(y)), y.numpy()] -= 1.0
    return slope


def _views(bench: Bench, layer: Dense) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Weight and bias, and their parts of the flat gradient."""
    shape = (layer.out, layer.inputs)
    weight, slope = (flat[layer.weight].view(shape) for flat in (bench.flat, bench.gradient))
    if layer.bias is None:
        return weight, None, slope, None
    return weight, bench.flat[layer.bias], slope, bench.gradient[layer.bias]
