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
* NumPy has no bfloat16 or float8: such an entry is ``float32`` in the layout. Any float64 entry makes
  the vector float64. In the module, entries keep their own dtypes.
* Work runs on one thread and under a random state of its own, so results do not depend on the
  executor; the global thread count and generator are as before afterwards.
* What a module keeps in attributes beside its state dict (unsaved buffers, counters, hidden states,
  generators of torch) starts at every client as it was built. What it keeps in lists, dictionaries or
  closures, and numbers that it draws from NumPy or Python, depend on which clients came before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np

from atoll.core.contracts import Controlled, Lane, Together
from atoll.core.errors import JobConflict, MissingExtra
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metrics
from atoll.core.seeds import Seed
from atoll.models.batches import plan
from atoll.models.linear import LinearTrainer
from atoll.models.scores import check_labels, classification_scores, regression_scores
from atoll.models.undisturbed import undisturbed

try:
    with undisturbed():
        import torch
    from torch import Tensor, nn

    from atoll.models.torch.algebra import LOSSES as SUMMABLE
    from atoll.models.torch.algebra import dense, train_controlled, train_together
    from atoll.models.torch.batch import Batch
    from atoll.models.torch.chain import Chain, Scratch, Setting, chain_of, group_size, pays
    from atoll.models.torch.fit import OPTIMIZERS, Steps, Walk, alone, generator, recurs
    from atoll.models.torch.flat import (
        Bench,
        layout_of,
        on_cpu,
        pack_module,
        starts_with_group_norm,
        unpack_module,
    )
    from atoll.models.torch.losses import LOSSES, Loss
    from atoll.models.torch.options import built, check_options, settled_task
    from atoll.models.torch.regression import regression_of
    from atoll.models.torch.sums import add_up, clients_to_a_sum
except ImportError as missing:  # pragma: no cover - depends on the installation
    raise MissingExtra(
        "torch is not installed", remedy="pip install 'atoll[torch]', or use a linear model"
    ) from missing

__all__ = ["LOSSES", "OPTIMIZERS", "TorchTrainer"]

Path = Literal["auto", "general", "compiled", "algebra"]
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(features of a batch, random generator) -> features to train on."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_either_order(
    method: Callable[Concatenate[TorchTrainer, _P], _R],
) -> Callable[Concatenate[TorchTrainer, _P], _R]:
    """Start again in NCHW where a module's own ``view`` needs it; which it does for every client."""

    @wraps(method)
    def run(self: TorchTrainer, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error) or not self._leaves_nhwc():
                raise
        return method(self, *args, **kwargs)

    return run


_BUILT = ("_bench", "_latest", "_steps", "_chain", "_scratch")
"""What a trainer builds when it is first needed, in every process for itself."""


