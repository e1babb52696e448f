"""Any ``torch.nn.Module`` as a trainer on one flat vector.

Every process holds one module whose parameters are views into one flat buffer and whose gradients are
views into another. Loading a client is then one copy, and clipping, the local rule and the optimiser
are a few operations on flat tensors. What cannot be such a view (buffers such as BatchNorm statistics,
parameters of another dtype) is copied in and out around it.

Things to know:

* A parameter that the loss does not reach has gradient 0 here, while a plain torch loop skips it:
  weight decay and momentum therefore act on it too.
* Parameters of another dtype than the vector (float16, bfloat16) are trained with master weights in
  the vector's precision, as in mixed-precision training.
* NumPy has no bfloat16 or float8: such an entry is ``float32`` in the layout, and gets its own dtype
  back in the module. Any float64 entry makes the vector float64.
* Work runs on one thread and under a random state of its own, so results do not depend on the
  executor; the global thread count and generator are as before afterwards.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from atoll.core.errors import (
    DataError,
    JobConflict,
    JobError,
    LayoutError,
    MissingExtra,
    suggest,
)
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork, Optimizer
from atoll.core.metrics import Mean, Metrics
from atoll.core.seeds import Seed
from atoll.models.batches import batches, learning_rate, plan
from atoll.models.scores import check_labels, classification_scores, regression_scores

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from atoll.models.torch_flat import (
        Bench,
        layout_of,
        on_cpu,
        pack_module,
        tensor_over,
        unpack_module,
    )
except ImportError as missing:  # pragma: no cover - depends on the installation
    raise MissingExtra(
        "torch is not installed", remedy="pip install 'atoll[torch]', or use a linear model"
    ) from missing

__all__ = ["LOSSES", "OPTIMIZERS", "TorchTrainer"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> scalar mean loss of the batch."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(features of a batch, random generator) -> features to train on."""

_LOCK = threading.RLock()
"""torch's generator and thread count belong to the process, so one piece of work at a time."""


def _aligned(output: Tensor, target: Tensor) -> Tensor:
    """The output in the target's shape: ``(n, 1)`` and ``(n,)`` are the same thing."""
    if output.numel() != target.numel():
        raise LayoutError(
            f"the model gives {tuple(output.shape)} for targets of {tuple(target.shape)}",
            remedy="give it one output per target, or use loss cross_entropy",
        )
    return output.reshape(target.shape)


def _bce(output: Tensor, target: Tensor) -> Tensor:
    z = _aligned(output, target)
    return functional.binary_cross_entropy_with_logits(z, target.to(z.dtype))


def _mse(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(_aligned(output, target), target.to(output.dtype))


def _l1(output: Tensor, target: Tensor) -> Tensor:
    return functional.l1_loss(_aligned(output, target), target.to(output.dtype))


LOSSES: dict[str, Loss] = {
    "cross_entropy": functional.cross_entropy,
    "nll_sum": partial(functional.cross_entropy, reduction="sum"),
    "bce": _bce,
    "mse": _mse,
    "l1": _l1,
}
"""Losses by name. All take logits; ``nll_sum`` is summed over the batch instead of averaged (it takes
log-probabilities as well, which the softmax leaves as they are), reported per row all the same."""

OPTIMIZERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sgd": ("SGD", ("momentum", "nesterov", "weight_decay")),
    "adam": ("Adam", ("betas", "eps", "weight_decay")),
    "adamw": ("AdamW", ("betas", "eps", "weight_decay")),
    "nadam": ("NAdam", ("betas", "eps", "weight_decay")),
    "radam": ("RAdam", ("betas", "eps", "weight_decay")),
    "adagrad": ("Adagrad", ("eps", "weight_decay")),
    "rmsprop": ("RMSprop", ("momentum", "eps", "weight_decay")),
}
"""Local optimisers by name: the class in ``torch.optim`` and what is passed on to it."""


