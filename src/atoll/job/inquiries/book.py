"""What an inquiry has to know of the tables before it can be put: columns, categories, and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from atoll.core.errors import DataError, suggest
from atoll.data.disclosure import Disclosure

__all__ = ["Book", "Codebook", "categories"]


class Book(Protocol):
    """The columns of a federation's tables."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every site has."""
        ...

    @property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the categories, by column; their codes count from 0."""
        ...

    @property
    def rule(self) -> Disclosure:
        """Disclosure control."""
        ...

    def numeric(self) -> tuple[str, ...]:
        """Columns that hold numbers."""
        ...

    def check(self, *names: str) -> None:
        """Refuse columns that not every site has; :class:`~atoll.core.errors.DataError`."""
        ...

    def groups(self, by: str) -> tuple[str, ...]:
        """Names of the categories of a column; of a 0/1 column ``0`` and ``1``."""
        ...


@dataclass(frozen=True)
class Codebook:
    """A book that is written down.

    Args:
        columns: columns that every site has.
        levels: names of the categories, by column.
        binary: columns of numbers that hold nothing but 0 and 1.
        rule: disclosure control.
    """

    columns: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    binary: frozenset[str] = frozenset()
    rule: Disclosure = field(default_factory=Disclosure)

    def numeric(self) -> tuple[str, ...]:
        """Columns that hold numbers."""
        return tuple(name for name in self.columns if name not in self.levels)

    def check(self, *names: str) -> None:
        """Refuse columns that not every site has.

        Raises:
            DataError: with the nearest name.
        """
        for name in names:
            if name not in self.columns:
                raise DataError(f"no column {name!r}", remedy=suggest(name, self.columns))

    def groups(self, by: str) -> tuple[str, ...]:
        """Names of the categories of a column; of a 0/1 column ``0`` and ``1``.

        Raises:
            DataError: an unknown column, or one of numbers.
        """
        self.check(by)
        if by in self.levels:
            return self.levels[by]
        if by in self.binary:
            return ("0", "1")
        raise DataError(f"column {by!r} holds numbers, not groups", remedy="declare its levels")

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "columns": list(self.columns),
            "levels": {name: list(names) for name, names in self.levels.items()},
            "binary": sorted(self.binary),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], rule: Disclosure) -> Codebook:
        """Read what :meth:`to_plain` gave.

        Raises:
            DataError: it is no codebook.
        """
        try:
            levels = {str(n): tuple(map(str, names)) for n, names in plain["levels"].items()}
            columns, binary = tuple(map(str, plain["columns"])), frozenset(plain["binary"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"this is no codebook: {error}") from error
        return cls(columns, levels, binary, rule)


def categories(book: Book, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Codes of those columns that hold categories."""
    return {
        name: tuple(float(i) for i in range(len(book.levels[name])))
        for name in names
        if name in book.levels
    }
