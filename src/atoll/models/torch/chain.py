"""Networks that are a chain of dense layers: what they are made of, and when groups of them pay.

The workbench of :mod:`atoll.models.torch.algebra`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atoll.core.layout import Layout
from atoll.core.local import LocalWork
from atoll.models.batches import plan
from atoll.models.networks import Rows
from atoll.models.torch.record import hooked

__all__ = [
    "Activation",
    "Chain",
    "Dense",
    "Rooms",
    "Scratch",
    "Setting",
    "chain_of",
    "group_size",
    "pays",
]

_aten = torch.ops.aten

_STEP = 2.0e6
"""Cost of a replayed step beside its arithmetic, in floating-point operations."""
_TOUCH = 15.0
"""Cost of reading and writing one weight in a step, in floating-point operations."""
_GROUP = 25
"""Most clients at once: more gain nothing and keep other workers waiting."""
_MEMORY = 16 << 20
"""Bytes that a group's rows and matrices may take, so that they stay near the processor."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its backward pass from (gradient, input, output).

    Where the output tells the slope, either pass overwrites what it gets: half the memory to go through.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def _activation(module: nn.Module) -> Activation | None:
    if type(module) is nn.ReLU:
        relu_back = _aten.threshold_backward.grad_input
        return Activation(torch.relu_, lambda g, z, h: relu_back(g, h, 0, grad_input=g))
    if type(module) is nn.Tanh:
        tanh_back = _aten.tanh_backward.grad_input
        return Activation(torch.tanh_, lambda g, z, h: tanh_back(g, h, grad_input=g))
    if type(module) is nn.Sigmoid:
        sigmoid_back = _aten.sigmoid_backward.grad_input
        return Activation(torch.sigmoid_, lambda g, z, h: sigmoid_back(g, h, grad_input=g))
    if type(module) is nn.GELU:
        kind = module.approximate
        return Activation(
            lambda z: nn.functional.gelu(z, approximate=kind),
            lambda g, z, h: _aten.gelu_backward(g, z, approximate=kind),
        )
    if type(module) is nn.LeakyReLU:
        slope = module.negative_slope
        return Activation(
            lambda z: nn.functional.leaky_relu(z, slope),
            lambda g, z, h: _aten.leaky_relu_backward(g, z, slope, False),
        )
    if type(module) is nn.SiLU:
        return Activation(nn.functional.silu, lambda g, z, h: _aten.silu_backward(g, z))
    return None


@dataclass(frozen=True, eq=False)
class Dense:
    """One dense layer: where its weight ``(out, in)`` and bias ``(out,)`` lie in the vector."""

    out: int
    inputs: int
    weight: slice
    bias: slice | None
    activation: Activation | None


@dataclass(frozen=True, eq=False)
class Chain:
    """A network of dense layers with elementwise functions between them."""

    layers: tuple[Dense, ...]

    @property
    def later(self) -> int:
        """Parameters behind the first layer, which each client holds."""
        return sum(d.out * (d.inputs + 1) for d in self.layers[1:])


class Rooms:
    """Memory by name. What is taken holds anything: whoever takes it writes it first."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the room's memory, which grows as needed; not initialised."""
        size = math.prod(shape)
        room = self._held.get(name)
        if room is None or room.dtype != dtype or len(room) < size:
            room = torch.empty(size, dtype=dtype)
            if room.nbytes <= _MEMORY:  # what is larger, nobody should have to keep
                self._held[name] = room
        return room[:size].view(tuple(shape))


@dataclass(eq=False)
class Scratch:
    """Rooms that one group leaves to the next; fresh memory costs a group a twentieth of its time."""

    _free: list[Rooms] = field(default_factory=list)

    @contextmanager
    def lent(self) -> Iterator[Rooms]:
        """Rooms that nobody else has meanwhile."""
        rooms = self._free.pop() if self._free else Rooms()
        try:
            yield rooms
        finally:
            if not self._free:
                self._free.append(rooms)


@dataclass(frozen=True, eq=False)
class Setting:
    """What does not change from group to group.

    Args:
        chain: the network.
        layout: its layout.
        loss: a name of :data:`atoll.models.torch.algebra.LOSSES`.
        targets: dtype of the targets.
        scratch: memory to work in.
    """

    chain: Chain
    layout: Layout
    loss: str
    targets: torch.dtype
    scratch: Scratch


def chain_of(module: nn.Module, layout: Layout) -> Chain | None:
    """The chain that ``module`` is; None for anything else.

    Recognised are (nested) ``nn.Sequential`` of ``Flatten``, ``Linear``, ``ReLU``, ``Tanh``, ``Sigmoid``,
    ``GELU``, ``LeakyReLU`` and ``SiLU`` without hooks, tied, frozen or personal parameters.
    """
    starts = dict(zip((e.name for e in layout.entries), layout.offsets, strict=False))
    plain = all(e.trainable and not e.personal and not e.aliases for e in layout.entries)
    names = {id(p): name for name, p in module.named_parameters()}
    layers: list[Dense] = []
    if not plain or hooked(module):
        return None
    for part in _parts(module):
        if part is None:
            return None
        if type(part) is nn.Linear:
            where = [_slice(p, names, starts) for p in (part.weight, part.bias)]
            if where[0] is None or getattr(torch, layout.dtype) != part.weight.dtype:
                return None
            layers.append(Dense(part.out_features, part.in_features, where[0], where[1], None))
        elif type(part) in (nn.Flatten, nn.Identity, Rows):
            if layers or (type(part) is Rows and len(part.shape) != 1):
                return None
            if type(part) is nn.Flatten and (part.start_dim, part.end_dim) != (1, -1):
                return None
        else:
            found = _activation(part)
            if found is None or not layers or layers[-1].activation is not None:
                return None
            last = layers.pop()
            layers.append(Dense(last.out, last.inputs, last.weight, last.bias, found))
    held = sum(d.out * d.inputs + (d.out if d.bias else 0) for d in layers)
    if not layers or held != layout.size or layers[-1].activation is not None:
        return None
    return Chain(tuple(layers))


def _parts(module: nn.Module) -> list[nn.Module | None]:
    if type(module) is nn.Sequential:
        return [p for child in module for p in _parts(child)]
    return [module if not list(module.children()) else None]


def _slice(p: Tensor | None, names: dict[int, str], starts: dict[str, int]) -> slice | None:
    if p is None or id(p) not in names:
        return None
    start = starts[names[id(p)]]
    return slice(start, start + p.numel())


def pays(chain: Chain, work: LocalWork, rows: int) -> bool:
    """Whether a group is expected to cost less than its clients one by one, for ``rows`` rows each.

    Counts floating-point operations of both ways; says no where the optimiser is not plain SGD.
    """
    o = work.optimizer
    if o.name != "sgd" or o.momentum or work.clip_norm or rows < 1:
        return False
    first, p = chain.layers[0], plan(rows, work)
    area, visits = first.inputs * first.out, p.steps * p.size
    alone = 4 * visits * area + p.steps * (_TOUCH * area + _STEP)
    gram = 2 * rows * rows * first.inputs + 2 * visits * rows * first.out
    together = 4 * rows * area + gram + p.steps * _STEP / _GROUP
    return together < 0.85 * alone


def group_size(chain: Chain, rows: int, itemsize: int) -> int:
    """How many clients of ``rows`` rows fit into a group; 1 where too few would."""
    first = chain.layers[0]
    each = itemsize * (rows * (first.inputs + rows + 3 * first.out) + 2 * chain.later)
    size = min(_GROUP, _MEMORY // max(1, each))
    return size if size >= 4 else 1