@dataclass(frozen=True, eq=False)
class TorchTrainer:
    """An ``nn.Module`` behind the :class:`~atoll.core.contracts.Trainer` contract.

    Args:
        module: a module (copied; its weights are the initial ones), or a class or function that
            builds one. For worker processes the latter must be importable by name.
        arguments: keyword arguments of the building function.
        loss: a name of :data:`LOSSES`, or ``(output, target) -> scalar`` averaging over the batch; by
            default cross entropy, and the squared error where the task is regression.
        task: ``classification`` or ``regression``; by default regression for ``mse`` and ``l1``.
        classes: number of classes, checked against labels and outputs; else taken from the outputs.
        personal: shell patterns of entries that stay at the client, such as ``head.*``.
        augment: applied to each training batch.
        exact_auc: see :func:`atoll.models.scores.classification_scores`.
        eval_batch_size: rows at a time in :meth:`evaluate` and :meth:`gradient`.
        channels_last: keep image batches and convolution kernels in NHWC order: equal up to
            rounding, and faster; by default wherever the module has two-dimensional convolutions and
            no ``view`` that cannot do with it.
        path: how local training is carried out: ``general`` under autograd; ``compiled`` by replaying a
            recorded step (:mod:`atoll.models.torch.tape`) where it can be recorded; ``algebra`` for whole
            groups (:mod:`atoll.models.torch.algebra`) where that is possible; ``auto`` chooses from shapes.
        precision: ``bfloat16`` computes the forward and backward pass in it (the weights stay as they
            are): faster where the processor has instructions for it, and less exact.

    >>> trainer = TorchTrainer(nn.Linear, {"in_features": 3, "out_features": 2})
    >>> [(e.name, e.shape) for e in trainer.layout.entries]
    [('weight', (2, 3)), ('bias', (2,))]
    """

    module: nn.Module | Callable[..., nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    loss: str | Loss = ""
    task: Literal["classification", "regression"] | None = None
    classes: int | None = None
    personal: Sequence[str] = ()
    augment: Augment | None = None
    exact_auc: bool = True
    eval_batch_size: int = 1024
    channels_last: bool | None = None
    path: Path = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Copy a given module and settle the task.

        Raises:
            JobError: with every option that is of another kind or out of range.
            JobConflict: a loss that does not fit the task.
        """
        check_options(self)
        if isinstance(self.module, nn.Module):
            object.__setattr__(self, "module", copy.deepcopy(self.module))
        loss, task = settled_task(self.loss, self.task)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "task", task)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: the recipe, not the built buffers."""
        return {k: v for k, v in self.__dict__.items() if k not in _BUILT}

    @property
    def corrects(self) -> bool:
        """True: local rules are applied."""
        return True

    @property
    def optimizers(self) -> Collection[str]:
        """Names of the local optimisers that there are."""
        return OPTIMIZERS

    @cached_property
    def layout(self) -> Layout:
        """Layout of the module's state dict: parameters and persistent buffers."""
        module = self._build(Seed(0))
        return layout_of(module, self.personal)

    @cached_property
    def _bench(self) -> Bench:
        module = self._build(Seed(0))
        last = self.channels_last
        if last is None:
            last = any(isinstance(part, nn.Conv2d) for part in module.modules())
        return Bench(module, self.layout, last and not starts_with_group_norm(module))

    def _leaves_nhwc(self) -> bool:
        """Go over to NCHW for good; False where NHWC was asked for or is not in use."""
        if self.channels_last is not None or not self._bench.channels_last:
            return False
        self.__dict__["_bench"] = Bench(self._build(Seed(0)), self.layout, False)
        self.__dict__.pop("_steps", None)
        return True

    @cached_property
    def _steps(self) -> Steps:
        compiled = self.path != "general"
        start = pack_module(self._build(Seed(0)), self.layout)
        return Steps(
            self._bench,
            self._forward,
            self._loss,
            start,
            compiled=compiled,
            summed=self._summed,
        )

    @cached_property
    def _chain(self) -> Chain | None:
        """The dense layers that groups can be trained on; None where there is more to the module."""
        if self.path not in ("auto", "algebra") or self.augment is not None:
            return None
        if self.loss not in SUMMABLE or self.precision != "float32":
            return None
        return chain_of(self._build(Seed(0)), self.layout)

    @cached_property
    def _regression(self) -> LinearTrainer | None:
        return regression_of(self._chain, self.layout, self.loss) if self.path == "auto" else None

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch()

    @cached_property
    def _latest(self) -> dict[Seed, Array]:
        """The last initial vector: personal parts ask for the same one at every new client."""
        return {}

    def initial(self, seed: Seed) -> Array:
        """A given module's own weights, or those of a module built under ``seed``."""
        if (vector := self._latest.get(seed)) is None:
            vector = pack_module(self._build(seed), self.layout)
            self._latest.clear()
            self._latest[seed] = vector
        return vector.copy()

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

    @_in_either_order
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
        with alone(seed), torch.no_grad():
            bench = self._bench
            bench.load(parameters)
            done = self._walk(Lane(data, work, rule, seed, 1.0), round)
            steps = len(done.rates)
            mean = done.losses / steps if steps else float("nan")
            return Fit(bench.vector(), steps, sum(done.rates), len(data), mean)

    def _walk(self, lane: Lane, round: int) -> Walk:
        """Train what the bench holds."""
        data: Any = lane.data
        self._bench.train()
        size = plan(len(data), lane.work).size
        batch = Batch(data, self._bench, self._target_dtype(data), size)
        own = lane.work, lane.rule, lane.seed
        return self._steps.walk(batch, *own, round=round, augment=self._augmented(lane.seed))

    def together(self, work: LocalWork, rows: int, *, clients: int | None = None) -> int:
        """How many clients :meth:`fit_together` takes at once; 1 where that does not pay.

        Depends on shapes and options only, so that the same run does the same everywhere.
        """
        if (size := max(self._stacked(work, rows), self._at_once(work, rows))) > 1:
            return size
        return 1 if self.path == "general" else clients_to_a_sum(self.layout, work, rows, clients)

    def _stacked(self, work: LocalWork, rows: int) -> int:
        """How many clients a small regression takes side by side; 1 where it is none."""
        return 1 if self._regression is None else self._regression.together(work, rows)

    def _at_once(self, work: LocalWork, rows: int) -> int:
        """How many clients become a few large products; 1 where that does not pay."""
        chain, o = self._chain, work.optimizer
        if chain is None or o.name != "sgd" or o.momentum or work.clip_norm or rows <= 0:
            return 1
        if self.path == "auto" and not pays(chain, work, rows):
            return 1
        size = group_size(chain, rows, np.dtype(self.layout.dtype).itemsize)
        return max(size, 2) if self.path == "algebra" else size

    @_in_either_order
    def fit_together(self, parameters: Array, lanes: Sequence[Lane], *, round: int) -> Together:
        """Train every lane and add up the changes, in the way that :meth:`together` counts on.

        See :mod:`atoll.models.torch.algebra` and :mod:`atoll.models.torch.sums`.

        Raises:
            JobConflict: this cannot be done for this group.
        """
        rows = max([len(lane.data) for lane in lanes])
        if self._regression is not None and self._stacked(lanes[0].work, rows) > 1:
            return self._regression.fit_together(parameters, lanes, round=round)
        self.layout.check(parameters, what="parameters")
        if not self._algebraic(lanes):
            return add_up(self._bench, parameters, lanes, partial(self._walk, round=round))
        setting = self._setting(parameters, lanes)
        with alone(Seed(0)):
            return train_together(setting, parameters, lanes, round)

    def fit_controlled(
        self, parameters: Array, lanes: Sequence[Lane], plus: Array, *, round: int
    ) -> Controlled:
        """Train every lane under control variates kept in terms of its rows.

        Raises:
            JobConflict: this cannot be done for this group.
        """
        if not self._algebraic(lanes):
            raise JobConflict("large products do not pay for these clients")
        setting = self._setting(parameters, lanes)
        with alone(Seed(0)):
            return train_controlled(setting, parameters, lanes, plus, round)

    def dense(self, own: Mapping[str, Array], data: Any) -> Array:
        """The vector that a compact mean gradient stands for; see :meth:`fit_controlled`.

        Raises:
            JobConflict: this trainer keeps no such form.
        """
        if self._chain is None:
            raise JobConflict("this module is not a chain of dense layers")
        return dense(self._chain, self.layout, own, np.asarray(data.features))

    def _algebraic(self, lanes: Sequence[Lane]) -> bool:
        return self._at_once(lanes[0].work, max(len(lane.data) for lane in lanes)) > 1

    def _setting(self, parameters: Array, lanes: Sequence[Lane]) -> Setting:
        """What a group's training needs to know of this trainer."""
        self.layout.check(parameters, what="parameters")
        if self._chain is None:
            raise JobConflict("this module is not a chain of dense layers")
        real = getattr(torch, self.layout.dtype)
        targets = [self._target_dtype(lane.data) or real for lane in lanes]  # all are checked
        return Setting(self._chain, self.layout, str(self.loss), targets[0], self._scratch)

    def explain(self, work: LocalWork, data: Any, *, sums: bool = True) -> str:
        """Which path training takes on rows like these, and why not a faster one.

        Args:
            work: the local work.
            data: one client's rows.
            sums: whether the algorithm wants no more than sums over a group.
        """
        if sums and (stacked := self._stacked(work, len(data))) > 1:
            return f"stacked, {stacked} clients at once"
        group = self._at_once(work, len(data)) if sums else 1
        if group > 1:
            return f"algebra, {group} clients at once"
        if self.path == "general":
            return "general"
        if not recurs(size := plan(len(data), work).size, work):
            return f"general: batches of {size} rows, of {work.batch_size} asked for, do not recur"
        short = replace(work, epochs=1.0, steps=1)
        start = self.initial(Seed(0))
        self.fit(start, data, work=short, rule=LocalRule(), seed=Seed(0), round=0)
        return f"general: {self._steps.reason}" if self._steps.reason else "compiled"

    @_in_either_order
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
        with alone(Seed(0)):
            bench = self._bench
            bench.load(parameters)
            bench.gradient.zero_()
            total = 0.0
            bench.module.eval()
            for x, target in self._chunks(data, bench):
                share = (1.0 if self._summed else len(x)) / rows
                x = bench.formatted(x)
                loss = self._forward(bench.module, self._loss, x, target) * share
                bench.backward(loss)
                total += loss.item()
            return bench.slope(), total

    @_in_either_order
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
        with alone(Seed(0)), torch.no_grad():
            bench = self._bench
            bench.load(parameters)
            for x, target in self._chunks(data, bench):
                output = self._outputs(bench.module.eval(), bench.formatted(x))
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
        with alone(seed):
            return on_cpu(built(self.module, self.arguments))

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.precision == "float32":
            output: Tensor = module(x)
            return output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(x)
        return output.to(torch.float32)

    def _forward(self, module: nn.Module, loss: Loss, x: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, in the module's present mode."""
        return loss(self._outputs(module, x), target)

    def _augmented(self, seed: Seed) -> Callable[[Tensor], Tensor] | None:
        augment = self.augment
        if augment is None:
            return None
        noise = generator(seed / "augment")
        return lambda x: augment(x, noise)

    def _target_dtype(self, data: Any) -> torch.dtype | None:
        """Class indices as int64, real targets in the model's dtype (None)."""
        if self.task == "regression" or self.loss == "bce":
            return None
        if self.classes is not None:
            check_labels(np.asarray(data.targets), self.classes)
        return torch.int64

    def _chunks(self, data: Any, bench: Bench) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(self.eval_batch_size, len(data))
        take = Batch(data, bench, self._target_dtype(data), size).take
        for start in range(0, len(data), size):
            yield take(np.arange(start, min(start + size, len(data))))
