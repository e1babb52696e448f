"""A torch module as one flat vector: its layout, and a module bound to flat buffers.

The workbench of :mod:`atoll.models.torch.adapter`, whose notes say what becomes of odd dtypes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atoll.core.errors import Fault, LayoutError, raise_faults
from atoll.core.layout import Array, Entry, Layout

__all__ = [
    "Bench",
    "finite",
    "layout_of",
    "on_cpu",
    "pack_module",
    "starts_with_group_norm",
    "tensor_over",
    "unpack_module",
]


@dataclass(eq=False)
class _Held:
    """One tensor of a module and every place it hangs at: (owner, attribute)."""

    value: Tensor
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)

    def now(self) -> Tensor:
        """What hangs there now: a module may have put another tensor in a buffer's place."""
        owner, key = self.places[0]
        found: Tensor = getattr(owner, key)
        return found.detach()

    def write(self, view: Tensor) -> None:
        """Set a buffer, in the tensor that other parts of the module may refer to."""
        if not self.value.is_contiguous():  # an expanded one could not be written
            self.value = self.value.detach().clone(memory_format=torch.contiguous_format)
        self.value.copy_(restored(view, self.value.dtype))
        for owner, key in self.places:
            if getattr(owner, key) is not self.value:
                setattr(owner, key, self.value)


def _tensors(module: nn.Module) -> dict[str, _Held]:
    """The state dict's tensors by first name; one that is held twice comes once."""
    held: dict[int, _Held] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        path, _, key = name.rpartition(".")
        if not isinstance(value, Tensor) or key == "_extra_state":
            continue  # not a number to train or average; it stays with the recipe
        one = held.setdefault(id(value), _Held(value))
        one.names.append(name)
        one.places.append((module.get_submodule(path), key))
    return {one.names[0]: one for one in held.values()}


_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

_Kept = tuple[list[tuple[Any, Any]], list[tuple[int, dict[str, Any]]], list[Tensor]]


class _Beside:
    """What a module keeps beside its state dict: every client gets it as it was built.

    These are attributes, and the values in those that are tensors (buffers that are not saved, too) or
    torch's generators. What lies in lists and closures cannot be told from what clients are to share.
    """

    def __init__(self, module: nn.Module, saved: Iterable[_Held]) -> None:
        known = {id(held.value) for held in saved}
        self._owns = [vars(part) for part in module.modules()]
        self._places: list[tuple[nn.Module, str]] = []
        self._draws: list[torch.Generator] = []
        for part in module.modules():
            for name, value in (*vars(part).items(), *part.named_buffers(recurse=False)):
                if isinstance(value, Tensor) and id(value) not in known:
                    self._places.append((part, name))
                elif isinstance(value, torch.Generator):
                    self._draws.append(value)
        self._built = self.now()

    def now(self) -> _Kept:
        """As it is at present."""
        there = [getattr(part, name) for part, name in self._places]
        return (
            [(t, t.detach().clone() if isinstance(t, Tensor) else t) for t in there],
            [(len(o), {k: v for k, v in o.items() if k not in _MODULE}) for o in self._owns],
            [draw.get_state() for draw in self._draws],
        )

    def put(self, kept: _Kept | None = None) -> None:
        """As it was at a :meth:`now`, or when the module was built."""
        tensors, attributes, draws = kept or self._built
        for own, (size, values) in zip(self._owns, attributes, strict=True):
            own.update(values)
            if len(own) > size:
                for name in own.keys() - values.keys() - _MODULE:
                    del own[name]
        for (part, name), (there, value) in zip(self._places, tensors, strict=True):
            setattr(part, name, there)
            if isinstance(there, Tensor) and 0 not in there.stride():  # an expanded one stays
                there.detach().copy_(value)
        for draw, state in zip(self._draws, draws, strict=True):
            draw.set_state(state)


def on_cpu(module: nn.Module) -> nn.Module:
    """The module itself, moved to the CPU if some of it is on a device."""
    places = {t.device.type for t in (*module.parameters(), *module.buffers())}
    return module.cpu() if places - {"cpu", "meta"} else module


