"""What an inquiry has to know of the tables before it can be put: columns, categories, and the rule."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.core.errors import DataError, suggest
from atoll.data.disclosure import Disclosure
from atoll.data.table import label

__all__ = ["Codebook"]

_DUMMY = re.compile(r"^(.*)\[(\d+)\]$")
"""How designs name the 0/1 column of a category."""


@dataclass(frozen=True)
class Codebook:
    """The columns of a federation's tables.

    Args:
        columns: columns that every site has.
        levels: names of the categories, by column; their codes count from 0.
        binary: columns of numbers that hold nothing but 0 and 1.
        rule: disclosure control.
        sites: those that are asked, in order.
        text: further columns, of text with many values or of dates, which no analysis reads.
    """

    columns: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    binary: frozenset[str] = frozenset()
    rule: Disclosure = field(default_factory=Disclosure)
    sites: tuple[str, ...] = ()
    text: tuple[str, ...] = ()

    def numeric(self) -> tuple[str, ...]:
        """Columns that hold numbers."""
        return tuple(name for name in self.columns if name not in self.levels)

    def check(self, *names: str) -> None:
        """Refuse columns that not every site has.

        Raises:
            DataError: with the nearest name.
        """
        for name in names:
            if name in self.text:
                message = f"column {name!r} holds dates, or text of too many different values"
                remedy = "give numbers, such as days since a date, or name its categories (levels)"
                raise DataError(message, remedy=remedy)
            if name not in self.columns:
                # Dates and other text of many values are columns of files, and of no analysis.
                message = f"no column {name!r} of numbers or categories that every site has"
                raise DataError(message, remedy=suggest(name, self.columns))

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

    def codes(self, by: str) -> tuple[float, ...]:
        """Codes of :meth:`groups`.

        Raises:
            DataError: as there.
        """
        return tuple(float(i) for i in range(len(self.groups(by))))

    def categories(self, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Codes of those columns that hold categories."""
        return {name: self.codes(name) for name in names if name in self.levels}

    def event(self, outcome: str) -> tuple[str, ...]:
        """Which category of a column counts as the event, as a note; nothing for a column of numbers.

        Raises:
            DataError: the column does not have two categories.

        >>> Codebook(("state",), {"state": ("deceased", "living")}).event("state")
        ('the event is state = living: of two categories the second one in order',)
        """
        if outcome not in self.levels:
            return ()
        names = self.levels[outcome]
        if len(names) != 2:
            held = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
            raise DataError(
                f"column {outcome!r} has {len(names)} categories ({held}), and an event has two",
                remedy="give a column of 0 and 1, 1 for the event, or of two categories",
            )
        return (f"the event is {outcome} = {names[1]}: of two categories the second one in order",)

    def told(self, notes: Sequence[str]) -> tuple[str, ...]:
        """Notes with :meth:`shown` columns of designs.

        >>> Codebook(("sex",), {"sex": ("female", "male")}).told(["column 'sex[1]' is left out"])
        ("column 'sex=male' is left out",)
        """
        for name in sorted(self.levels, key=len, reverse=True):  # of names in names the longer ones
            for i, level in enumerate(self.levels[name]):
                notes = [note.replace(f"{name}[{i}]", f"{name}={level}") for note in notes]
        return tuple(notes)

    def shown(self, name: str) -> str:
        """A column of a design for people: ``sex[1]`` is ``sex=male`` where the second category is that.

        >>> Codebook(("sex",), {"sex": ("female", "male")}).shown("sex[1]")
        'sex=male'
        """
        dummy = _DUMMY.match(name)
        if dummy and dummy[1] in self.levels:
            return f"{dummy[1]}={self.levels[dummy[1]][int(dummy[2])]}"
        return name

    def selection(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What rows are to have, by column, as tables hold it.

        Args:
            chosen: by column a category's name, a number, or a range ``(low, high)`` of numbers.

        Raises:
            DataError: an unknown column or category, or what is no number of a column of numbers.
        """
        self.check(*chosen)
        return {name: self._chosen(name, wanted) for name, wanted in chosen.items()}

    def _chosen(self, name: str, wanted: Any) -> Any:
        if name in self.levels:
            text, known = label(wanted), self.levels[name]
            if text not in known:
                remedy = suggest(text, known)
                raise DataError(f"column {name!r} has no category {text!r}", remedy=remedy)
            return float(known.index(text))
        if isinstance(wanted, tuple) and len(wanted) != 2:
            raise DataError(f"column {name!r}: {wanted!r} is no range", remedy="give (low, high)")
        ends = [end for end in wanted if end is not None] if isinstance(wanted, tuple) else [wanted]
        for number in ends:
            if not isinstance(number, numbers.Real | np.bool_):
                raise DataError(f"column {name!r} holds numbers, and {number!r} is none")
        return wanted

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "columns": list(self.columns),
            "levels": {name: list(names) for name, names in self.levels.items()},
            "binary": sorted(self.binary),
            "sites": list(self.sites),
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
            sites = tuple(map(str, plain["sites"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"this is no codebook: {error}") from error
        return cls(columns, levels, binary, rule, sites)
