"""One training step of a module, written down below autograd.

The step is run twice on a copy of the module, with other data and other weights the second time, while
every operation is written down, forward and backward alike. Neither the module, nor its loss, nor any
random state is touched. What a list of operations cannot stand for is found out here:

* control flow on values, and operations whose result has a data-dependent shape;
* values that leave torch (``.item()``, ``.numpy()``), and random numbers drawn outside it;
* attributes that the module changes, buffers that it replaces, and hooks, which a replay would not run.

:class:`Untraceable` then says why. What a function keeps in a closure or a global cannot be seen.
"""

from __future__ import annotations

import copy
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "Call",
    "Forward",
    "Tape",
    "Twin",
    "Untraceable",
    "hooked",
    "memory",
    "mutates",
    "record",
    "tensors",
]

Forward = Callable[[nn.Module, Any, Tensor, Tensor], Tensor]
"""(module, loss, features, targets) of a batch -> its scalar loss."""

_ESCAPES = frozenset(
    ("numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "apply_", "map_")
)
"""Methods of a tensor that let its values be read or written behind torch's back."""


class Untraceable(Exception):
    """Why a step cannot be replayed."""


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded operation."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def outs(self) -> list[Tensor]:
        """Its results that are tensors."""
        return list(tensors(self.out))

    @property
    def ins(self) -> list[Tensor]:
        """Its arguments that are tensors."""
        return list(tensors((self.args, self.kwargs)))


@dataclass(frozen=True, eq=False)
class Tape:
    """A recorded step.

    Args:
        loss: the loss that came out.
        gradients: for each parameter its gradient, None where the loss does not reach it.
        calls: what ran, in order.
        bound: (recorded tensor, the module's own) for parameters, buffers and other state.
        batch: features and targets, which a replay reads where they are.
        after: (the module's own tensor, its value after the step) for all but trained parameters.
        random: torch's random state after the step.
    """

    loss: Tensor
    gradients: tuple[Tensor | None, ...]
    calls: list[Call]
    bound: list[tuple[Tensor, Tensor]]
    batch: tuple[Tensor, Tensor]
    after: list[tuple[Tensor, Tensor]]
    random: Tensor


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


def memory(t: Tensor) -> int:
    """Which memory a tensor lies in; 0 where it has none."""
    return t.untyped_storage().data_ptr()


def mutates(call: Call) -> bool:
    """Whether a call says that it changes its arguments."""
    return bool(call.func._schema.is_mutable)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.calls: list[Call] = []
        self.fault = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip it, torch would first import it, for a second and a half."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tags = getattr(func, "tags", ())
        if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            self._stop(f"{func} depends on values")
        if any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values())):
            self._stop(f"{func} draws from a generator of its own")
        out = func(*args, **kwargs)
        call = Call(func, tuple(args), dict(kwargs), out)
        for t in (*call.ins, *call.outs):
            if t.device.type != "cpu" or t.layout != torch.strided:
                self._stop(f"{func} works on {t.device}, {t.layout}")
        self.calls.append(call)
        return out

    def _stop(self, fault: str) -> None:
        self.fault = self.fault or fault  # a module may catch what is raised here
        raise Untraceable(fault)


