"""A recorded step in operations that do less.

*A rectifier before max pooling* goes behind it, in both directions: the largest of some values is
rectified, not each of them, and what flows back is cut off before it is spread out. Where the largest is
positive it is the same value at the same place; where it is not, nothing flows back either way. To the last
bit the values are the same.

*The cross-entropy of a few classes* is taken with a matrix that has a 1 at each row's label: it picks the
labels' log-probabilities, and the slope of the logits is the softmax less it. That is equal up to rounding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atoll.models.torch.kernels import IDENTITIES
from atoll.models.torch.record import Call, Tape, memory, mutates

__all__ = ["Scored", "rewritten", "scored"]

_aten = torch.ops.aten
_RELU, _POOL = _aten.relu.default, _aten.max_pool2d_with_indices.default
_RELU_BACK = _aten.threshold_backward.default
_POOL_BACK = _aten.max_pool2d_with_indices_backward.default
_LOSS, _LOSS_BACK = _aten.nll_loss_forward.default, _aten.nll_loss_backward.default
_LOGP, _LOGP_BACK = _aten._log_softmax.default, _aten._log_softmax_backward_data.default
_CLASSES = 256
"""Columns of that matrix up to which it costs less than what it saves."""
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
    """The calls with the rectifier behind the pooling.

    What flows back from a dense layer lies in another order of memory than what was pooled. It is brought into
    that order first: cutting off across two orders takes three times as long.
    """
    given, (largest, places) = found.relu.args[0], found.pool.out
    flow, _, *how = found.pool_back.args
    raw, cut = torch.empty_like(largest), torch.empty_like(largest)
    turned = flow if flow.stride() == largest.stride() else torch.empty_like(largest)
    turn = [] if turned is flow else [Call(_aten.clone.default, (flow,), {}, turned)]
    cutting = replace(found.relu_back, args=(turned, largest, 0), out=cut)
    pool = replace(found.pool, args=(given, *found.pool.args[1:]), out=(raw, places))
    spread = replace(found.pool_back, args=(cut, given, *how), out=found.relu_back.out)
    instead = {
        id(found.relu): [],
        id(found.pool): [pool, replace(found.relu, args=(raw,), out=largest)],
        id(found.pool_back): [*turn, cutting, spread],
        id(found.relu_back): [],
    }
    return [new for call in calls for new in instead.get(id(call), [call])]


@dataclass(frozen=True, eq=False)
class Scored:
    """A tape whose cross-entropy reads ``hot``, ``(rows, classes)``: a 1 at each row's label, else 0."""

    tape: Tape
    hot: Tensor


def scored(tape: Tape) -> Scored | None:
    """The tape with its cross-entropy, if it ends in one, in fewer and cheaper operations.

    It stands for labels between 0 and the number of classes: torch may leave out rows with a negative one.
    """
    parts = _head(tape)
    if parts is None:
        return None
    told, back, flow = parts
    logp = told.args[0]
    share = 1.0 / len(logp) if told.args[3] == 1 else 1.0
    hot, soft, gap = (torch.zeros_like(logp) for _ in range(3))
    total, flat = torch.empty_like(told.out[0]), logp.view(-1)
    loss = [
        Call(_aten.view.default, (logp, [-1]), {}, flat),
        Call(_aten.dot.default, (flat, hot.view(-1)), {}, total),
        Call(_aten.mul.Tensor, (total, -share), {}, told.out[0]),
    ]
    slope = [
        Call(_aten.exp.default, (logp,), {}, soft),
        Call(_aten.sub.Tensor, (soft, hot), {}, gap),
        Call(_aten.mul.Tensor, (gap, share), {}, flow.out),
    ]
    instead = {id(told): loss, id(back): [], id(flow): slope}
    calls = [new for call in tape.calls for new in instead.get(id(call), [call])]
    return Scored(replace(tape, calls=calls), hot)


def _head(tape: Tape) -> tuple[Call, Call, Call] | None:
    """The calls of a cross-entropy of the batch's labels: the loss, its slope, and that of the logits."""
    calls = {call.func: call for call in tape.calls}
    told, back, flow, made = (calls.get(f) for f in (_LOSS, _LOSS_BACK, _LOGP_BACK, _LOGP))
    if told is None or back is None or flow is None or made is None:
        return None
    (logp, labels, weight, kind, ignored), slope = told.args, back.args[0]
    ones = [_key(c.out) for c in tape.calls if c.func is _aten.ones_like.default]
    fits = (
        weight is None
        and kind in (1, 2)
        and ignored < 0
        and logp.dim() == 2
        and logp.is_contiguous()
        and 0 < logp.shape[1] <= _CLASSES
        and logp.dtype in (torch.float32, torch.float64)
        and flow.out.dtype == logp.dtype
        and made.args[1] in (1, -1)
        and _key(slope) in ones
        and _key(labels) == _key(tape.batch[1]) == _key(back.args[2])
        and _key(logp) == _key(made.out) == _key(back.args[1]) == _key(flow.args[1])
        and _key(flow.args[0]) == _key(back.out)
    )
    return (told, back, flow) if fits and _apart(tape, told, back, flow) else None


def _apart(tape: Tape, told: Call, back: Call, flow: Call) -> bool:
    """Whether nothing else reads what is left out, and nothing is there twice or changed on the way."""
    counts = Counter(call.func for call in tape.calls)
    once = all(counts[f] == 1 for f in (_LOSS, _LOSS_BACK, _LOGP, _LOGP_BACK))
    dropped = {_key(told.out[1]), _key(back.out)}
    read = {_key(t) for c in tape.calls if c not in (back, flow) for t in c.ins}
    kept = {_key(t) for t in (tape.loss, *tape.gradients) if t is not None}
    fixed = {memory(t) for t in told.args[:2]}
    changed = {memory(t) for c in tape.calls if mutates(c) for t in c.ins}
    return once and not dropped & (read | kept) and not fixed & changed


def _key(t: Tensor) -> tuple[Any, ...]:
    """What handles on the same values have in common."""
    return (t.data_ptr(), tuple(t.shape), t.stride(), t.dtype)
