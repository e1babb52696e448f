"""A recorded step in an order that does less: the same values to the last bit.

*A rectifier before max pooling* goes behind it, in both directions: the largest of some values is
rectified, not each of them, and what flows back is cut off before it is spread out. Where the largest is
positive it is the same value at the same place; where it is not, nothing flows back either way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atoll.models.torch_kernels import IDENTITIES
from atoll.models.torch_record import Call, Tape, mutates

__all__ = ["rewritten"]

_aten = torch.ops.aten
_RELU, _POOL = _aten.relu.default, _aten.max_pool2d_with_indices.default
_RELU_BACK = _aten.threshold_backward.default
_POOL_BACK = _aten.max_pool2d_with_indices_backward.default
_USES = {_POOL, _POOL_BACK, _RELU_BACK}


@dataclass(frozen=True, eq=False)
class _Pooled:
    """A rectifier whose result is pooled and used for nothing else, forward and backward."""

    relu: Call
    pool: Call
    pool_back: Call
    relu_back: Call


def rewritten(tape: Tape) -> Tape:
    """The tape with everything in it exchanged that this module knows of."""
    origin = _origins(tape.calls)
    readers = _readers(tape.calls, origin)
    kept = {id(t) for t in (tape.loss, *tape.gradients) if t is not None}
    calls: list[Call] = list(tape.calls)
    for call in tape.calls:
        if call.func is _RELU and (found := _pooled(call, readers, origin)) is not None:
            inner = {id(call.out), id(found.pool_back.out)}
            if not inner & kept:
                calls = _exchanged(calls, found)
    return replace(tape, calls=calls)


def _origins(calls: Sequence[Call]) -> Mapping[int, Tensor]:
    """By identity: what another handle on the same values stands for."""
    origin: dict[int, Tensor] = {}
    for call in calls:
        if call.func in IDENTITIES:
            origin[id(call.out)] = origin.get(id(call.args[0]), call.args[0])
    return origin


def _readers(calls: Sequence[Call], origin: Mapping[int, Tensor]) -> Mapping[int, list[Call]]:
    """Calls that read each value, other handles on it included."""
    readers: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        if call.func not in IDENTITIES:
            for t in call.ins:
                readers[id(origin.get(id(t), t))].append(call)
    return readers


def _pooled(
    relu: Call, readers: Mapping[int, list[Call]], origin: Mapping[int, Tensor]
) -> _Pooled | None:
    uses = {call.func: call for call in readers[id(relu.out)]}
    if len(readers[id(relu.out)]) != len(_USES) or uses.keys() != _USES:
        return None
    found = _Pooled(relu, uses[_POOL], uses[_POOL_BACK], uses[_RELU_BACK])
    whole, largest = relu.out, found.pool.out[0]
    slope = found.relu_back.args[0]
    fits = (
        found.relu_back.args[2] == 0
        and origin.get(id(slope), slope) is found.pool_back.out
        and len(readers[id(found.pool_back.out)]) == 1
        and 2 * largest.numel() <= whole.numel()
        and not any(
            mutates(c) for t in (relu.args[0], largest) for c in readers[id(origin.get(id(t), t))]
        )
    )
    return found if fits else None


def _exchanged(calls: Sequence[Call], found: _Pooled) -> list[Call]:
    """The calls with the rectifier behind the pooling."""
    given, (largest, places) = found.relu.args[0], found.pool.out
    flow, _, *how = found.pool_back.args
    raw, cut = torch.empty_like(largest), torch.empty_like(flow)
    pool = replace(found.pool, args=(given, *found.pool.args[1:]), out=(raw, places))
    spread = replace(found.pool_back, args=(cut, given, *how), out=found.relu_back.out)
    instead = {
        id(found.relu): [],
        id(found.pool): [pool, replace(found.relu, args=(raw,), out=largest)],
        id(found.pool_back): [replace(found.relu_back, args=(flow, largest, 0), out=cut), spread],
        id(found.relu_back): [],
    }
    return [new for call in calls for new in instead.get(id(call), [call])]
