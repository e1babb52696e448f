"""Rows that were handed over, held against the model before any training."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import DataError, Fault
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data.population import LazyClients
from atoll.job.islands import Islands, first_of
from atoll.models.function import FunctionTrainer
from atoll.models.scores import check_labels
from atoll.runtime.client import Parts
from atoll.runtime.threads import Threads

__all__ = ["unfit_rows", "unfit_start"]

_LOOKED_AT = 2000
"""Targets of so many clients are looked at; a mistake in numbering is soon seen."""

_READ = 1 << 26
"""Bytes in which gaps are looked for before training."""

Row = tuple[int, ...]
"""The shape of one row's features."""


def unfit_rows(trainer: Trainer, islands: Islands) -> list[Fault]:
    """Data that our model cannot read; a fit function of the user's own may take what it likes.

    Args:
        trainer: of the run.
        islands: its data; of clients that are made on demand the first and the last are looked at.
    """
    if not type(trainer).__module__.startswith("atoll.models.") or isinstance(
        trainer, FunctionTrainer
    ):
        return []
    islands = replace(islands, train=_probes(islands.train), held_out=_probes(islands.held_out))
    if faults := first_of([*_no_rows(islands)]):
        return faults
    for look in (_odd_rows, _odd_targets, _whole_numbers, _gaps):
        if faults := first_of([*look(trainer, islands)]):
            return faults
    return []


def unfit_start(parts: Parts) -> list[Fault]:
    """Entries whose initial values are not finite: no update of theirs would ever be.

    Raises:
        LayoutError: the trainer's initial vector is not of its layout.
    """
    start = parts.beginning()
    parts.trainer.layout.check(start, what="initial parameters")
    if np.isfinite(start).all():
        return []
    remedy = "mend it; a buffer of torch may be left out of what is saved, by persistent=False"
    return [
        Fault(f"entry {name!r}", "its initial values are not all finite", remedy)
        for name, values in parts.trainer.layout.views(start).items()
        if not np.isfinite(values).all()
    ]


def _probes(clients: Mapping[ClientId, Any]) -> Mapping[ClientId, Any]:
    """The clients, or of those that are made on demand a few."""
    if not isinstance(clients, LazyClients):
        return clients
    made = {}
    for i in sorted({0, len(clients) - 1}):
        with contextlib.suppress(Exception):  # told of whoever is invited, with its place
            made[clients.ids[i]] = clients.at(i)
    return made


def _named(islands: Islands) -> Iterator[tuple[str, Any]]:
    for what, given in (("client", islands.train), ("held-out rows of", islands.held_out)):
        for client, rows in given.items():
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
    """Rows of several shapes, those that the model cannot be applied to.

    Where all have the same shape the first round says so at once, and costs nobody anything.
    """
    shapes: dict[Row, tuple[str, Examples]] = {}
    held = [(p, rows) for p, rows in _named(islands) if isinstance(rows, Examples) and len(rows)]
    for place, rows in held:
        shapes.setdefault(rows.features.shape[1:], (place, rows))
    if len(shapes) < 2:
        return
    judged = {shape: _why_not(trainer, rows) for shape, (_, rows) in shapes.items()}
    fit = [shape for shape, why in judged.items() if not why]
    usual = (fit or list(shapes))[0]
    for place, rows in held:
        shape: Row = rows.features.shape[1:]
        if judged[shape]:
            beside = f", {shapes[usual][0]} has {_size(usual)}" if shape != usual else ""
            told = f"{_size(shape)} a row{beside}: {judged[shape]}"
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
        if targets.dtype.kind not in "biuf":
            told = f"targets of dtype {targets.dtype} are no numbers"
            yield Fault(place, told, "number the classes from 0: 0, 1, …")
        elif several and kind:
            told = f"targets of shape {targets.shape}, and the model has one a row"
            one = "one column" if kind == "linear" else "classes, such as targets.argmax(axis=1)"
            yield Fault(place, told, f"give {one}")
        elif not several and kind != "linear":
            try:
                check_labels(targets, 2 if kind == "logistic" else classes)
            except DataError as error:
                yield Fault(place, error.message, error.remedy)


def _whole_numbers(trainer: Trainer, islands: Islands) -> Iterator[Fault]:
    """Whole numbers, such as images in bytes, that the model reads as floats only; they stay what they are."""
    known: dict[Any, str] = {}
    for place, rows in itertools.islice(_named(islands), _LOOKED_AT):
        if not isinstance(rows, Examples) or not len(rows):
            continue
        dtype = np.asarray(rows.features).dtype
        if dtype.kind not in "biu":
            continue
        if dtype not in known:
            floats = Examples(rows.features[:1].astype(np.float32), rows.targets[:1])
            why = _why_not(trainer, rows)
            known[dtype] = "" if why and _why_not(trainer, floats) else why
        if known[dtype]:
            told = f"features of dtype {dtype}: {known[dtype]}"
            yield Fault(
                place, told, "give floats, such as features / 255, or take x.float() in forward"
            )


def _gaps(trainer: Trainer, islands: Islands) -> Iterator[Fault]:
    """Rows with missing or infinite values, if the model has no loss for them.

    Of a client they would cost its updates, round by round; of a test its figures. Large data are looked at
    for as long as that takes no time; what lies behind is told by the round that meets it.
    """
    left = _READ
    for place, rows in itertools.islice(_named(islands), _LOOKED_AT):
        if not isinstance(rows, Examples) or not len(rows):
            continue
        for what, values in (("features", rows.features), ("targets", rows.targets)):
            if np.asarray(values).dtype.kind != "f":
                continue
            left -= values.nbytes
            if left < 0:
                return
            if _finite(values):
                continue
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            if len(bad) and not _has_loss(trainer, rows, int(bad[0])):
                count = f"{len(bad)} of {len(rows)} rows hold" if len(bad) > 1 else "a row holds"
                told = f"{count} missing or infinite values, {what}[{bad[0]}] to begin with"
                yield Fault(place, told, "fill them, or leave these rows out")
                break


def _finite(values: Array) -> bool:
    """Whether all values are surely finite, in one pass; a sum that overflows says no more."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum()))


def _has_loss(trainer: Trainer, rows: Examples, row: int) -> bool:
    """Whether the initial model has a finite loss on that row."""
    one = Examples(rows.features[row : row + 1], rows.targets[row : row + 1])
    with Threads().one(), np.errstate(all="ignore"):
        try:
            loss: Any = trainer.evaluate(trainer.initial(Seed(0)), one)["loss"]
        except Exception:  # of whatever library the model is made with
            return False
        return math.isfinite(getattr(loss, "value", loss))


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