class _Guard(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.fault = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ESCAPES:
            self.fault = f"values leave torch by {name}"
            raise Untraceable(self.fault)
        return func(*args, **(kwargs or {}))


def record(
    forward: Forward,
    module: nn.Module,
    loss: Any,
    trained: Sequence[Tensor],
    batch: tuple[Tensor, Tensor],
) -> Tape:
    """Write down the step on ``batch`` and its gradient, from the module's present state.

    Args:
        forward: computes the scalar loss of a batch.
        module: the module; stays as it is.
        loss: handed to ``forward``; stays as it is.
        trained: the parameters that the gradient is taken of.
        batch: features and targets; hold other values for a moment.

    Raises:
        Untraceable: the list of operations would not do the same again.
    """
    if hooked(module):
        raise Untraceable("the module has hooks")
    twin = Twin(module, loss)
    own = [twin.of(p) for p in trained]
    kept = [t.clone() for t in batch]
    state, outside = torch.get_rng_state(), _outside()
    try:
        tapes = []
        for changed in (True, False):
            twin.reset()
            torch.set_rng_state(state)
            for t, value in zip(batch, kept, strict=True):
                t.copy_(value)
            if changed:
                _change(batch[0], own)
            tapes.append(_run(lambda: forward(twin.module, twin.loss, *batch), own, twin, batch))
        if _drawn(outside):
            raise Untraceable("random numbers are drawn outside torch")
        if twin.altered():
            raise Untraceable("the module keeps state outside its buffers, or replaces a buffer")
    finally:
        torch.set_rng_state(state)
        random.setstate(outside[0])
        np.random.set_state(outside[1])  # noqa: NPY002  # a module may draw from the global one
        for t, value in zip(batch, kept, strict=True):
            t.copy_(value)
    _compare(*tapes)
    _check_changes(tapes[1], batch)
    return tapes[1]


def hooked(module: nn.Module) -> bool:
    """Whether somebody's code is called on the way, which a replay would not call."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    everywhere = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]  # torch's
    return bool(
        everywhere
        or any(getattr(part, name, None) for part in module.modules() for name in names)
        or any(
            p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
            for p in module.parameters()
        )
    )


def _change(features: Tensor, parameters: Sequence[Tensor]) -> None:
    """Other rows, and other weights: a value that leaves torch unseen is then another one."""
    features.copy_(features.flip(0))
    if features.is_floating_point():
        features.mul_(0.5).add_(0.1)
    for p in parameters:
        p.detach().mul_(0.9)


def _run(
    step: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    twin: Twin,
    batch: tuple[Tensor, Tensor],
) -> Tape:
    failed: Exception | None = None
    with torch.enable_grad(), _Guard() as guard, _Recorder() as recorder:
        try:
            value = step()
            gradients = _gradients(value, parameters)
        except Exception as error:  # a real batch in the general way says whose fault it is
            failed = error
    fault = guard.fault or recorder.fault
    if fault or failed is not None:
        raise Untraceable(fault or f"a made-up batch fails: {failed}") from failed
    trained = {id(p) for p in parameters}
    after = [(real, t.detach().clone()) for t, real in twin.bound if id(t) not in trained]
    state = torch.get_rng_state()
    return Tape(value.detach(), tuple(gradients), recorder.calls, twin.bound, batch, after, state)


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad``, which would switch the guard off while it runs."""
    if value.numel() != 1:
        raise Untraceable("the loss is no single number")
    engine: Any = torch.autograd.Variable._execution_engine
    found: tuple[Tensor | None, ...] = engine.run_backward(
        (value,),
        (torch.ones_like(value),),
        False,
        False,
        tuple(parameters),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return found


class Twin:
    """A copy of a module and its loss, and which tensor of it is a copy of which."""

    def __init__(self, module: nn.Module, loss: Any) -> None:
        self._memo: dict[int, Any] = {}
        self._again: dict[int, Any] = {}
        try:
            self.module, self.loss = copy.deepcopy((module, loss), self._memo)
            # What copying itself changes (caches, say) shows in the first copy only.
            self._before = copy.deepcopy((self.module, self.loss), self._again)
        except Exception as error:
            raise Untraceable(f"the module cannot be copied: {error}") from error
        copied = [t for t in self._memo.get(id(self._memo), ()) if isinstance(t, Tensor)]
        self.bound = [(self._memo[id(t)], t.detach()) for t in copied]
        if any(a.stride() != b.stride() for a, b in self.bound):
            raise Untraceable("some of the module's tensors cannot be copied as they lie")

    def of(self, parameter: Tensor) -> Tensor:
        """The copy of ``parameter``."""
        found: Tensor = self._memo[id(parameter)]
        return found

    def reset(self) -> None:
        """Give all tensors the module's own values."""
        for t, real in self.bound:
            if 0 not in t.stride():  # an expanded one cannot be written
                t.detach().copy_(real)

    def altered(self) -> bool:
        """Whether anything but the values of tensors is another than before."""
        return not self._same((self.module, self.loss), self._before, set())

    def _same(self, a: Any, b: Any, seen: set[int]) -> bool:
        if isinstance(a, Tensor):
            return self._again.get(id(a), a) is b
        if type(a) is not type(b):
            return False
        if isinstance(a, (bool, int, float, complex, str, bytes, np.generic)):
            return bool(a == b) or (a != a and b != b)
        if id(a) in seen:
            return True
        seen.add(id(a))
        if isinstance(a, weakref.ref):
            return self._same(a(), b(), seen)
        if isinstance(a, dict):
            return a.keys() == b.keys() and self._all(a.values(), (b[k] for k in a), seen)
        if isinstance(a, (list, tuple, deque)):
            return len(a) == len(b) and self._all(a, b, seen)
        if isinstance(a, (set, frozenset)):
            return bool(a == b)
        if isinstance(a, np.ndarray):
            return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
        if self._again.get(id(a), a) is not b:
            return False
        if a is b or not hasattr(a, "__dict__"):
            return True
        one, two = ({k: v for k, v in vars(o).items() if k != "training"} for o in (a, b))
        return self._same(one, two, seen)

    def _all(self, a: Iterable[Any], b: Iterable[Any], seen: set[int]) -> bool:
        return all(self._same(x, y, seen) for x, y in zip(a, b, strict=True))


def _outside() -> tuple[Any, Any]:
    """State of Python's and NumPy's global generators."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002  # a module may draw from it


def _drawn(before: tuple[Any, Any]) -> bool:
    """Whether Python's or NumPy's global generator has moved on."""
    now = _outside()
    same = all(np.array_equal(a, b) for a, b in zip(before[1], now[1], strict=True))
    return not same or now[0] != before[0]


def _compare(one: Tape, two: Tape) -> None:
    if _signature(one) != _signature(two):
        raise Untraceable("two batches of the same shape take different steps")
    for a, b in zip(_leaves(one), _leaves(two), strict=True):
        if a is not b and not torch.equal(a, b):
            raise Untraceable("a value is made outside torch, or changes from step to step")


def _check_changes(tape: Tape, batch: tuple[Tensor, Tensor]) -> None:
    """Refuse what would add up from replay to replay: a constant that the step itself changes."""
    known = {memory(t) for t in (*batch, *(t for t, _ in tape.bound))}
    fixed = {memory(t) for t in _leaves(tape)} - known
    if any(memory(t) in fixed for c in tape.calls if mutates(c) for t in c.ins if t.numel()):
        raise Untraceable("a tensor made in the step from outside values is changed in place")


def _signature(tape: Tape) -> list[str]:
    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (tuple(value.shape), value.stride(), value.dtype)
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    return [repr((c.func, plain(c.args), plain(c.kwargs))) for c in tape.calls]


def _leaves(tape: Tape) -> list[Tensor]:
    """Tensors that no recorded call made, in order of first use."""
    made: set[int] = set()
    found: dict[int, Tensor] = {}
    for call in tape.calls:
        for t in call.ins:
            if id(t) not in made:
                found.setdefault(id(t), t)
        made.update(id(t) for t in call.outs)
    return list(found.values())