@dataclass(frozen=True, eq=False)
class TorchTrainer:
    """An ``nn.Module`` behind the :class:`~atoll.core.contracts.Trainer` contract.

    Args:
        module: a module (copied; its weights are the initial ones), or a class or function that
            builds one. For worker processes the latter must be importable by name.
        arguments: keyword arguments of the building function.
        loss: a name of :data:`LOSSES`, or ``(output, target) -> scalar`` averaging over the batch.
        task: ``classification`` or ``regression``; by default regression for ``mse`` and ``l1``.
        classes: number of classes, checked against labels and outputs; else taken from the outputs.
        personal: shell patterns of entries that stay at the client, such as ``head.*``.
        augment: applied to each training batch.
        exact_auc: see :func:`atoll.models.scores.classification_scores`.
        eval_batch_size: rows at a time in :meth:`evaluate` and :meth:`gradient`.
        channels_last: keep image batches and convolution kernels in NHWC order. Equal up to rounding;
            faster for many channels, slower for few, so measure.

    >>> trainer = TorchTrainer(nn.Linear, {"in_features": 3, "out_features": 2})
    >>> [(e.name, e.shape) for e in trainer.layout.entries]
    [('weight', (2, 3)), ('bias', (2,))]
    """

    module: nn.Module | Callable[..., nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    loss: str | Loss = "cross_entropy"
    task: Literal["classification", "regression"] | None = None
    classes: int | None = None
    personal: Sequence[str] = ()
    augment: Augment | None = None
    exact_auc: bool = True
    eval_batch_size: int = 1024
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Copy a given module and settle the task.

        Raises:
            JobError: an unknown loss.
            JobConflict: a loss that does not fit the task.
        """
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise JobError(f"unknown loss {self.loss!r}", remedy=suggest(self.loss, LOSSES))
        if isinstance(self.module, nn.Module):
            object.__setattr__(self, "module", copy.deepcopy(self.module))
        natural = "regression" if self.loss in ("mse", "l1") else "classification"
        if self.task is None:
            object.__setattr__(self, "task", natural)
        elif isinstance(self.loss, str) and self.task != natural:
            raise JobConflict(
                f"loss {self.loss!r} is for {natural}, not {self.task}",
                remedy="leave out the task, or choose another loss",
            )

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: the recipe, not the built buffers."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_bench", "_latest")}

    @property
    def corrects(self) -> bool:
        """True: local rules are applied."""
        return True

    @cached_property
    def layout(self) -> Layout:
        """Layout of the module's state dict: parameters and persistent buffers."""
        module = self._build(Seed(0))
        return layout_of(module, self.personal)

    @cached_property
    def _bench(self) -> Bench:
        return Bench(self._build(Seed(0)), self.layout, self.channels_last)

    @cached_property
    def _latest(self) -> dict[Seed, Array]:
        """The last initial vector: personal parts ask for the same one at every new client."""
        return {}

    def initial(self, seed: Seed) -> Array:
        """A given module's own weights, or those of a module built under ``seed``."""
        if seed not in self._latest:
            vector = pack_module(self._build(seed), self.layout)
            self._latest.clear()
            self._latest[seed] = vector
        return self._latest[seed].copy()

    def module_with(self, parameters: Array) -> nn.Module:
        """A new module holding ``parameters``, in eval mode, independent of this trainer.

        Raises:
            LayoutError: the vector is not of this layout.
        """
        self.layout.check(parameters, what="parameters")
        module = self._build(Seed(0))
        unpack_module(module, self.layout, parameters)
        return module.eval()

    def state_dict_from(self, parameters: Array) -> dict[str, Any]:
        """The ``state_dict`` of :meth:`module_with`: own names, dtypes and tied weights."""
        return self.module_with(parameters).state_dict()

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
        """Train from ``parameters``; see :class:`~atoll.core.local.LocalWork` for the steps.

        Each step: gradient of the batch, clipping of its L2 norm, the rule's correction, the
        optimiser (with its weight decay). A loss that is not finite is returned as it is.

        Raises:
            DataError: no rows, or labels outside the declared classes.
            JobError: an optimiser that is not offered.
        """
        self.layout.check(parameters, what="parameters")
        size = plan(len(data), work).size
        with _alone(seed):
            bench = self._bench
            bench.load(parameters)
            module, loss_of = bench.module.train(), self._loss
            take = _Batch(data, bench, self._target_dtype(data), size)
            noise = _generator(seed / "augment") if self.augment else None
            move = _optimizer(work.optimizer, bench)
            correct = _correction(rule, bench)
            total, rates = torch.zeros((), dtype=torch.float64), []
            for epoch, index in batches(len(data), work, seed):
                lr = learning_rate(work, round=round, epoch=epoch)
                x, target = take(index)
                if self.augment is not None and noise is not None:
                    x = self.augment(x, noise)
                bench.gradient.zero_()
                loss = loss_of(module(self._formatted(x)), target)
                bench.backward(loss)
                if work.clip_norm:
                    norm = torch.linalg.vector_norm(bench.gradient)
                    bench.gradient.mul_((work.clip_norm / (norm + 1e-6)).clamp_(max=1.0))
                correct()
                move(lr)
                bench.push()
                total += loss.detach() / len(index) if self._summed else loss.detach()
                rates.append(lr)
            mean = total.item() / len(rates) if rates else float("nan")
            return Fit(bench.vector(), len(rates), sum(rates), len(data), mean)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Gradient of the mean loss over all rows, and that loss, in eval mode.

        Eval mode because only there is the loss a mean over rows: dropout would make it random, and
        batch statistics would make it depend on how the rows are cut. BatchNorm therefore
        uses its running statistics here. Chunks add up weighted by their rows.

        Raises:
            DataError: no rows, or labels outside the declared classes.
        """
        self.layout.check(parameters, what="parameters")
        rows = len(data)
        plan(rows, LocalWork())
        with _alone(Seed(0)):
            bench = self._bench
            bench.load(parameters)
            bench.gradient.zero_()
            total = 0.0
            for x, target in self._chunks(data, bench):
                share = (1.0 if self._summed else len(x)) / rows
                loss = self._loss(bench.module.eval()(self._formatted(x)), target) * share
                bench.backward(loss)
                total += loss.item()
            result = np.zeros(self.layout.size, self.layout.dtype)
            result[self.layout.trainable] = bench.gradient.numpy()
        return result, total

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """``loss``, and accuracy, confusion and (two classes) auc, or mse, mae and r2.

        Raises:
            DataError: labels outside the classes.
            LayoutError: another number of outputs than declared classes.
        """
        self.layout.check(parameters, what="parameters")
        rows = len(data)
        if rows == 0:
            return {"loss": Mean.of(0.0, 0.0)}
        outputs, total = [], 0.0
        with _alone(Seed(0)), torch.no_grad():
            bench = self._bench
            bench.load(parameters)
            for x, target in self._chunks(data, bench):
                output = bench.module.eval()(self._formatted(x))
                loss = self._loss(output, target).item()
                total += loss if self._summed else loss * len(x)
                outputs.append(output.to(torch.promote_types(output.dtype, torch.float32)).numpy())
        joined, truth = np.concatenate(outputs), np.asarray(data.targets)
        if self.task == "regression":
            found = regression_scores(truth, joined)
        else:
            found = classification_scores(truth, joined, self.classes, exact_auc=self.exact_auc)
        return {"loss": Mean.of(total / rows, rows), **found}

    @property
    def _loss(self) -> Loss:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def _summed(self) -> bool:
        return self.loss == "nll_sum"

    def _build(self, seed: Seed) -> nn.Module:
        """A fresh module on the CPU; the global generator is left as it was."""
        if isinstance(self.module, nn.Module):
            return on_cpu(copy.deepcopy(self.module))
        with _alone(seed):
            return on_cpu(self.module(**self.arguments))

    def _formatted(self, x: Tensor) -> Tensor:
        if self.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def _target_dtype(self, data: Any) -> torch.dtype | None:
        """Class indices as int64, real targets in the model's dtype (None)."""
        if self.task == "regression" or self.loss == "bce":
            return None
        if self.classes is not None:
            check_labels(np.asarray(data.targets), self.classes)
        return torch.int64

    def _chunks(self, data: Any, bench: Bench) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(self.eval_batch_size, len(data))
        take = _Batch(data, bench, self._target_dtype(data), size)
        for start in range(0, len(data), size):
            yield take(np.arange(start, min(start + size, len(data))))


class _Batch:
    """Gathers batches of one client's rows into buffers that are used again.

    Gathering also puts them at aligned addresses: matrix kernels may round otherwise elsewhere, and
    shared memory of a worker process lies elsewhere.
    """

    def __init__(self, data: Any, bench: Bench, targets: torch.dtype | None, size: int) -> None:
        self.x = tensor_over(data.features)
        self.y = tensor_over(data.targets).to(targets or bench.compute)
        if len(self.x) != len(self.y):
            raise DataError(
                f"{len(self.x)} rows of features and {len(self.y)} targets",
                remedy="check how this client's data were read",
            )
        self.dtype = bench.compute if self.x.is_floating_point() else self.x.dtype
        self._x = torch.empty((size, *self.x.shape[1:]), dtype=self.x.dtype)
        self._y = torch.empty((size, *self.y.shape[1:]), dtype=self.y.dtype)

    def __call__(self, index: Array) -> tuple[Tensor, Tensor]:
        """Features and targets of the rows ``index``, ``(<= size,)`` int64."""
        n, rows = len(index), torch.from_numpy(index)
        x = torch.index_select(self.x, 0, rows, out=self._x[:n])
        y = torch.index_select(self.y, 0, rows, out=self._y[:n])
        return x.to(self.dtype), y


def _generator(seed: Seed) -> torch.Generator:
    return torch.Generator().manual_seed(seed.integer())


@contextmanager
def _alone(seed: Seed) -> Iterator[None]:
    """One thread and the default generator at ``seed``; both are put back afterwards."""
    with _LOCK:
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        torch.default_generator.manual_seed(seed.integer())
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)
            torch.set_rng_state(state)