def starts_with_group_norm(module: nn.Module) -> bool:
    """Whether a ``GroupNorm`` stands before everything else that is trained.

    Its backward pass in torch 2.13 ends the process when its input is in NHWC order and needs no
    gradient, as images and the results of frozen layers do.
    """
    for part in module.modules():
        if any(p.requires_grad for p in part.parameters(recurse=False)):
            return isinstance(part, nn.GroupNorm)
    return False


def layout_of(module: nn.Module, personal: Sequence[str]) -> Layout:
    """Layout in the narrowest vector dtype that holds every value exactly.

    Raises:
        LayoutError: a tensor that no real vector can hold; all of them are listed.
    """
    tensors = _tensors(module)
    raise_faults(
        LayoutError,
        "the module does not fit a vector",
        [Fault(n, why, todo) for n, t in tensors.items() for why, todo in _objections(t.value)],
    )
    entries = [
        Entry(
            n,
            tuple(t.value.shape),
            _numpy_name(t.value),
            isinstance(t.value, nn.Parameter) and t.value.requires_grad,
            aliases=tuple(t.names[1:]),
        )
        for n, t in tensors.items()
    ]
    if not any(t.value.dtype == torch.float64 for t in tensors.values()):
        layout = Layout.of(entries, personal=personal)
        try:
            pack_module(module, layout)
        except LayoutError:  # a whole number beyond 2^24
            pass
        else:
            return layout
    layout = Layout.of(entries, personal=personal, dtype="float64")
    pack_module(module, layout)
    return layout


def _objections(value: Tensor) -> Iterator[tuple[str, str]]:
    if nn.parameter.is_lazy(value):
        yield "has no shape yet", "run one batch through the module first, or name its sizes"
    elif value.is_complex() or value.layout != torch.strided or value.is_quantized:
        yield (
            f"{value.dtype}, {value.layout}, cannot lie in a real vector",
            "use dense real tensors",
        )
    elif value.device.type != "cpu":
        yield f"is on {value.device}", "build the module with values, on the CPU"


def _numpy_name(value: Tensor) -> str:
    """Dtype in the layout; see the module's notes for what NumPy does not know."""
    name = str(value.dtype).removeprefix("torch.")
    known = not value.is_floating_point() or name in ("float16", "float32", "float64")
    return name if known else "float32"


def pack_module(module: nn.Module, layout: Layout) -> Array:
    """The vector that holds a module's state exactly.

    Raises:
        LayoutError: the module has other entries, or a value the vector's dtype cannot hold.
    """
    arrays = {
        name: t.value.detach().to(getattr(torch, _numpy_name(t.value))).numpy()
        for name, t in _tensors(module).items()
    }
    with np.errstate(invalid="ignore"):  # an int64 beyond every float is refused, not warned of
        return layout.pack(arrays)


def unpack_module(module: nn.Module, layout: Layout, vector: Array) -> None:
    """Put ``vector`` into ``module``, each entry in its own dtype."""
    tensors, flat = _tensors(module), tensor_over(vector)
    with torch.no_grad():
        for e, start in zip(layout.entries, layout.offsets, strict=False):
            view = flat[start : start + e.size].view(e.shape)
            held = tensors[e.name]
            if isinstance(held.value, nn.Parameter):
                held.value.data = restored(view, held.value.dtype).clone()
            else:
                held.write(view)


