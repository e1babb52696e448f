"""A torch trainer that fits many small clients side by side.

A step of a small model costs little arithmetic and much overhead: operations are started, memory is
asked for. Training *lanes* of clients at once (:mod:`atoll.models.torch.stack`) starts each operation once for
all of them. It suits many small clients on a GPU; on a CPU going client by client with hot caches is about
as fast, so measure before use.

The result equals :class:`~atoll.models.torch.adapter.TorchTrainer`'s up to rounding: batches, order and
arithmetic of every client are its own. What cannot be trained so is trained client by client, and
:meth:`LanesTrainer.explain` says why:

* a loss that is a function of the user's own (it cannot be taken apart into rows), augmentation;
* modules whose rows meet in training (BatchNorm), that draw random numbers (dropout), or that change
  buffers or attributes; embeddings with a padding index;
* operations ``torch.func.vmap`` does not know (recurrent layers, fused attention), parameters of several
  dtypes, the optimisers NAdam and RAdam, targets that are to be ignored (-100).

Only CPU lanes have been tested; CUDA devices use the same code with pinned transfers and CUDA graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from atoll.core.contracts import Lane
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork, Optimizer
from atoll.core.metrics import Metrics
from atoll.core.seeds import Seed
from atoll.models.scores import check_labels
from atoll.models.torch.adapter import LOSSES, TorchTrainer
from atoll.models.torch.fit import alone
from atoll.models.torch.flat import tensor_over
from atoll.models.torch.moves import MOVES
from atoll.models.torch.record import Twin
from atoll.models.torch.stack import Client, Kind, Stack, Trained

__all__ = ["LanesTrainer"]


@dataclass(frozen=True, eq=False)
class LanesTrainer:
    """A :class:`~atoll.models.torch.adapter.TorchTrainer` as a :class:`~atoll.core.contracts.LaneTrainer`.

    Args:
        inner: the trainer; it evaluates, gives gradients, and fits what lanes cannot.
        width: lanes on each device.
        devices: where to compute: ``cpu``, ``cuda``, ``cuda:1`` …; groups are cut evenly among them.
        refill: clients in a group for each lane: more keep lanes of unequal clients busier, fewer
            leave more groups to deal out to worker processes.

    The width, the number of devices and ``refill`` decide which clients are trained together, and so
    the last bits of a result.

    >>> trainer = LanesTrainer(TorchTrainer(nn.Linear, {"in_features": 3, "out_features": 2}), width=8)
    >>> trainer.lanes
    16
    """

    inner: TorchTrainer
    width: int = 16
    devices: Sequence[str] = ("cpu",)
    refill: int = 2

    def __post_init__(self) -> None:
        """Check the numbers and the devices.

        Raises:
            JobError: a number below 1, no device, or one that is not there.
        """
        for name in ("width", "refill"):
            if getattr(self, name) < 1:
                raise JobError(f"{name} is {getattr(self, name)}", remedy="give at least 1")
        if not self.devices:
            raise JobError("no device is named", remedy="devices = ['cpu']")
        for name in self.devices:
            _device(name)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: the recipe, not the built buffers."""
        built = ("_stacks", "_objections", "reason")
        return {k: v for k, v in self.__dict__.items() if k not in built}

    @property
    def lanes(self) -> int:
        """Clients in a group; 1 where nothing can be trained side by side."""
        return 1 if self.reason else self.width * self.refill * len(self.devices)

    @property
    def layout(self) -> Layout:
        """The inner trainer's."""
        return self.inner.layout

    @property
    def corrects(self) -> bool:
        """True: local rules are applied."""
        return self.inner.corrects

    @property
    def optimizers(self) -> Collection[str]:
        """The inner trainer's."""
        return self.inner.optimizers

    def initial(self, seed: Seed) -> Array:
        """The inner trainer's."""
        return self.inner.initial(seed)

    def fit(
        self,
        parameters: Array,
        data: Any,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        """One client, by the inner trainer."""
        return self.inner.fit(parameters, data, work=work, rule=rule, seed=seed, round=round)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """The inner trainer's."""
        return self.inner.gradient(parameters, data)

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """The inner trainer's."""
        return self.inner.evaluate(parameters, data)

    def module_with(self, parameters: Array) -> nn.Module:
        """The inner trainer's."""
        return self.inner.module_with(parameters)

    def state_dict_from(self, parameters: Array) -> dict[str, Any]:
        """The inner trainer's."""
        return self.inner.state_dict_from(parameters)

    def fit_lanes(
        self, parameters: Sequence[Array], lanes: Sequence[Lane], *, round: int
    ) -> list[Fit]:
        """Train every lane from its own parameters; those that lanes cannot train, one by one.

        Raises:
            DataError: a client without rows, with fewer targets than rows, or labels outside the
                declared classes.
            LayoutError: a vector of another layout.
        """
        for vector in parameters:
            self.layout.check(vector, what="parameters")
        rows = [self._rows(lane) for lane in lanes]
        kinds: dict[Kind, list[int]] = {}
        fits: dict[int, Fit] = {}
        for i, (lane, (x, y)) in enumerate(zip(lanes, rows, strict=True)):
            if self._why_not(lane, x, y):
                fits[i] = self.fit(
                    parameters[i],
                    lane.data,
                    work=lane.work,
                    rule=lane.rule,
                    seed=lane.seed,
                    round=round,
                )
            else:
                kinds.setdefault(Kind.of(lane, x, y), []).append(i)
        for kind, members in kinds.items():
            clients = [Client.of(parameters[i], lanes[i], *rows[i], round) for i in members]
            for i, c, end in zip(members, clients, self._train(kind, clients), strict=True):
                total = float(sum(c.rates.tolist()))
                fits[i] = Fit(end.parameters, len(c.rates), total, len(c.x), end.loss)
        return [fits[i] for i in range(len(lanes))]

    def explain(self, work: LocalWork, data: Any, *, sums: bool = True) -> str:
        """Which path a group of clients with rows like these takes, and why not lanes.

        Lanes give every client's model, so it does not matter whether only ``sums`` are wanted.
        """
        lane = Lane(data, work, LocalRule(), Seed(0), 1.0)
        if reason := self._why_not(lane, *self._rows(lane)):
            return f"client by client: {reason}"
        where = ", ".join(self.devices)
        return f"lanes, {self.width} clients side by side on {where}"

    @cached_property
    def reason(self) -> str:
        """Why no client at all can be trained in lanes; empty where one might."""
        inner = self.inner
        if self.width == 1:
            return "there is one lane"
        if not isinstance(inner.loss, str):
            return "a loss function of one's own cannot be taken apart into rows"
        if inner.augment is not None:
            return "batches are augmented"
        if getattr(inner, "precision", "float32") != "float32":
            return f"precision {inner.precision}"
        dtypes = {e.dtype for e in inner.layout.entries if e.trainable}
        if dtypes != {inner.layout.dtype}:
            return f"the trained parameters are {', '.join(sorted(dtypes)) or 'none'}"
        module = inner.module_with(inner.initial(Seed(0)))
        for name, part in module.named_modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                return f"{name or 'the module'} ({type(part).__name__}) keeps running statistics"
            if isinstance(part, _DropoutNd) and part.p > 0:
                return f"{name or 'the module'} ({type(part).__name__}) draws random numbers"
            if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.padding_idx is not None:
                # torch.func.vmap knows the padding of the first lane only
                return f"{name or 'the module'} ({type(part).__name__}) has a padding index"
        return ""

    @cached_property
    def _objections(self) -> dict[Any, str]:
        """What spoke against rows of a shape, by shapes and dtypes."""
        return {}

    @cached_property
    def _stacks(self) -> dict[int, Stack]:
        """The last stack on each device."""
        return {}

    def _why_not(self, lane: Lane, x: Tensor, y: Tensor) -> str:
        """Why this client cannot go into a lane. Depends on its data only in what they are."""
        if self.reason:
            return self.reason
        if lane.work.optimizer.name not in MOVES:
            return f"optimiser {lane.work.optimizer.name!r} is not offered in lanes"
        if lane.rule.mu and lane.rule.anchor is None:
            return "the local rule has no anchor"
        if y.dtype == torch.int64 and len(y) and int(y.min()) < 0:
            return "some targets are to be ignored"
        kind = Kind.of(lane, x, y)
        shapes = kind.features, kind.targets
        if shapes not in self._objections:
            self._objections[shapes] = _tried(self.inner, kind)
        return self._objections[shapes]

    def _rows(self, lane: Lane) -> tuple[Tensor, Tensor]:
        """A client's rows in the dtypes that training takes."""
        data: Any = lane.data
        inner, own = self.inner, getattr(torch, self.layout.dtype)
        labels = inner.task != "regression" and inner.loss != "bce"
        if labels and inner.classes is not None:
            check_labels(np.asarray(data.targets), inner.classes)
        x, y = tensor_over(data.features), tensor_over(data.targets)
        if len(x) != len(y):
            raise DataError(
                f"{len(x)} rows of features and {len(y)} targets",
                remedy="check how this client's data were read",
            )
        return (x.to(own) if x.is_floating_point() else x), y.to(torch.int64 if labels else own)

    def _train(self, kind: Kind, clients: Sequence[Client]) -> list[Trained]:
        """Cut the clients evenly among the devices and train them."""
        count = len(self.devices)
        ends = [len(clients) * (i + 1) // count for i in range(count)]
        shares = [clients[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        busy = [(i, share) for i, share in enumerate(shares) if share]
        with alone(Seed(0)):
            stacks = [self._stack(i, kind) for i, _ in busy]
            work = [(s, share) for s, (_, share) in zip(stacks, busy, strict=True)]
            if len(work) == 1:
                return work[0][0].train(work[0][1], self.width)
            with ThreadPoolExecutor(len(work)) as pool:  # each thread feeds its own device
                found = pool.map(lambda job: job[0].train(job[1], self.width), work)
                return [end for part in found for end in part]

    def _stack(self, place: int, kind: Kind) -> Stack:
        held = self._stacks.get(place)
        if held is None or held.kind != kind:
            module = self.inner.module_with(self.inner.initial(Seed(0)))
            device = _device(self.devices[place])
            held = Stack(module, self.layout, str(self.inner.loss), kind, device)
            self._stacks[place] = held
        return held


def _device(name: str) -> torch.device:
    """The device called ``name``.

    Raises:
        JobError: there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise JobError(f"unknown device {name!r}", remedy="use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise JobError(f"lanes do not run on {name!r}", remedy="use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise JobError(
            f"this machine has no device {name!r}",
            remedy=f"torch sees {torch.cuda.device_count()} CUDA devices; use devices = ['cpu']",
        )
    return device


def _tried(inner: TorchTrainer, kind: Kind) -> str:
    """Why a module cannot be trained in lanes, found by trying it on made-up rows.

    Two clients, one with a short batch, take one step in lanes; their gradients are held against those of the
    module alone. Nobody's data take part, so the answer is the same in every process.
    """
    trial = Kind(Optimizer("adagrad"), 0.0, 0.0, False, kind.features, kind.targets)
    noise = torch.Generator().manual_seed(1)
    start = inner.initial(Seed(0)).astype(np.float64)
    clients, wanted = list[Client](), list[Mapping[str, Tensor]]()
    with alone(Seed(0)):
        try:
            for rows in (3, 2):
                vector = start.copy()
                part = vector[inner.layout.trainable]
                part += 0.05 * torch.rand(len(part), generator=noise, dtype=torch.float64).numpy()
                x, y = _made(kind, rows, noise)
                vector = vector.astype(inner.layout.dtype)
                clients.append(_one_step(vector, x, y))
                wanted.append(_alone_gradients(inner, vector, x, y))
            module = inner.module_with(inner.initial(Seed(0)))
            stack = Stack(module, inner.layout, str(inner.loss), trial, torch.device("cpu"))
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "There is a performance drop")
                stack.train(clients, 2)
        except _Objection as objection:
            return str(objection)
        except Exception as error:  # the module is the user's own: it may raise anything
            line = str(error).strip().splitlines() or [""]
            return f"a trial failed: {type(error).__name__}: {line[0][:160]}"
    return _compared(inner.layout, wanted, stack.gradient)


class _Objection(Exception):
    pass


def _made(kind: Kind, rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Made-up rows that differ from each other; whole numbers are 0 and 1, labels 0."""
    (shape, dtype), (target, labels) = kind.features, kind.targets
    if dtype.is_floating_point:
        x = torch.rand((rows, *shape), generator=noise, dtype=torch.float64).to(dtype)
    else:
        x = torch.zeros((rows, *shape), dtype=dtype)
        x[1] = 1
    y = torch.zeros((rows, *target), dtype=labels)
    return x, y + 0.5 if labels.is_floating_point else y


def _one_step(vector: Array, x: Tensor, y: Tensor) -> Client:
    """A client that takes all its rows in one step."""
    n = len(x)
    order, counts = np.arange(n)[None], np.array([n])
    return Client(vector, LocalRule(), x, y, order, counts, np.ones(1))


def _alone_gradients(inner: TorchTrainer, vector: Array, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    twin = Twin(inner.module_with(vector).train(), None)
    module = twin.module
    before = {name: value.clone() for name, value in module.named_buffers()}
    LOSSES[str(inner.loss)](module(x), y).backward()  # type: ignore[no-untyped-call]  # torch's
    for name, value in module.named_buffers():
        if name not in before or not torch.equal(value, before[name]):
            raise _Objection(f"training changes buffer {name!r}")
    if twin.altered():
        raise _Objection("the module keeps state outside its buffers")
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in module.named_parameters(remove_duplicate=False)
    }


def _compared(layout: Layout, wanted: Sequence[Mapping[str, Tensor]], found: Tensor) -> str:
    """What the gradients in lanes, ``(lanes, trained values)``, have against those of the module."""
    near = 1e-3 if layout.dtype == "float32" else 1e-9
    trained = [
        (e.name, at - layout.trainable.start, e.size)
        for e, at in zip(layout.entries, layout.offsets, strict=False)
        if e.trainable
    ]
    for slopes, row in zip(wanted, found, strict=True):
        largest = max(_size(slopes[name]) for name, _, _ in trained)
        for name, at, size in trained:
            slope = slopes[name].flatten()
            bound = near * max(_size(slope), 1e-3 * largest)
            if not torch.allclose(row[at : at + size], slope, rtol=0.0, atol=bound):
                return f"the gradient of {name!r} is another one: do rows of a batch meet?"
    return ""


def _size(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
