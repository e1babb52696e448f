"""Operations that write their result into a given buffer.

A replayed step (:mod:`atoll.models.torch.tape`) keeps results in planned buffers. Only operations whose
kernels really write there are listed; torch also offers generated ``out`` forms that compute
elsewhere and copy, which would cost more than they save, so anything else makes its result anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["CONSTANTS", "IDENTITIES", "into_buffers"]

_aten = torch.ops.aten

Build = Callable[[Any, Mapping[str, Any], Sequence[Tensor]], Callable[[], object]]
"""(arguments, keywords, buffers) -> the bound operation."""

IDENTITIES = frozenset([_aten.detach.default, _aten.alias.default])
"""Another handle on the same values."""

CONSTANTS = frozenset(
    [
        _aten.ones_like.default,
        _aten.zeros_like.default,
        _aten.full_like.default,
        _aten.full.default,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.scalar_tensor.default,
        _aten.arange.default,
        _aten.new_zeros.default,
    ]
)
"""The same result in every step, whatever the values of the arguments."""


def _out(function: Callable[..., Any]) -> Build:
    """A function of torch's Python face with an ``out`` keyword: the cheapest call there is."""

    def build(
        args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
    ) -> Callable[[], object]:
        return partial(function, *args, **kwargs, out=buffers[0])

    return build


def _named(overload: Any, *names: str) -> Build:
    """An overload whose output arguments are called ``names``."""

    def build(
        args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
    ) -> Callable[[], object]:
        into = dict(zip(names, buffers, strict=True))
        return partial(overload, *args, **kwargs, **into)

    return build


def _relu(args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]) -> Callable[[], object]:
    return partial(torch.clamp_min, args[0], 0, out=buffers[0])


def _log_softmax(
    args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
) -> Callable[[], object]:
    if args[2]:  # from half precision to single
        return partial(_aten._log_softmax.out, *args, out=buffers[0])
    return partial(torch.log_softmax, args[0], args[1], out=buffers[0])


def _copied(
    args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
) -> Callable[[], object]:
    return partial(buffers[0].copy_, args[0])


def _column_sum(
    args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
) -> Callable[[], object]:
    keep = args[2] if len(args) > 2 else False
    return partial(torch.sum, args[0], args[1], keep, **kwargs, out=buffers[0])


def _pool_back(
    args: Any, kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
) -> Callable[[], object]:
    """Backward pass of max pooling; a gradient in another memory order is brought into the input's."""
    into = partial(_aten.max_pool2d_with_indices_backward.grad_input, grad_input=buffers[0])
    slope, last = args[0], torch.channels_last
    mixed = args[1].is_contiguous(memory_format=last) and not slope.is_contiguous(
        memory_format=last
    )
    if not mixed:
        return partial(into, *args, **kwargs)
    turned = torch.empty_like(slope, memory_format=last)

    def run() -> None:
        turned.copy_(slope)
        into(turned, *args[1:], **kwargs)

    return run


_TABLE: dict[Any, Build] = {
    _aten.mm.default: _out(torch.mm),
    _aten.bmm.default: _out(torch.bmm),
    _aten.dot.default: _out(torch.dot),
    _aten.addmm.default: _out(torch.addmm),
    _aten.baddbmm.default: _out(torch.baddbmm),
    _aten.add.Tensor: _out(torch.add),
    _aten.sub.Tensor: _out(torch.sub),
    _aten.mul.Tensor: _out(torch.mul),
    _aten.div.Tensor: _out(torch.div),
    _aten.neg.default: _out(torch.neg),
    _aten.exp.default: _out(torch.exp),
    _aten.tanh.default: _out(torch.tanh),
    _aten.sigmoid.default: _out(torch.sigmoid),
    _aten.relu.default: _relu,
    _aten.clone.default: _copied,
    _aten._to_copy.default: _copied,
    _aten.sum.dim_IntList: _column_sum,
    _aten.index_select.default: _out(torch.index_select),
    _aten.threshold_backward.default: _named(_aten.threshold_backward.grad_input, "grad_input"),
    _aten.tanh_backward.default: _named(_aten.tanh_backward.grad_input, "grad_input"),
    _aten.sigmoid_backward.default: _named(_aten.sigmoid_backward.grad_input, "grad_input"),
    _aten._log_softmax.default: _log_softmax,
    _aten._log_softmax_backward_data.default: _named(_aten._log_softmax_backward_data.out, "out"),
    _aten.nll_loss_forward.default: _named(_aten.nll_loss_forward.output, "output", "total_weight"),
    _aten.nll_loss_backward.default: _named(_aten.nll_loss_backward.grad_input, "grad_input"),
    _aten.mse_loss_backward.default: _named(_aten.mse_loss_backward.grad_input, "grad_input"),
    _aten.gelu.default: _named(_aten.gelu.out, "out"),
    _aten.gelu_backward.default: _named(_aten.gelu_backward.grad_input, "grad_input"),
    _aten.leaky_relu.default: _named(_aten.leaky_relu.out, "out"),
    _aten.leaky_relu_backward.default: _named(_aten.leaky_relu_backward.grad_input, "grad_input"),
    _aten.silu.default: _named(_aten.silu.out, "out"),
    _aten.silu_backward.default: _named(_aten.silu_backward.grad_input, "grad_input"),
    _aten.max_pool2d_with_indices.default: _named(
        _aten.max_pool2d_with_indices.out, "out", "indices"
    ),
    _aten.max_pool2d_with_indices_backward.default: _pool_back,
    _aten.avg_pool2d.default: _named(_aten.avg_pool2d.out, "out"),
    _aten.avg_pool2d_backward.default: _named(_aten.avg_pool2d_backward.grad_input, "grad_input"),
}


def into_buffers(func: Any) -> Build | None:
    """How ``func`` is bound to buffers; None where its kernel makes its result anew."""
    return _TABLE.get(func)
