"""A recorded training step, replayed without autograd.

What :mod:`atoll.models.torch.record` wrote down is rewritten:

* results lie in buffers that are planned once and shared by values that never live together;
* small operations are NumPy's (:mod:`atoll.models.torch.arrays`);
* views are taken once, dead operations and gradients of the data are left out;
* the weight gradient of a dense layer is never stored: ``W += -lr * dZ^T X`` is one product
  (``addmm_``), where nothing else reads the gradient;
* other optimisers get the gradient written straight into the flat gradient buffer.

The caller holds the first replay against autograd's gradient, loss, buffers and random state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atoll.models.torch.arrays import on_arrays
from atoll.models.torch.kernels import CONSTANTS, IDENTITIES, into_buffers
from atoll.models.torch.record import Call, Tape, Untraceable, memory, mutates, tensors

__all__ = ["Program"]

_aten = torch.ops.aten

Run = Callable[[], object]
"""One operation with everything bound."""

_EFFECTS = frozenset(
    [_aten.native_batch_norm.default, _aten._fused_moving_avg_obs_fq_helper.default]
)
"""Operations that change their arguments and do not say so."""


@dataclass(eq=False)
class _Later:
    """An operation with arguments that are known only when it runs."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cells: list[list[Tensor]]
    single: bool

    def __call__(self) -> None:
        out = self.func(*_fill(self.args), **_fill(self.kwargs))
        if self.single:
            self.cells[0][0] = out
            return
        made = list(tensors(out))
        if len(made) != len(self.cells):
            raise RuntimeError(f"{self.func} gives {len(made)} tensors, not {len(self.cells)}")
        for cell, value in zip(self.cells, made, strict=True):
            cell[0] = value


@dataclass(eq=False)
class _Cell:
    """Stands for a value that is made anew in each step."""

    held: list[Tensor] = field(default_factory=lambda: [torch.empty(0)])


@dataclass(eq=False)
class _Turned(_Cell):
    """The transpose of a value that is made anew in each step."""


def _turned(value: Any) -> Any:
    return _Turned(value.held) if isinstance(value, _Cell) else value.t()


def _fill(value: Any) -> Any:
    if isinstance(value, _Turned):
        return value.held[0].t()
    if isinstance(value, _Cell):
        return value.held[0]
    if isinstance(value, (list, tuple)):
        return type(value)([_fill(v) for v in value])
    if isinstance(value, dict):
        return {k: _fill(v) for k, v in value.items()}
    return value


def _has_cell(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_cell, value))
    if isinstance(value, dict):
        return any(map(_has_cell, value.values()))
    return isinstance(value, _Cell)


@dataclass(frozen=True, eq=False)
class _Sink:
    """How one parameter's gradient comes about: an outer product, a column sum, or a value."""

    parameter: int
    kind: str
    operands: tuple[Tensor, ...]
    calls: tuple[Call, ...] = ()


