"""Sums of clipped row gradients: by layer without forming them, or by ``torch.func`` for any module.

* :class:`Layers` runs forward and backward once, without weight gradients, and keeps each layer's input
  and the gradient of its output. A dense layer's row gradient is the outer product of two vectors:
  its norm is a product, and the clipped sum is one product of matrices with scaled rows (ghost clipping:
  Li et al., ICLR 2022, https://arxiv.org/abs/2110.05679; one backward pass: Bu et al., ICML 2023,
  https://arxiv.org/abs/2210.00038). Dense layers over sequences and embeddings take the norm from Gram
  matrices; convolutions and normalisations form their row gradients, which are small.
* :class:`Mapped` maps the gradient of one row over the batch, for whatever else a module does.

Both add to the flat gradient of a ``flat.Bench``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from atoll.models.private import TINY, factors
from atoll.models.torch.flat import Bench

__all__ = ["Layers", "Mapped", "NoLayers", "Rows"]

Total = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(module, features, targets) -> sum over rows of each row's loss."""

_HELD = 1 << 25
"""Values of row gradients that are held at once where no micro-batch is given."""

_FEW = 1 << 21
"""Multiplications of one row's kernel gradient up to which all rows are taken in one product."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NoLayers(Exception):
    """This module's row gradients cannot be had layer by layer; the text says why."""


class Rows(Protocol):
    """Adds clipped row gradients to a bench's gradient."""

    @property
    def largest(self) -> int:
        """Rows of a micro-batch where its size is not given."""
        ...

    def add(
        self, x: Tensor, y: Tensor, clip: float, *, fresh: bool = False, unit: float = 1.0
    ) -> Tensor:
        """Add the rows' clipped gradients; returns their norms before clipping, ``(n,)``.

        With ``fresh`` they are written over what the gradient holds. The sum is in ``unit``, a power
        of two; ``clip`` and the norms are not.
        """
        ...


@dataclass(frozen=True, eq=False)
class _Part:
    """One layer's share: squared norms ``(n,)``, and how to add its gradients scaled by row."""

    squares: Tensor
    add: Callable[[Tensor], None]