def restored(view: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in an entry's own dtype; whole numbers are rounded."""
    whole = view.is_floating_point() and not dtype.is_floating_point
    return (view.round() if whole else view).to(dtype)


def _common_dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The floating dtype that most parameters have: what the module expects its input in."""
    counts: Counter[torch.dtype] = Counter()
    for p in module.parameters():
        if p.is_floating_point():
            counts[p.dtype] += p.numel()
    return counts.most_common(1)[0][0] if counts else otherwise


class Bench:
    """A module bound to flat buffers, used for one client after the other.

    ``flat`` is the whole vector, ``weights`` its trainable slice, ``gradient`` as long as that. With
    ``channels_last`` the kernels of convolutions lie in NHWC order inside ``flat``; :meth:`load`,
    :meth:`vector`, :meth:`arranged` and :meth:`slope` go between that and the layout's own order.
    """

    def __init__(self, module: nn.Module, layout: Layout, channels_last: bool) -> None:
        dtype: torch.dtype = getattr(torch, layout.dtype)
        self.module = module
        self._parts = tuple(module.modules())
        self.layout = layout
        self.channels_last = channels_last
        self.flat = torch.zeros(layout.size, dtype=dtype)
        self.weights = self.flat[layout.trainable]
        self.gradient = torch.zeros_like(self.weights)
        self.copied: list[tuple[Tensor, Tensor, Tensor | None]] = []
        """Parameters that are no views: (parameter, its part of ``flat``, of ``gradient``)."""
        self.trained: list[Tensor] = []
        """Parameters that are trained and are views, with ``views`` and ``slopes`` beside them."""
        self.views: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.bound: list[tuple[Tensor, Tensor]] = []
        """Parameter -> its plain view, trained or not."""
        self._turned: list[tuple[slice, tuple[int, ...]]] = []
        self._buffers: list[tuple[_Held, Tensor]] = []
        self.dtype = dtype
        tensors = _tensors(module)
        for e, start in zip(layout.entries, layout.offsets, strict=False):
            self._bind(tensors[e.name], e, start)
        self._beside = _Beside(module, tensors.values())
        self.compute = _common_dtype(module, dtype)

    def _bind(self, held: _Held, e: Entry, start: int) -> None:
        value, at = held.value, start - self.layout.trainable.start
        view = self.flat[start : start + e.size].view(e.shape)
        slope = self.gradient[at : at + e.size].view(e.shape) if e.trainable else None
        if not isinstance(value, nn.Parameter):
            self._buffers.append((held, view))
        elif value.dtype != self.dtype:
            self.copied.append((value, view, slope))
        else:
            if self.channels_last and len(e.shape) == 4:
                view = _turned(view)
                slope = None if slope is None else _turned(slope)
                self._turned.append((slice(start, start + e.size), e.shape))
            value.data = view
            value.grad = slope
            self.bound.append((value, view))
            if slope is not None:
                self.trained.append(value)
                self.views.append(view)
                self.slopes.append(slope)

    def train(self) -> None:
        """Put the module into training mode; a look at its parts costs less than setting them."""
        if not all(part.training for part in self._parts):
            self.module.train()

    @cached_property
    def velocity(self) -> tuple[Tensor, list[Tensor]]:
        """A vector like ``gradient`` for momentum, which keeps what was left there, and its ``slopes``."""
        flat, start = torch.zeros_like(self.gradient), self.gradient.storage_offset()
        return flat, [
            flat.as_strided(t.shape, t.stride(), t.storage_offset() - start) for t in self.slopes
        ]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Two vectors like ``gradient`` for adaptive optimisers, which keep what was left there."""
        return torch.empty_like(self.gradient), torch.empty_like(self.gradient)

    def formatted(self, x: Tensor) -> Tensor:
        """A batch in the order that the module's convolutions like best."""
        if not self.channels_last or x.dim() != 4:
            return x
        # One channel is both orders at once, and only these strides make torch go on in NHWC.
        if x.shape[1] == 1 and x.is_contiguous():
            return _turned(x)
        return x.contiguous(memory_format=torch.channels_last)

    def load(self, parameters: Array) -> None:
        """Put a vector into the module, and everything beside it back to how it was built."""
        self._beside.put()  # first: some of it may be views of what is loaded
        given = tensor_over(parameters)
        self.flat.copy_(given)
        for where, shape in self._turned:
            _turned(self.flat[where].view(shape)).copy_(given[where].view(shape))
        with torch.no_grad():
            for value, view, _ in self.copied:
                value.copy_(restored(view, value.dtype))
            for held, view in self._buffers:
                held.write(view)

    def snapshot(self) -> tuple[list[Tensor], list[Tensor], _Kept]:
        """Everything a step may change."""
        buffers = [held.now().clone() for held, _ in self._buffers]
        return [flat.clone() for flat in self._moved()], buffers, self._beside.now()

    def restore(self, kept: tuple[list[Tensor], list[Tensor], _Kept]) -> None:
        """Go back to a :meth:`snapshot`, with no gradient."""
        moved, buffers, beside = kept
        self._beside.put(beside)
        for flat, value in zip(self._moved(), moved, strict=True):
            flat.copy_(value)
        self.gradient.zero_()
        for (held, _), value in zip(self._buffers, buffers, strict=True):
            held.write(value)

    def _moved(self) -> list[Tensor]:
        # Without momentum there is no velocity, and none is made here.
        return [self.flat, *([self.velocity[0]] if "velocity" in self.__dict__ else [])]

    def arranged(self, vector: Array, part: slice) -> Tensor:
        """A shared vector's ``part``, in the order it has in ``flat``."""
        given = tensor_over(vector[part]).to(self.dtype)
        inside = [
            (slice(where.start - part.start, where.stop - part.start), shape)
            for where, shape in self._turned
            if part.start <= where.start and where.stop <= part.stop
        ]
        if not inside:
            return given
        turned = given.clone()
        for where, shape in inside:
            _turned(turned[where].view(shape)).copy_(given[where].view(shape))
        return turned

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the flat gradient."""
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for value, _, slope in self.copied:
            if slope is not None and value.grad is not None:
                slope.add_(value.grad)
                value.grad = None

    def push(self) -> None:
        """Carry an optimiser's step to the parameters that are no views."""
        if not self.copied:
            return
        with torch.no_grad():
            for value, view, slope in self.copied:
                if slope is not None:
                    value.copy_(view)

    def slope(self) -> Array:
        """The gradient in the layout's order, ``(layout.size,)``, 0 where nothing is trained."""
        whole = torch.zeros_like(self.flat)
        whole[self.layout.trainable] = self.gradient
        return self.laid_out(whole)

    def laid_out(self, flat: Tensor) -> Array:
        """A vector like ``flat`` in the layout's order, a copy."""
        out = np.empty(len(flat), self.layout.dtype)
        copied = torch.from_numpy(out)
        copied.copy_(flat)
        for where, shape in self._turned:
            copied[where].view(shape).copy_(_turned(flat[where].view(shape)))
        return out

    def handed(self, flat: Tensor) -> Array:
        """A vector like ``flat`` in the layout's order, which may be its own memory."""
        return self.laid_out(flat) if self._turned else flat.numpy()

    def vector(self) -> Array:
        """A copy of the vector, with what the module itself changed (buffers, frozen entries)."""
        self.collect()
        return self.laid_out(self.flat)

    def collect(self) -> None:
        """Bring into ``flat`` what the module itself changed."""
        for value, view, slope in self.copied:
            if slope is None:
                view.copy_(value.detach())
        for held, view in self._buffers:
            now = held.now()
            if now.shape != view.shape:
                raise LayoutError(
                    f"buffer {held.names[0]!r} became {tuple(now.shape)} in training, "
                    f"it was {tuple(view.shape)}",
                    remedy="register it with persistent=False",
                )
            view.copy_(now)


def _turned(view: Tensor) -> Tensor:
    """A contiguous ``(n, c, h, w)`` block seen as NHWC memory."""
    _, c, h, w = view.shape
    return view.as_strided(view.shape, (c * h * w, 1, w * c, c))


def finite(vector: Tensor) -> bool:
    """Whether all values are finite: where their sum is, and else where both extremes are."""
    if not len(vector) or math.isfinite(vector.sum().item()):
        return True
    return all(math.isfinite(end.item()) for end in torch.aminmax(vector))


class _Unlocked:
    """Lets torch read a read-only array without its warning; nothing here ever writes to it."""

    def __init__(self, array: Array) -> None:
        face = array.__array_interface__
        self.__array_interface__ = {**face, "data": (face["data"][0], False)}
        self.owner = array


def tensor_over(array: Any) -> Tensor:
    """A tensor over the array's memory, copied only where torch cannot read it."""
    a = np.asarray(array)
    if not a.dtype.isnative or any(stride < 0 for stride in a.strides):
        a = np.ascontiguousarray(a, a.dtype.newbyteorder("="))
    return torch.from_numpy(a if a.flags.writeable else np.asarray(_Unlocked(a)))
