"""From new rows to what a trained model takes, and from what it gives to words and units.

A job on tables trains on columns that were read, filled, scaled and encoded. Whoever applies its model
later has to do the very same to each row. A run's folder therefore holds the columns and the fitted
preprocessor beside the model, as ``inputs.json``; nothing in it is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import DataError, Fault, LayoutError, raise_faults, suggest
from atoll.core.layout import Array
from atoll.data.columns import Column, read_cells
from atoll.data.preprocessing import Preprocessor
from atoll.data.readers import as_table
from atoll.data.schema import unlabelled
from atoll.data.table import Table

__all__ = ["Inputs"]

_ROWS = "the new rows"
_FARTHEST = 1e300
"""Logits beyond it are as sure as it."""
_FLAGS = ("false", "true")
"""Classes of a target that was declared boolean."""
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""A whole number as a column of numbers gives it; a class ``007`` is a name."""


@dataclass(frozen=True)
class Inputs:
    """The columns a model was trained on, and what was done to them.

    Args:
        columns: one per feature, in declared order, with categories.
        preprocessor: as it was fitted over all sites.

    >>> from atoll.data.preprocessing import NumberRule
    >>> age = Column("age", "integer", range=(0, 120))
    >>> inputs = Inputs((age,), Preprocessor((NumberRule("age", 50.0, 40.0, 10.0),), "ill", ("no", "yes")))
    >>> inputs.features({"age": [60, None]}).tolist()
    [[2.0], [1.0]]
    >>> inputs.labels(np.array([[0.1, 2.0]])).tolist()
    ['yes']
    >>> inputs.targets({"age": [60, 20], "ill": ["no", "yes"]}).tolist()
    [0, 1]
    """

    columns: tuple[Column, ...]
    preprocessor: Preprocessor

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's inputs in order, such as ``age`` and ``cp=asymptomatic``."""
        return self.preprocessor.feature_names

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the model's outputs; empty for a regression."""
        return self.preprocessor.classes

    def features(self, rows: Table | Mapping[str, Any] | str | Path | Any) -> Array:
        """What the model takes of these rows, ``(n, len(names))``; columns it does not know are not read.

        Args:
            rows: a pandas frame, a mapping from column to values, a file that a job could read, or a
                :class:`~atoll.data.table.Table`. The target may be missing.

        Raises:
            DataError: with every fault: a column that is missing, a value out of the declared range, an
                unknown category.
        """
        table = as_table(rows)
        typed: dict[str, Array] = {}
        faults: list[Fault] = []
        for column in self.columns:
            place = f"column {column.name!r}"
            if column.name not in table.columns:
                faults.append(Fault(place, "is missing", suggest(column.name, table.names)))
                continue
            typed[column.name], found = read_cells(_ROWS, column, table[column.name])
            faults += [Fault(place, fault.message, fault.remedy) for fault in found]
        raise_faults(DataError, f"{_ROWS} do not match the columns that were trained on", faults)
        blocks = [rule.apply(typed[rule.name]) for rule in self.preprocessor.rules]
        made: Array = np.concatenate(blocks, axis=1).astype(self.preprocessor.dtype)
        return made

    def probabilities(self, outputs: Array) -> Array:
        """Chances of the classes, ``(n, classes)``, from a classifier's outputs.

        Args:
            outputs: logits, ``(n, classes)``, or of two classes ``(n,)`` or ``(n, 1)``.

        Raises:
            DataError: an output is no number.
            LayoutError: another number of outputs than classes, or a regression.
        """
        z = np.asarray(outputs, np.float64)
        if z.ndim == 1 or z.shape[1:] == (1,):
            z = np.stack([np.zeros(len(z)), z.reshape(-1)], axis=1)
        if z.ndim != 2 or z.shape[1] != len(self.classes):
            raise LayoutError(
                f"outputs of shape {np.shape(outputs)} for {len(self.classes)} classes",
                remedy="give the model's outputs, a row of logits for each row of features",
            )
        if np.isnan(z).any():
            row = int(np.flatnonzero(np.isnan(z).any(axis=1))[0]) + 1
            raise DataError(
                f"the outputs of row {row} are no numbers, so they tell no class",
                remedy="look for missing values among the features, and whether the training diverged",
            )
        z = np.clip(z, -_FARTHEST, _FARTHEST)
        raised = np.exp(z - z.max(axis=1, keepdims=True))
        chances: Array = raised / raised.sum(axis=1, keepdims=True)
        return chances

    def labels(self, outputs: Array) -> Array:
        """The likeliest classes as the target's column holds them, ``(n,)``; see :meth:`probabilities`.

        Whole numbers (int64) where all classes are such, booleans of a target that was declared one, else
        names: to be compared with the column of rows whose classes are known.
        """
        found: Array = self._values()[self.probabilities(outputs).argmax(axis=1)]
        return found

    def targets(self, rows: Table | Mapping[str, Any] | str | Path | Any) -> Array:
        """What the outputs for rows with known targets are held against, ``(n,)``, as in training.

        Numbers of classes (int64), or a regression's targets, scaled where they were.

        Args:
            rows: as for :meth:`features`, with the target.

        Raises:
            DataError: there is no target, a row has none, or it holds another class, or no number.
        """
        name, table = self.preprocessor.target, as_table(rows)
        place = f"column {name!r}"
        if name not in table.columns:
            fault = Fault(place, "is missing", suggest(name, table.names))
            raise DataError(f"{_ROWS} hold no target", faults=[fault])
        column = Column(name, role="target")
        if self.classes and self.classes != _FLAGS:
            column = replace(column, type="category", categories=self.classes)
        elif self.classes:
            column = replace(column, type="boolean")
        typed, faults = read_cells(_ROWS, column, table[name])
        if faults and len(self.classes) == 2:  # names that were given to false and true
            flags, others = read_cells(_ROWS, Column(name, "boolean"), table[name])
            typed, faults = (typed, faults) if others else (flags, [])
        faults = faults or unlabelled(_ROWS, column, typed)
        faults = [Fault(place, fault.message, fault.remedy) for fault in faults]
        raise_faults(DataError, f"{_ROWS} do not hold the target that was trained on", faults)
        return self.preprocessor.targets(typed)

    def _values(self) -> Array:
        """The classes as values of a column."""
        if self.classes == _FLAGS:
            return np.array([False, True])
        if all(_WHOLE.fullmatch(name) for name in self.classes):
            return np.array([int(name) for name in self.classes], np.int64)
        return np.array(self.classes)

    def restored(self, outputs: Array) -> Array:
        """A regression's outputs in the target's own unit, ``(n,)``."""
        found: Array = self.preprocessor.restore(np.asarray(outputs, np.float64).reshape(-1))
        return found

    def to_json(self) -> str:
        """As text; :meth:`from_json` gives equal inputs back, every float to the bit."""
        plain = {
            "columns": [asdict(column) for column in self.columns],
            "inputs": self.names,
            "preprocessor": json.loads(self.preprocessor.to_json()),
        }
        return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Inputs:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            stored = json.loads(text)
            columns = tuple(_column(column) for column in stored["columns"])
            made = Preprocessor.from_json(json.dumps(stored["preprocessor"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"no inputs of a model ({error})") from error
        return cls(columns, made)

    @classmethod
    def read(cls, path: str | Path) -> Inputs:
        """Those of a run's folder, or of its ``inputs.json``.

        Raises:
            DataError: there is no such file, or it holds something else.
        """
        path = Path(path)
        file = path / "inputs.json" if path.is_dir() else path
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(
                f"{file} cannot be read: {error.strerror}",
                remedy="name the folder of a run that was trained on tables, with "
                "preprocessing.mode = 'federated'; its manifest's notes say why there is none",
            ) from error


def _column(stored: Mapping[str, Any]) -> Column:
    lists = {name: tuple(stored[name]) for name in ("categories", "missing")}
    limits = stored["range"]
    return Column(**{**stored, **lists, "range": None if limits is None else tuple(limits)})
