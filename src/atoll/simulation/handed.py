"""Rows that were handed over, held against the model before any training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import DataError, Fault
from atoll.core.seeds import Seed
from atoll.data.population import LazyClients
from atoll.job.islands import Islands
from atoll.models.function import FunctionTrainer
from atoll.models.scores import check_labels
from atoll.runtime.threads import Threads

__all__ = ["unfit_rows"]

_SHOWN = 5
_LOOKED_AT = 2000
"""Targets of so many clients are looked at; a mistake in numbering is soon seen."""

Row = tuple[int, ...]
"""The shape of one row's features."""


def unfit_rows(trainer: Trainer, islands: Islands) -> list[Fault]:
    """Data that our model cannot read; a fit function of the user's own may take what it likes.

    Args:
        trainer: of the run.
        islands: its data; clients that are made on demand are not looked at.
    """
    if not type(trainer).__module__.startswith("atoll.models.") or isinstance(
        trainer, FunctionTrainer
    ):
        return []
    for look in (_odd_rows, _odd_targets):
        if faults := [*_no_rows(islands)][:_SHOWN] or [*look(trainer, islands)][:_SHOWN]:
            return faults
    return []


def _named(islands: Islands) -> Iterator[tuple[str, Any]]:
    lazy = isinstance(islands.train, LazyClients)
    for what, given in (("client", islands.train), ("held-out rows of", islands.held_out)):
        for client, rows in () if lazy else given.items():
            yield f"{what} {client!r}", rows
    if islands.central is not None:
        yield "central", islands.central


def _no_rows(islands: Islands) -> Iterator[Fault]:
    remedy = "give atoll.Examples(features, targets), arrays with a row for each example"
    for place, rows in _named(islands):
        if not (hasattr(rows, "features") and hasattr(rows, "targets")):
            told = f"a {type(rows).__name__} holds no features and targets by name"
            yield Fault(place, told, remedy)


def _odd_rows(trainer: Trainer, islands: Islands) -> Iterator[Fault]:
    """Rows of another shape than the first client's, if the model cannot be applied to them."""
    first = ""
    usual: Row = ()
    judged: dict[Row, str] = {}
    for place, rows in _named(islands):
        if not isinstance(rows, Examples) or not len(rows):
            continue
        shape: Row = rows.features.shape[1:]
        if not first:
            first, usual, judged = place, shape, {shape: ""}
        if shape not in judged:
            judged[shape] = _why_not(trainer, rows)
        if judged[shape]:
            told = f"{_size(shape)} a row, {first} has {_size(usual)}: {judged[shape]}"
            yield Fault(place, told, "give all clients the same columns, in the same order")


def _odd_targets(trainer: Trainer, islands: Islands) -> Iterator[Fault]:
    """Targets that are no classes of the model; a part of the clients would fail, or learn something else."""
    made: Any = trainer
    kind, classes = getattr(made, "kind", ""), int(getattr(made, "classes", None) or 0)
    if not kind:  # of torch, where a loss of one's own, or several targets a row, may mean anything
        named = getattr(made, "task", "") == "classification" and hasattr(made, "loss")
        if not named or not classes or not isinstance(made.loss, str):
            return
    for place, rows in itertools.islice(_named(islands), _LOOKED_AT):
        if not isinstance(rows, Examples) or not len(rows):
            continue
        targets, several = np.asarray(rows.targets), math.prod(np.shape(rows.targets)[1:]) > 1
        if several and kind:
            told = f"targets of shape {targets.shape}, and the model has one a row"
            one = (
                "numbers of classes, such as targets.argmax(axis=1)"
                if kind != "linear"
                else "one column"
            )
            yield Fault(place, told, f"give {one}")
        elif not several and kind != "linear":
            try:
                check_labels(targets, 2 if kind == "logistic" else classes)
            except DataError as error:
                yield Fault(place, error.message, error.remedy)


def _size(shape: Row) -> str:
    return f"{' x '.join(map(str, shape)) or 'one'} values"


def _why_not(trainer: Trainer, rows: Examples) -> str:
    """Why the initial model cannot be applied to a row of these; empty where it can."""
    one = Examples(rows.features[:1], rows.targets[:1])
    try:
        with Threads().one():
            trainer.evaluate(trainer.initial(Seed(0)), one)
    except Exception as error:  # of whatever library the model is made with
        return str(error).partition("\n")[0][:200] or type(error).__name__
    return ""
