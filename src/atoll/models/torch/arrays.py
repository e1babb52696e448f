"""Small operations of a replayed step, carried out by NumPy on the memory of torch's tensors.

What an operation on a few thousand values costs is its call: torch's goes through more code, which large
products in between push out of the processor's nearest memory each time. A ufunc on the same memory
takes a third to a half.

*Products of few rows.* The kernels for large matrices first copy a matrix into an order of their own, as
costly as multiplying seven rows with it. OpenBLAS, which NumPy's wheels bring along, has kernels that read
a matrix where it lies, for products of up to 10^6 multiplications and processors with AVX-512. A product with
few rows is therefore cut into such pieces along its columns; elsewhere it is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

from atoll.core.layout import Array

__all__ = ["large_product", "on_arrays"]

_aten = torch.ops.aten

Run = Callable[[], object]

_FEW = 4096
"""Values of an array up to which a ufunc takes less than torch."""
_TINY = 1 << 15
"""Multiplications of a product up to which NumPy's takes no more than torch's, on any processor."""
_PIECE, _CORNER, _DEEP = 10**6, 1200, 32
"""Where OpenBLAS reads matrices in place: multiplications at most; where the second one is turned also
results at most, and values of a row at least (``sgemm_small_kernel_permit_skylakex.c``)."""
_ROWS, _MATRIX = 16, 1 << 18
"""Rows, and values of the matrix, up to which that was found to gain: a fifth to half of the time."""
_IN_PLACE = frozenset(["SkylakeX", "Cooperlake", "SapphireRapids"])
"""What OpenBLAS calls the processors it has such kernels for; Zen 4 counts as the first."""

Bind = Callable[[Sequence[Any], Array], Sequence[Run]]
"""(arguments, result) -> the calls to make; none where torch is better."""


@cache
def _reads_in_place() -> bool:
    """Whether NumPy's products have kernels for small matrices here: it depends on the processor alone."""
    return any(found.get("architecture") in _IN_PLACE for found in threadpool_info())


def large_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``a b`` into ``out``, by NumPy's library where it has kernels for this processor's widest registers.

    Of two large matrices it then takes a little less time than torch's, and a third less beside other work.
    """
    if _reads_in_place():
        np.matmul(a.numpy(), b.numpy(), out=out.numpy())
    else:
        torch.mm(a, b, out=out)


def _product(a: Array, b: Array, out: Array) -> list[Run]:
    rows, deep = a.shape
    columns = b.shape[1]
    turned = b.T.flags.c_contiguous and not b.flags.c_contiguous
    if not (turned or b.flags.c_contiguous) or not (a.flags.c_contiguous or a.T.flags.c_contiguous):
        return []
    if rows * deep * columns <= _TINY:
        return [partial(np.matmul, a, b, out)]
    if not (a.flags.c_contiguous and out.flags.c_contiguous and out.dtype == np.float32):
        return []
    if rows > _ROWS or b.size > _MATRIX or (turned and deep < _DEEP) or not _reads_in_place():
        return []
    width = _PIECE // (rows * deep)
    if turned:
        width = min(width, _CORNER // rows)
    pieces = -(-columns // max(1, width))
    width = -(-columns // pieces)
    cuts = [slice(i, min(i + width, columns)) for i in range(0, columns, width)]
    return [partial(np.matmul, a, b[:, cut], out[:, cut]) for cut in cuts]


def _mm(given: Sequence[Any], out: Array) -> Sequence[Run]:
    return _product(given[0], given[1], out)


def _addmm(given: Sequence[Any], out: Array) -> Sequence[Run]:
    runs = _product(given[1], given[2], out)
    return [*runs, partial(np.add, out, given[0], out)] if runs else []


def _relu(given: Sequence[Any], out: Array) -> Sequence[Run]:
    return [partial(np.maximum, given[0], np.zeros_like(out), out=out)]


def _threshold_back(given: Sequence[Any], out: Array) -> Sequence[Run]:
    flow, value, threshold = given
    passes, bar = np.empty(value.shape, bool), np.asarray(threshold, out.dtype)
    return [partial(np.greater, value, bar, passes), partial(np.multiply, flow, passes, out)]


def _ufunc(function: Callable[..., Any]) -> Bind:
    return lambda given, out: [partial(function, *(_fixed(a, out) for a in given), out)]


def _fixed(value: Any, out: Array) -> Any:
    """A number as an array of the result's kind, which NumPy would make of it at every call."""
    return np.asarray(value, out.dtype) if isinstance(value, (int, float)) else value


_TABLE: Mapping[Any, Bind] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.dot.default: _ufunc(np.dot),
    _aten.relu.default: _relu,
    _aten.threshold_backward.default: _threshold_back,
    _aten.add.Tensor: _ufunc(np.add),
    _aten.sub.Tensor: _ufunc(np.subtract),
    _aten.mul.Tensor: _ufunc(np.multiply),
    _aten.div.Tensor: _ufunc(np.divide),
    _aten.neg.default: _ufunc(np.negative),
    _aten.exp.default: _ufunc(np.exp),
    _aten.tanh.default: _ufunc(np.tanh),
}


def on_arrays(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], buffers: Sequence[Tensor]
) -> Sequence[Run]:
    """``func`` as calls of NumPy that write into ``buffers``; none where it is better left to torch.

    Args:
        func: the operation.
        args: its arguments; tensors are read where they are, each time.
        kwargs: its keyword arguments.
        buffers: where its result goes.
    """
    bind = _TABLE.get(func)
    if bind is None or kwargs or len(buffers) != 1:
        return ()
    out, given = buffers[0], [a for a in args if isinstance(a, Tensor)]
    if out.dtype not in (torch.float32, torch.float64) or any(t.dtype != out.dtype for t in given):
        return ()
    large = bind not in (_mm, _addmm) and any(t.numel() > _FEW for t in (out, *given))
    if large or any(t.is_neg() for t in given):
        return ()
    return bind([a.detach().numpy() if isinstance(a, Tensor) else a for a in args], out.numpy())