class Program:
    """A replayable step.

    Args:
        tape: what was recorded.
        weights: for each parameter what :meth:`update` moves, in the order of the tape's gradients: the
            buffer it lives in, or its velocity.
        gradient: for each parameter where its gradient goes.
        fused: whether there is an :meth:`update`; else :meth:`run` writes ``gradient``.
    """

    def __init__(
        self,
        tape: Tape,
        weights: Sequence[Tensor],
        gradient: Sequence[Tensor],
        *,
        fused: bool,
    ) -> None:
        self._tape = tape
        self._keys = {_key(t): t for c in tape.calls for t in c.outs}
        self._maker = {id(t): c for c in tape.calls for t in c.outs if not mutates(c)}
        self._where: dict[int, Any] = {id(a): b for a, b in tape.bound}
        self._where |= {id(t): t for t in tape.batch}
        self._twins = {memory(a) for a, _ in tape.bound} - {0}
        self._mutated = {memory(t) for c in tape.calls if mutates(c) for t in c.ins if t.numel()}
        trained = {memory(w) for w in weights}
        self._moving = {memory(a) for a, b in tape.bound if memory(b) in trained} | self._mutated
        self.steps: list[Run] = []
        self.updates: list[Callable[[float, float], object]] = []
        sinks = [self._sink(i, g) for i, g in enumerate(tape.gradients) if g is not None]
        live = self._live(sinks)
        self._plan(live, sinks)
        for call in live:
            self._lower(call)
        idle = [i for i, g in enumerate(tape.gradients) if g is None]
        self._idle = [weights[i] for i in idle]
        if not fused:  # an optimiser may have written there
            self.steps += [gradient[i].zero_ for i in idle]
        for sink in sinks:
            self._drain(sink, weights[sink.parameter], gradient[sink.parameter], fused)
        self.loss = self._at(tape.loss)
        # The recorded tensors are no longer needed; buffers and views are held by the steps.
        del self._tape, self._keys, self._maker, self._where, self._twins, self._free

    def run(self) -> float:
        """Forward and backward; the loss."""
        for step in self.steps:
            step()
        return float(self.value().item())

    def update(self, scale: float, keep: float = 1.0) -> None:
        """``weights <- keep * weights + scale * gradient``; with ``keep`` 0 whatever they hold."""
        for update in self.updates:
            update(scale, keep)
        if keep != 1.0:
            for weight in self._idle:
                _keep(weight, keep)

    def value(self) -> Tensor:
        """The loss of the last run."""
        return self.loss.held[0] if isinstance(self.loss, _Cell) else self.loss

    def _sink(self, number: int, g: Tensor) -> _Sink:
        """Follow a gradient back to the product or sum that made it, if nothing else reads that."""
        uses, shared = self._uses(), {id(self._own(o)) for o in self._others(number)}
        chain: list[Call] = []
        turned, t = False, self._own(g)
        while (call := self._maker.get(id(t))) is not None:
            if id(t) in shared or uses[id(t)] > (1 if chain else 0):
                break
            chain.append(call)
            if call.func is _aten.t.default:
                turned, t = not turned, call.args[0]
            elif call.func in IDENTITIES or (_flattens(call) and not turned):
                t = call.args[0]
            elif call.func is _aten.mm.default and g.dim() == 2 and self._stays(call):
                a, b = call.args
                pair = (b, a) if turned else (a, b)
                return _Sink(number, "outer_t" if turned else "outer", pair, tuple(chain))
            elif _columns(call) and g.dim() == 1 and self._stays(call):
                return _Sink(number, "columns", (call.args[0],), tuple(chain))
            else:
                break
        return _Sink(number, "value", (g,))

    def _own(self, t: Tensor) -> Tensor:
        """The recorded tensor behind ``t``: autograd may hand out another handle on its memory."""
        return t if id(t) in self._maker else self._keys.get(_key(t), t)

    def _others(self, number: int) -> list[Tensor]:
        return [g for i, g in enumerate(self._tape.gradients) if i != number and g is not None]

    def _stays(self, call: Call) -> bool:
        """Whether what a call reads is the same at the end of the step."""
        return not any(memory(t) in self._moving for t in call.ins)

    def _uses(self) -> dict[int, int]:
        """How many calls read each recorded tensor."""
        uses: dict[int, int] = defaultdict(int)
        for call in self._tape.calls:
            for t in call.ins:
                uses[id(self._own(t))] += 1
        return uses

    def _live(self, sinks: Sequence[_Sink]) -> list[Call]:
        """Calls that something reads, without those that the sinks take over."""
        taken = {id(c) for s in sinks for c in s.calls}
        read = [self._tape.loss, *(t for s in sinks for t in s.operands)]
        needed = {id(t) for r in read for t in (r, self._own(r))}
        live: list[Call] = []
        for call in reversed(self._tape.calls):
            wanted = any(id(t) in needed for t in call.outs) or _acts(call)
            if id(call) in taken or not wanted:
                continue
            live.append(call)
            needed.update(id(t) for r in call.ins for t in (r, self._own(r)))
        return live[::-1]

    def _plan(self, live: Sequence[Call], sinks: Sequence[_Sink]) -> None:
        """When each piece of memory is read last; what the sinks read stays to the end."""
        self._last: dict[int, int] = {}
        for i, call in enumerate(live):
            for t in (*call.outs, *call.ins):
                self._last[memory(t)] = i
        for t in (*(t for s in sinks for t in s.operands), self._tape.loss):
            self._last[memory(t)] = len(live)
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = defaultdict(list)
        self._held: dict[int, tuple[int, Tensor]] = {}
        self._now = 0

    def _at(self, t: Tensor) -> Any:
        """What stands for a recorded tensor at replay."""
        if id(t) in self._where:
            return self._where[id(t)]
        same = self._keys.get(_key(t))
        if same is not None and id(same) in self._where:
            return self._where[id(same)]
        if (same is not None and id(same) in self._maker) or memory(t) in self._twins:
            raise Untraceable("a value is read in a way that is not known here")
        return t.detach()

    def _map(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._at(value)
        if isinstance(value, (list, tuple)):
            return type(value)([self._map(v) for v in value])
        if isinstance(value, dict):
            return {k: self._map(v) for k, v in value.items()}
        return value

    def _lower(self, call: Call) -> None:
        args, kwargs = self._map(call.args), self._map(call.kwargs)
        outs, later = call.outs, _has_cell(args) or _has_cell(kwargs)
        shares = {memory(t) for t in call.ins} & {memory(t) for t in outs} - {0}
        if call.func in IDENTITIES:
            self._where[id(call.out)] = args[0]
        elif mutates(call):
            bare = _Bare(call.func, args, kwargs)
            self.steps.append(bare if later else partial(call.func, *args, **kwargs))
            for t in outs:
                twin = next((i for i in call.ins if i is t), None)
                if twin is None:
                    raise Untraceable(f"{call.func} changes its arguments in a way not known here")
        elif shares and not later:
            self._keep(outs, call.func(*args, **kwargs))
        elif (
            call.func in CONSTANTS
            and not shares
            and not any(memory(t) in self._mutated for t in outs)
        ):
            self._keep(outs, call.out.detach().clone())
        elif not shares and (build := into_buffers(call.func)) is not None and not later:
            buffers = [self._buffer(t) for t in outs]
            small = on_arrays(call.func, args, kwargs, buffers)
            self.steps += small or [build(args, kwargs, buffers)]
            self._keep(outs, tuple(buffers))
        elif not shares and build is not None:
            buffers = [self._buffer(t) for t in outs]
            self.steps.append(_Rebuilt(build, args, kwargs, buffers))
            self._keep(outs, tuple(buffers))
        else:
            cells = [_Cell() for _ in outs]
            single = isinstance(call.out, Tensor)
            held = [c.held for c in cells]
            self.steps.append(_Later(call.func, args, kwargs, held, single))
            for t, cell in zip(outs, cells, strict=True):
                self._where[id(t)] = cell
        self._release()

    def _keep(self, outs: Sequence[Tensor], made: Any) -> None:
        for t, value in zip(outs, tensors(made), strict=True):
            self._where[id(t)] = value

    def _buffer(self, like: Tensor) -> Tensor:
        """Memory for a result: what no later call reads is used again."""
        span = _span(like)
        pool = self._free[span, like.dtype]
        room = pool.pop() if pool else torch.empty(span, dtype=like.dtype)
        self._held[memory(like)] = (self._last.get(memory(like), self._now), room)
        return room.as_strided(like.shape, like.stride())

    def _release(self) -> None:
        for key, (last, room) in list(self._held.items()):
            if last <= self._now:
                self._free[len(room), room.dtype].append(room)
                del self._held[key]
        self._now += 1

    def _drain(self, sink: _Sink, weight: Tensor, slope: Tensor, fused: bool) -> None:
        """Let a gradient flow into its weight (fused) or into the flat gradient."""
        operands = [self._at(t) for t in sink.operands]
        if sink.kind == "outer_t":
            operands = [_turned(v) for v in operands]
        if sink.kind == "columns" and fused:
            ones = torch.ones(len(sink.operands[0]), dtype=weight.dtype)
            operands = [_turned(operands[0]), ones]
        product = partial(torch.mm, out=slope)
        moves: dict[str, Callable[..., object]] = {
            "value": partial(_mix, weight),
            "columns": weight.addmv_,
            "outer": weight.addmm_,
            "outer_t": weight.addmm_,
        }
        writes: dict[str, Callable[..., object]] = {
            "value": slope.copy_,
            "columns": lambda v: torch.sum(v, 0, out=slope),
            "outer": product,
            "outer_t": product,
        }
        move, write = moves[sink.kind], writes[sink.kind]
        later = any(isinstance(v, _Cell) for v in operands)
        if fused and later:
            self.updates.append(lambda s, k: move(*_fill(operands), alpha=s, beta=k))
        elif fused:
            self.updates.append(lambda s, k: move(*operands, alpha=s, beta=k))
        elif later:
            self.steps.append(lambda: write(*_fill(operands)))
        else:
            self.steps.append(partial(write, *operands))


@dataclass(eq=False)
class _Bare:
    """An in-place operation on a value that is made anew in each step."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> None:
        self.func(*_fill(self.args), **_fill(self.kwargs))


@dataclass(eq=False)
class _Rebuilt:
    """An operation into buffers, on values that are made anew in each step."""

    build: Callable[[Any, Any, Sequence[Tensor]], Run]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    buffers: Sequence[Tensor]

    def __call__(self) -> None:
        self.build(_fill(self.args), _fill(self.kwargs), self.buffers)()


def _mix(weight: Tensor, value: Tensor, *, alpha: float, beta: float) -> None:
    """``weight <- beta * weight + alpha * value``."""
    if beta != 1.0:
        _keep(weight, beta)
    weight.add_(value, alpha=alpha)


def _keep(weight: Tensor, share: float) -> None:
    """``weight <- share * weight``, and 0 for a share of 0 even where there is a NaN."""
    if share:
        weight.mul_(share)
    else:
        weight.zero_()


def _key(t: Tensor) -> Any:
    return (t.data_ptr(), tuple(t.shape), t.stride(), t.dtype, t.is_conj(), t.is_neg())


def _span(t: Tensor) -> int:
    """Elements from the first to the last one of a strided tensor."""
    if t.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))


def _acts(call: Call) -> bool:
    """Whether a call does more than give its result."""
    random = torch.Tag.nondeterministic_seeded in call.func.tags
    return random or mutates(call) or call.func in _EFFECTS or not call.outs


def _flattens(call: Call) -> bool:
    """Whether a call sees its argument as a vector."""
    return call.func is _aten.view.default and len(call.args[1]) == 1


def _columns(call: Call) -> bool:
    """Whether a call sums the rows of a matrix."""
    if call.func is not _aten.sum.dim_IntList:
        return False
    return call.args[0].dim() == 2 and list(call.args[1]) == [0] and not call.kwargs