def _correction(rule: LocalRule, bench: Bench) -> Callable[[], None]:
    """The local rule on the region that is both shared and trained."""
    if rule.trivial:
        return lambda: None
    part = bench.layout.shared_trainable
    own = slice(0, part.stop - part.start)
    anchor = None if rule.anchor is None else tensor_over(rule.anchor[part]).to(bench.dtype)
    shift = None if rule.shift is None else tensor_over(rule.shift[part]).to(bench.dtype)
    gradient, weights = bench.gradient[own], bench.weights[own]
    return lambda: rule.correct(gradient, weights, anchor, shift)


def _optimizer(optimizer: Optimizer, bench: Bench) -> Callable[[float], None]:
    """``move(lr)``: one step of the flat weights along the flat gradient."""
    if optimizer.name not in OPTIMIZERS:
        raise JobError(
            f"unknown local optimiser {optimizer.name!r}",
            remedy=suggest(optimizer.name, OPTIMIZERS),
        )
    if optimizer.name == "sgd":
        return _sgd(optimizer, bench.weights, bench.gradient)
    kind, names = OPTIMIZERS[optimizer.name]
    flat = nn.Parameter(bench.weights)
    flat.grad = bench.gradient
    own = {name: getattr(optimizer, name) for name in names}
    inner = getattr(torch.optim, kind)([flat], lr=optimizer.lr, **own)

    def move(lr: float) -> None:
        inner.param_groups[0]["lr"] = lr
        inner.step()

    return move


def _sgd(o: Optimizer, weights: Tensor, gradient: Tensor) -> Callable[[float], None]:
    """SGD as torch.optim writes it, without its overhead per step and per client."""
    velocity: Tensor | None = None

    def move(lr: float) -> None:
        nonlocal velocity
        if o.weight_decay:
            gradient.add_(weights, alpha=o.weight_decay)
        direction = gradient
        if o.momentum:
            velocity = (
                gradient.clone() if velocity is None else velocity.mul_(o.momentum).add_(gradient)
            )
            direction = gradient.add_(velocity, alpha=o.momentum) if o.nesterov else velocity
        weights.add_(direction, alpha=-lr)

    return move