class Layers:
    """Row gradients layer by layer.

    Args:
        bench: whose module is used.
        total: the summed loss.

    Raises:
        NoLayers: a trained parameter belongs to a layer that is not known here.
    """

    def __init__(self, bench: Bench, total: Total) -> None:
        self.bench, self.total = bench, total
        self._slopes = {id(p): s for p, s in zip(bench.trained, bench.slopes, strict=True)}
        self._seen: list[tuple[nn.Module, Tensor, GradientEdge]] | None = None
        owned: set[int] = set()
        for name, part in bench.module.named_modules():
            own = [p for p in part.parameters(recurse=False) if id(p) in self._slopes]
            if not own:
                continue
            if _share(part) is None:
                raise NoLayers(f"{name or 'the module'} is a {type(part).__name__}")
            if owned & {id(p) for p in own}:
                raise NoLayers(f"{name} shares its weights")
            owned |= {id(p) for p in own}
            part.register_forward_hook(self._keep)
        if len(owned) < len(self._slopes):
            raise NoLayers("parameters outside any layer")

    @property
    def largest(self) -> int:
        """Rows whose convolution gradients fit into what is held at once."""
        held = sum(
            m.weight.numel() for m in self.bench.module.modules() if isinstance(m, _CONVOLUTIONS)
        )
        return max(1, min(4096, _HELD // max(held, 1)))

    def _keep(self, part: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        if self._seen is None or not out.requires_grad:
            return
        if any(part is other for other, _, _ in self._seen):
            raise NoLayers(f"a {type(part).__name__} is used twice in one pass")
        # The edge, not the tensor: what follows may change the tensor in place.
        self._seen.append((part, given[0].detach(), get_gradient_edge(out)))

    def add(
        self, x: Tensor, y: Tensor, clip: float, *, fresh: bool = False, unit: float = 1.0
    ) -> Tensor:
        """Add the rows' clipped gradients; returns their norms."""
        if fresh:
            self.bench.gradient.zero_()
        self._seen = []
        try:
            with torch.enable_grad():
                loss = self.total(self.bench.module, self.bench.formatted(x), y)
                seen = self._seen
                edges = [edge for _, _, edge in seen]
                grads = torch.autograd.grad(loss, edges, allow_unused=True) if edges else ()
        finally:
            self._seen = None
        parts, squares = list[_Part](), torch.zeros(len(x), dtype=self.bench.dtype)
        for (layer, given, _), grad in zip(seen, grads, strict=True):
            share = _share(layer)
            if grad is None or share is None:
                continue
            if len(grad) != len(x):
                raise NoLayers(f"rows are not the first axis of a {type(layer).__name__}'s output")
            part = share(layer, given, grad, self._slopes)
            squares += part.squares
            parts.append(part)
        norms = squares.sqrt()
        scale = torch.from_numpy(factors(norms.numpy(), clip))
        if not bool((scale > 0).all()):  # 0 times infinity would not be 0
            kept = scale > 0
            if bool(kept.any()):  # once more without the rows whose gradients are not finite
                self.add(x[kept], y[kept], clip, unit=unit)
            return norms
        scale /= unit
        for part in parts:
            part.add(scale)
        return norms


_Slopes = dict[int, Tensor]
_Share = Callable[[Any, Tensor, Tensor, _Slopes], _Part]


def _share(layer: Any) -> _Share | None:
    """How a layer of exactly this kind forms its row gradients; a subclass may do anything."""
    kind = type(layer)
    if kind in _CONVOLUTIONS:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return _convolution if plain else None
    if kind is nn.Embedding:
        odd = layer.sparse or layer.max_norm is not None or layer.scale_grad_by_freq
        return None if odd else _embedding
    known: dict[type[nn.Module], _Share] = {
        nn.Linear: _dense,
        nn.LayerNorm: _layer_norm,
        nn.GroupNorm: _group_norm,
    }
    return known.get(kind)


def _dense(layer: nn.Linear, a: Tensor, g: Tensor, slopes: _Slopes) -> _Part:
    """W x + b over rows ``(n, in)``, or over positions ``(n, ..., in)``."""
    weight, bias = slopes.get(id(layer.weight)), slopes.get(id(layer.bias))
    if a.dim() > 2:
        a, g = a.flatten(1, -2).transpose(1, 2), g.flatten(1, -2).transpose(1, 2)
        return _joined(_products(a, g, weight), _biases(g.sum(2), bias), len(a))
    # Squares of tiny values vanish in float32, and long inputs or slopes would go unclipped.
    own, seen = (torch.linalg.vector_norm(t, dim=1).add_(TINY).square_() for t in (g, a))
    squares = torch.zeros_like(own)
    if weight is not None:
        squares += own * seen
    if bias is not None:
        squares += own

    def add(scale: Tensor) -> None:
        scaled = g * scale[:, None]
        if weight is not None:
            weight.addmm_(scaled.t(), a)
        if bias is not None:
            bias.add_(scaled.sum(0))

    return _Part(squares, add)


def _products(a: Tensor, g: Tensor, slope: Tensor | None) -> _Part | None:
    """Row gradients ``g_i a_i^T``, from ``(n, in, positions)`` and ``(n, out, positions)``."""
    if slope is None:
        return None
    positions, cells = a.shape[2], a.shape[1] * g.shape[1]
    if 4 * positions * positions < cells:
        # Large terms may cancel in these sums: in float32 a norm could come out too small.
        wide, tall = a.double(), g.double()
        inner = (wide.transpose(1, 2) @ wide) * (tall.transpose(1, 2) @ tall)
        squares = inner.sum((1, 2)).clamp_(min=0.0).to(g.dtype)

        def add(scale: Tensor) -> None:
            scaled = (g * scale[:, None, None]).transpose(0, 1).flatten(1)
            slope.addmm_(scaled, a.transpose(1, 2).flatten(0, 1))

        return _Part(squares, add)
    return _formed(g @ a.transpose(1, 2), slope)


def _formed(rows: Tensor, slope: Tensor) -> _Part:
    """Row gradients that are there, ``(n, ...)``, in the parameter's order."""
    flat = rows.flatten(1)

    def add(scale: Tensor) -> None:
        slope.add_((scale @ flat).view(slope.shape))

    return _Part(flat.square().sum(1), add)


def _biases(rows: Tensor, slope: Tensor | None) -> _Part | None:
    return None if slope is None else _formed(rows, slope)


def _joined(one: _Part | None, other: _Part | None, rows: int) -> _Part:
    parts = [part for part in (one, other) if part is not None]
    if not parts:
        return _Part(torch.zeros(rows), lambda scale: None)

    def add(scale: Tensor) -> None:
        for part in parts:
            part.add(scale)

    return _Part(sum((p.squares for p in parts[1:]), parts[0].squares), add)


def _convolution(layer: Any, a: Tensor, g: Tensor, slopes: _Slopes) -> _Part:
    """Kernel gradients row by row, each by the library's own routine; small ones in one product."""
    weight = slopes.get(id(layer.weight))
    bias = _biases(g.flatten(2).sum(2), slopes.get(id(layer.bias)))
    if weight is None:
        return _joined(None, bias, len(a))
    work = layer.weight.numel() * g[0, 0].numel()
    if type(layer) is nn.Conv2d and layer.groups == 1 and work <= _FEW:
        columns = _columns(layer, a)
        return _joined(_formed(g.flatten(2) @ columns.transpose(1, 2), weight), bias, len(a))
    return _joined(_each(layer, a, g, weight), bias, len(a))


def _columns(layer: Any, a: Tensor) -> Tensor:
    """What the kernel saw, ``(n, kernel, positions)``."""
    shape = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return functional.unfold(a, *shape)


def _each(layer: Any, a: Tensor, g: Tensor, slope: Tensor) -> _Part:
    rows = [
        torch.ops.aten.convolution_backward(
            g[i : i + 1],
            a[i : i + 1],
            layer.weight,
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            [0] * len(layer.stride),
            layer.groups,
            [False, True, False],
        )[1]
        for i in range(len(a))
    ]

    def add(scale: Tensor) -> None:
        for row, share in zip(rows, scale.tolist(), strict=True):
            slope.add_(row, alpha=share)

    norms = [torch.linalg.vector_norm(row) for row in rows]
    return _Part(torch.stack(norms).square(), add)


def _embedding(layer: nn.Embedding, a: Tensor, g: Tensor, slopes: _Slopes) -> _Part:
    """A row's gradient has the sum of ``g`` at each index; equal indices in one row add up."""
    index, grads = a.flatten(1), g.flatten(1, -2) if g.dim() > 2 else g[:, None]
    if layer.padding_idx is not None:
        grads = grads * (index != layer.padding_idx)[..., None]
    same = index[:, :, None] == index[:, None, :]
    wide = grads.double()
    squares = ((wide @ wide.transpose(1, 2)) * same).sum((1, 2)).clamp_(min=0.0).to(g.dtype)
    slope = slopes[id(layer.weight)]

    def add(scale: Tensor) -> None:
        slope.index_add_(0, index.flatten(), (grads * scale[:, None, None]).flatten(0, 1))

    return _Part(squares, add)


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, slopes: _Slopes) -> _Part:
    normal = functional.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    between = tuple(range(1, a.dim() - len(layer.normalized_shape)))
    return _scaled(layer, normal, g, slopes, between)


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, slopes: _Slopes) -> _Part:
    normal = functional.group_norm(a, layer.num_groups, eps=layer.eps)
    return _scaled(layer, normal, g, slopes, tuple(range(2, a.dim())))


def _scaled(
    layer: Any, normal: Tensor, g: Tensor, slopes: _Slopes, between: tuple[int, ...]
) -> _Part:
    """Of ``weight * normal + bias``, both of one shape, summed over the axes ``between``."""
    parts: list[_Part | None] = []
    for parameter, rows in ((layer.weight, g * normal), (layer.bias, g)):
        slope = slopes.get(id(parameter))
        parts.append(_biases(rows.sum(between) if between else rows, slope))
    return _joined(parts[0], parts[1], len(g))


class Mapped:
    """Row gradients by mapping the gradient of one row over the batch.

    Args:
        bench: whose module is used.
        total: the summed loss.
    """

    def __init__(self, bench: Bench, total: Total) -> None:
        self.bench, self.total = bench, total
        slopes = {id(p): s for p, s in zip(bench.trained, bench.slopes, strict=True)}
        named = [(n, p) for n, p in bench.module.named_parameters() if id(p) in slopes]
        self._trained = dict(named)
        self._slopes = {name: slopes[id(p)] for name, p in named}

    @property
    def largest(self) -> int:
        """Rows whose gradients fit into what is held at once."""
        held = sum(s.numel() for s in self._slopes.values())
        return max(1, min(4096, _HELD // max(held, 1)))

    def add(
        self, x: Tensor, y: Tensor, clip: float, *, fresh: bool = False, unit: float = 1.0
    ) -> Tensor:
        """Add the rows' clipped gradients; returns their norms."""
        if fresh:
            self.bench.gradient.zero_()
        rows = self.gradients(x, y)
        squares = torch.zeros(len(x), dtype=self.bench.dtype)
        for value in rows.values():
            squares += value.flatten(1).square().sum(1)
        norms = squares.sqrt()
        scale = torch.from_numpy(factors(np.asarray(norms), clip))
        kept = scale > 0
        scale /= unit
        for name, value in rows.items():
            total = torch.tensordot(scale[kept], value[kept], 1)
            self._slopes[name].add_(total)
        return norms

    def gradients(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Each row's gradient by parameter, ``(n, *shape)``."""

        def one(trained: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
            return self.total(_Bound(self.bench.module, trained), row[None], target[None])

        mapped = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0), randomness="different")
        detached = {name: p.detach() for name, p in self._trained.items()}
        found: dict[str, Tensor] = mapped(detached, x, y)
        return found


class _Bound(nn.Module):
    """A module under other parameters, called as itself."""

    def __init__(self, module: nn.Module, trained: dict[str, Tensor]) -> None:
        super().__init__()
        # Not as attributes: the module would take them for parts of its own.
        self._bound: tuple[nn.Module, dict[str, Tensor]] = (module, trained)

    def forward(self, x: Tensor) -> Any:
        return torch.func.functional_call(*self._bound, (x,))
