"""What a site has worked out of its rows and needs again in the next round.

A statistic's rounds come as questions, and an answer depends on the question and the rows alone. What is
remembered here saves time and nothing else: it belongs to exactly these arrays, and to this process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from atoll.core.layout import Array

__all__ = ["Memo"]

_T = TypeVar("_T")


class Memo(Generic[_T]):
    """Something for each site, as long as the same arrays are asked about."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[weakref.ref[Array], ...], _T]] = {}

    def __reduce__(self) -> tuple[type[Memo[_T]], tuple[()]]:
        return (type(self), ())

    def of(
        self, site: int, data: Mapping[str, Array], names: Sequence[str], make: Callable[[], _T]
    ) -> _T:
        """What was made of these columns of a site, made now if they are others than before.

        Args:
            site: its position.
            data: its columns.
            names: which of them it depends on.
            make: works it out.
        """
        refs, made = self._kept.get(site, ((), None))
        same = [ref() is data[name] for ref, name in zip(refs, names, strict=False)]
        if made is not None and len(refs) == len(names) and all(same):
            return made
        found = make()
        self._kept[site] = (tuple(weakref.ref(data[name]) for name in names), found)
        return found
