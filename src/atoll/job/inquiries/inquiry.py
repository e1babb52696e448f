"""What may be asked of the rows of all sites, who may be asked, and what comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis
from atoll.core.errors import AtollError, DataError, JobError
from atoll.data.disclosure import Disclosure
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.frames import frame, summary

__all__ = [
    "Answers",
    "Checked",
    "Estimator",
    "Finding",
    "Findings",
    "Inquiry",
    "facts_of",
    "not_shown",
]

_F = TypeVar("_F", bound="Finding")

_SIMPLE: Mapping[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}


class Finding(ABC):
    """What came of an inquiry, as it is shown: a table, figures of the whole, and notes.

    Args:
        result: the analysis' own result, with all its numbers.
        notes: what a reader has to know.
        index: the column that names the table's lines; empty for none.
        title: what was found, for a heading; empty for none.
    """

    result: Any
    notes: tuple[str, ...]
    index: str = ""
    title: str

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The table: one record a line."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Numbers of the whole, by name."""

    def exported(self) -> dict[str, Any] | None:
        """What other programs can read of it, JSON-able, where it predicts; None for nothing."""
        return None

    @property
    def table(self) -> Any:
        """The records as a pandas frame.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return frame(self.records(), self.index)

    def summary(self) -> str:
        """Figures and table for the terminal, in the manner of statsmodels."""
        return summary(self.title, self.facts(), self.records(), self.notes)


class Findings(dict[str, _F], Generic[_F]):
    """What came of a run's analyses, by name: those that may be shown.

    Asking for another of the run's analyses by name raises the error that :attr:`refused` holds.

    Args:
        shown: what was found, by analysis.
        refused: why an analysis is not shown, and what helps, by its name.
        notes: what a reader has to know of the whole run.
    """

    def __init__(
        self,
        shown: Mapping[str, _F],
        refused: Mapping[str, AtollError],
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(shown)
        self.refused = dict(refused)
        self.notes = tuple(notes)

    def __missing__(self, name: str) -> _F:
        """Refuse what may not be shown.

        Raises:
            KeyError: the run has no such analysis.
            AtollError: disclosure control, or the analysis itself, refuses to show it.
        """
        if name in self.refused:
            raise self.refused[name].with_traceback(None)
        raise KeyError(name)


def not_shown(name: str, error: AtollError) -> AtollError:
    """The error of asking for an analysis that is refused: the same kind, with the analysis' name."""
    message = f"analysis {name!r} is not shown: {error.message}"
    return type(error)(message, remedy=error.remedy, site=error.site, faults=error.faults)


class Inquiry(Protocol):
    """A question about the rows of all sites, in the names of columns. Frozen; its fields are its options."""

    def named(self) -> tuple[str, ...]:
        """The columns it names; empty where it takes all that there are."""
        ...

    def analysis(self, book: Codebook) -> Analysis:
        """The analysis that answers it.

        Raises:
            DataError: an unknown column, or one of the wrong kind.
        """
        ...

    def finding(self, book: Codebook, found: Any) -> Finding:
        """What the analysis' result shows.

        Raises:
            Forbidden: disclosure control refuses to show it.
        """
        ...


class Answers(Protocol):
    """Whoever can be asked: a :class:`~atoll.stats.federation.Federation`, or institutions.

    The latter are a :class:`~atoll.stats.remote.Deployed`.
    """

    def ask(self, inquiry: Inquiry, **run: Any) -> Any:
        """What the sites answer: a :class:`Finding`."""
        ...


class Checked(Inquiry):
    """An inquiry, a dataclass, whose options are held against their types when it is made.

    Raises:
        JobError: text in place of a list, a value of another type, a word that is none of the known ones, or
            numbers and columns that make no sense whatever the rows are, such as no clusters.
    """

    def __post_init__(self) -> None:
        _settle(self)
        _try(self)


class Estimator(Checked):
    """An inquiry with the manners of scikit-learn: options at construction, data at :meth:`fit`.

    Raises:
        JobError: as :class:`Checked`, or a level that is no share.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        level = getattr(self, "level", 0.95)
        if not 0 < level < 1:
            raise JobError(f"level is {level:g}", remedy="give a share, such as 0.95")

    def fit(self, federation: Answers, **run: Any) -> Any:
        """Ask all sites.

        Args:
            federation: who is asked.
            run: options of :meth:`~atoll.stats.federation.Federation.solve`; institutions take none.

        Returns:
            The class' own :class:`Finding`; of institutions a :class:`~atoll.stats.remote.Told`.

        Raises:
            Forbidden: disclosure control refuses.
            AtollError: a site cannot answer, or the options make no sense for its rows.
        """
        return federation.ask(self, **run)


def facts_of(result: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the numbers named that a result has, with their names in words."""
    return {n.replace("_", " "): getattr(result, n) for n in names if hasattr(result, n)}


def _settle(inquiry: Any) -> None:
    """Hold the options of an inquiry against their types; several values become a tuple."""
    hints = typing.get_type_hints(type(inquiry))
    for option in dataclasses.fields(inquiry):
        name, value, hint = option.name, _plain(getattr(inquiry, option.name)), hints[option.name]
        kind, known = typing.get_origin(hint), typing.get_args(hint)
        if kind is typing.Literal and value not in known:
            raise JobError(f"{name} is {value!r}", remedy=f"known: {', '.join(map(str, known))}")
        if hint in _SIMPLE and not isinstance(value, _SIMPLE[hint][0]):
            raise JobError(f"{name} is {value!r}", remedy=f"give {_SIMPLE[hint][1]}")
        whole = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        if whole and not isinstance(value, hint):
            what = hint.__name__
            raise JobError(f"{name} is {value!r}", remedy=f"give an object of stats.{what}")
        if kind in (Sequence, tuple):
            if isinstance(value, str):
                raise JobError(f"{name} is the text {value!r}", remedy=f"give a list: [{value!r}]")
            value = tuple(map(_plain, value))
            if not value and name == "columns" and option.default is dataclasses.MISSING:
                raise JobError("columns is empty", remedy="name one column or more")
        object.__setattr__(inquiry, name, value)


def _try(inquiry: Inquiry) -> None:
    """Make the analysis as though its columns were there, numbers of 0 and 1, for its own checks."""
    names = inquiry.named() or ("",)
    book = Codebook(names, {}, frozenset(names), Disclosure(minimum=1))
    with contextlib.suppress(
        DataError
    ):  # what the real columns are is looked at when there are rows
        inquiry.analysis(book).columns()


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own; others as they are."""
    return value.item() if isinstance(value, np.generic) else value
