"""A user's own ``fit`` as a trainer: any library, any loop, through named NumPy arrays.

::

    def fit(parameters, data, context):
        slope = ...                                  # anything
        return {"w": parameters["w"] - context.lr * slope}, {"loss": 0.3}

Local rules (FedProx, SCAFFOLD, FedDyn) do not reach into foreign code; a job that needs them is
refused, unless the function declares ``corrects`` and applies ``context.rule`` itself.

A user's function finds torch on one thread, and its default generator at a seed of this client in this round:
results depend neither on the executor nor on the machine's cores. The first to load torch is called twice.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import (
    ClientError,
    Fault,
    JobConflict,
    JobError,
    LayoutError,
    raise_faults,
    suggest,
)
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metric, Metrics
from atoll.core.seeds import Seed
from atoll.models.alone import alone
from atoll.models.batches import learning_rate, plan

__all__ = ["FitContext", "FunctionTrainer"]

_T = TypeVar("_T")
Named = Mapping[str, Array]
"""A model as named arrays."""


@dataclass(frozen=True, eq=False)
class FitContext:
    """What a user's ``fit`` is told besides parameters and data.

    Args:
        rng: this client's random stream in this round; use no other.
        work: the local work asked for (epochs, steps, batch size, optimiser).
        lr: the learning rate of this round.
        rule: the local rule; trivial unless the trainer was made with ``corrects=True``.
        round: version of the model training starts from.
        layout: where each entry lies in the flat vectors of ``rule``.
    """

    rng: np.random.Generator
    work: LocalWork
    lr: float
    rule: LocalRule
    round: int
    layout: Layout

    @property
    def epochs(self) -> float:
        """Passes over the rows asked for."""
        return self.work.epochs


UserFit = Callable[[dict[str, Array], Any, FitContext], tuple[Named, Mapping[str, float] | None]]
UserEvaluate = Callable[[dict[str, Array], Any], Mapping[str, Any]]
UserGradient = Callable[[dict[str, Array], Any], tuple[Named, float]]


class FunctionTrainer:
    """Three plain functions behind the :class:`~atoll.core.contracts.Trainer` contract.

    Args:
        initial: initial named arrays, or a function from a random generator to them. Floating
            arrays are trained; whole-number ones are averaged and rounded.
        fit: ``fit(parameters, data, context) -> (parameters, metrics or None)``. Of the metrics,
            ``loss`` is the mean training loss and ``steps`` the optimiser steps taken (else those
            of the local work); it gets copies and may change them.
        evaluate: ``evaluate(parameters, data) -> {"loss": ..., ...}``; numbers are means over the
            rows and merge weighted by their count, :class:`~atoll.core.metrics.Metric` as such.
        gradient: ``gradient(parameters, data) -> (gradient of the mean loss, loss)``, for
            algorithms that ask for gradients (FedSGD, SCAFFOLD option I).
        corrects: whether ``fit`` applies ``context.rule`` itself.
        personal: patterns of entries that stay at the client.

    Raises:
        JobError: with every one of them that is of another kind.

    >>> from atoll.core.contracts import Examples
    >>> def fit(parameters, data, context):
    ...     return {"mean": data.targets.mean(keepdims=True)}, None
    >>> def evaluate(parameters, data):
    ...     return {"loss": float(np.mean((data.targets - parameters["mean"]) ** 2))}
    >>> trainer = FunctionTrainer({"mean": np.zeros(1)}, fit, evaluate)
    >>> rows = Examples(np.zeros((2, 1)), np.array([1.0, 3.0]))
    >>> trainer.evaluate(np.array([2.0]), rows)["loss"].value
    1.0
    """

    def __init__(
        self,
        initial: Named | Callable[[np.random.Generator], Named],
        fit: UserFit,
        evaluate: UserEvaluate,
        *,
        gradient: UserGradient | None = None,
        corrects: bool = False,
        personal: Sequence[str] = (),
    ) -> None:
        self._initial = initial
        self._fit = fit
        self._evaluate = evaluate
        self._gradient = gradient
        self._corrects = corrects
        self._personal = personal if isinstance(personal, str) else tuple(personal)
        if wrong := [*self._odd()]:
            raise_faults(JobError, "options of FunctionTrainer", wrong)

    def _odd(self) -> Iterator[Fault]:
        own = self.options
        for name, fits, remedy in (
            ("initial", isinstance(own["initial"], Mapping), "give arrays by name"),
            ("fit", False, "give a function"),
            ("evaluate", False, "give a function"),
            ("gradient", own["gradient"] is None, "give a function"),
        ):
            if not (fits or callable(own[name])):
                yield Fault(f"model.{name}", f"{own[name]!r:.60} does not belong there", remedy)
        if not isinstance(own["corrects"], bool | np.bool_):
            told = f"{own['corrects']!r:.60} is not true or false"
            yield Fault("model.corrects", told, "give True or False")

    @property
    def corrects(self) -> bool:
        """Whether the user's function applies local rules."""
        return self._corrects

    @property
    def options(self) -> dict[str, Any]:
        """What it was made with, for a job's definition."""
        return {
            "initial": self._initial,
            "fit": self._fit,
            "evaluate": self._evaluate,
            "gradient": self._gradient,
            "corrects": self._corrects,
            "personal": self._personal,
        }

    @cached_property
    def layout(self) -> Layout:
        """One entry per array; float64 if one of them is, or holds what float32 cannot."""
        arrays = self._start(Seed(0))
        entries = [
            Entry(name, a.shape, a.dtype.name, trainable=a.dtype.kind == "f")
            for name, a in arrays.items()
        ]
        narrow = Layout.of(entries, personal=self._personal)
        if not any(a.dtype == np.float64 for a in arrays.values()):
            try:
                narrow.pack(arrays)
            except LayoutError:
                pass
            else:
                return narrow
        return Layout.of(entries, personal=self._personal, dtype="float64")

    def initial(self, seed: Seed) -> Array:
        """The user's initial arrays as one vector."""
        return self.layout.pack(self._start(seed))

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
        """Call the user's function.

        Raises:
            JobConflict: a local rule, and the function does not apply rules.
            ClientError: it returned something else than a pair of mappings.
            LayoutError: its arrays have other names or shapes; all of them are listed.
        """
        if not rule.trivial and not self.corrects:
            raise JobConflict(
                "the algorithm corrects local gradients, which a fit function does not do",
                remedy="choose FedAvg, or apply context.rule and set corrects=True",
            )
        lr = learning_rate(work, round=round, epoch=0)

        def call() -> Any:
            context = FitContext(seed.generator(), work, lr, rule, round, self.layout)
            return self._fit(self._named(parameters), _own(data), context)

        returned = _torch_alone(seed / "torch", call)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise ClientError(
                f"fit returned {type(returned).__name__}, not (parameters, metrics or None)",
                remedy="end it with: return parameters, {'loss': loss}",
            )
        found = dict(returned[1] or {})
        steps = _steps(found["steps"]) if "steps" in found else plan(len(data), work).steps
        loss = float(found.get("loss", float("nan")))
        return Fit(self._packed(returned[0], "fit"), steps, steps * lr, len(data), loss)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Call the user's gradient function; 0 where an entry is not trained.

        Raises:
            JobConflict: none was given.
            LayoutError: its arrays have other names or shapes.
        """
        ask = self._gradient
        if ask is None:
            raise JobConflict(
                "the algorithm asks for gradients and this trainer was made without any",
                remedy="pass gradient=, or choose an algorithm that trains locally, such as FedAvg",
            )
        slopes, loss = _torch_alone(Seed(0), lambda: ask(self._named(parameters), _own(data)))
        fixed = {e.name: np.zeros(e.shape) for e in self.layout.entries if not e.trainable}
        return self._packed({**fixed, **slopes}, "gradient", exact=False), float(loss)

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """Call the user's scoring function.

        Raises:
            ClientError: it returned no ``loss``, or something that is neither number nor metric.
        """
        found = _torch_alone(Seed(0), lambda: self._evaluate(self._named(parameters), _own(data)))
        if not isinstance(found, Mapping) or "loss" not in found:
            names = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise ClientError(
                f"evaluate returned {names}, without 'loss'", remedy="return {'loss': ..., ...}"
            )
        return {name: _metric(name, value, len(data)) for name, value in found.items()}

    def _start(self, seed: Seed) -> dict[str, Array]:
        given = self._initial
        if callable(given):
            make = given
            raw = _torch_alone(seed / "torch", lambda: make(seed.generator()))
        else:
            raw = given
        arrays = {name: np.asarray(value) for name, value in raw.items()}
        raise_faults(
            LayoutError,
            "initial parameters",
            [
                Fault(name, f"dtype {a.dtype} is no number", "use float, int or bool arrays")
                for name, a in arrays.items()
                if a.dtype.kind not in "fiub"
            ],
        )
        return arrays

    def _named(self, parameters: Array) -> dict[str, Array]:
        """Copies, which the user's function may change."""
        return self.layout.unpack(parameters)

    def _packed(self, named: Named, source: str, *, exact: bool = True) -> Array:
        expected = {e.name: e for e in self.layout.entries}
        if not isinstance(named, Mapping):
            raise ClientError(
                f"{source} returned {type(named).__name__} where arrays by name belong"
            )
        faults = [
            Fault(name, "not an entry of the model", suggest(name, expected))
            for name in named
            if name not in expected
        ]
        for name, e in expected.items():
            if name not in named:
                faults.append(Fault(name, "missing", "return every entry, changed or not"))
            elif np.shape(named[name]) != e.shape:
                faults.append(Fault(name, f"shape {np.shape(named[name])}, not {e.shape}"))
            elif exact and not e.trainable and not _whole(named[name]):
                told = f"holds fractions, and began as {e.dtype}: it is averaged, and not trained"
                faults.append(Fault(name, told, "let its initial values be floats"))
        raise_faults(LayoutError, f"arrays returned by {source}", faults)
        # Results of float64 arithmetic on a float32 model are rounded once, not refused.
        own = {
            n: np.asarray(a, self.layout.dtype if not exact or expected[n].trainable else None)
            for n, a in named.items()
        }
        return self.layout.pack(own)


