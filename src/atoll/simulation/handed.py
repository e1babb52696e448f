"""Rows that were handed over, held against the model before any training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import Fault
from atoll.core.seeds import Seed
from atoll.data.population import LazyClients
from atoll.job.islands import Islands
from atoll.models.function import FunctionTrainer
from atoll.runtime.threads import Threads

__all__ = ["unfit_rows"]

_SHOWN = 5

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
    return [*_no_rows(islands)][:_SHOWN] or [*_odd_rows(trainer, islands)][:_SHOWN]


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