def _torch_alone(seed: Seed, call: Callable[[], _T]) -> _T:
    """Call it with torch, if it uses torch, as that is in every worker: one thread, a stream of its own.

    Both are put back. Else its sums would depend on the machine's cores, and what it draws on who came before
    or works in another thread.
    Who loads torch on the way has used it as it was then: that is done again, as what a client does is pure.
    """
    if not _torch_is_here():
        made = call()
        if not _torch_is_here():
            return made
    with alone(seed):
        return call()


def _whole(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind != "f" or bool((array == np.rint(array)).all())


def _torch_is_here() -> bool:
    return hasattr(sys.modules.get("torch"), "default_generator")  # without it half imported


def _steps(told: Any) -> int:
    try:
        number = float(told)
    except (TypeError, ValueError):
        number = math.nan
    if not (number >= 0 and number.is_integer()):
        remedy = "return how many steps the optimiser took, or leave it out"
        raise ClientError(f"fit took {told!r:.60} steps", remedy=remedy)
    return int(number)


def _metric(name: str, value: Any, rows: int) -> Metric:
    if hasattr(value, "merge") and hasattr(value, "value"):
        found: Metric = value
        return found
    try:
        return Mean.of(float(value), rows)
    except (TypeError, ValueError) as why:
        raise ClientError(
            f"metric {name!r} is {type(value).__name__}, neither a number nor a metric"
        ) from why


def _own(data: Any) -> Any:
    """A client's rows for one call: what a function changes in place is gone with it.

    Else the next round would begin at changed rows, wherever a worker process has kept them.
    """
    if not isinstance(data, Examples):
        return data
    rows = (data.features, data.targets)
    features, targets = (r.copy("K") if isinstance(r, np.ndarray) else r for r in rows)
    return replace(data, features=features, targets=targets)
