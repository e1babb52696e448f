"""What each dataset of a site may be asked for in all: ``limits.toml``, written by its steward.

::

    [heart.record]
    epsilon = 3.0
    delta = 1e-5

    [heart.site]
    epsilon = 8.0
    delta = 1e-6
    neighbouring = "replace"

A dataset may have a limit for each unit. The file is read anew for each round, so a change holds from the
next one on; each reservation in the ledger says under which limit it was made.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.core.errors import DataError, Fault, NotFound, raise_faults, suggest
from atoll.node.home import write_text
from atoll.node.policy.ledger import UNITS, Limit
from atoll.wire.trouble import unreadable

__all__ = ["Budgets"]

_RELATIONS = ("add_or_remove", "replace")
_KEYS = ("epsilon", "delta", "neighbouring")


@dataclass(frozen=True)
class Budgets:
    """The limits in the file ``path``."""

    path: Path

    def all(self) -> list[Limit]:
        """Every limit, by dataset and unit.

        Raises:
            StorageError: the file cannot be read.
            DataError: with every fault in it. A site whose limits cannot be read takes no part.
        """
        try:
            raw = tomllib.loads(self.path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self.path, error) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is not valid TOML: {error}") from error
        faults = [f for name, units in raw.items() for f in _table_faults(name, units)]
        raise_faults(DataError, str(self.path), faults)
        return [
            Limit(
                name, float(t["epsilon"]), float(t["delta"]), unit, t.get(_KEYS[2], _RELATIONS[0])
            )
            for name, units in sorted(raw.items())
            for unit, t in sorted(units.items())
        ]

    def of(self, dataset: str) -> list[Limit]:
        """The limits of one dataset."""
        return [limit for limit in self.all() if limit.dataset == dataset]

    def set(self, limit: Limit) -> Limit | None:
        """Set a limit; returns the one for the same dataset and unit that was there before.

        Raises:
            DataError: with every fault of it.
        """
        raise_faults(DataError, f"limit of {limit.dataset!r}", list(_faults(limit)))
        others, before = self._without(limit.dataset, limit.unit)
        self._write([*others, limit])
        return before

    def remove(self, dataset: str, unit: str) -> None:
        """Take a limit away; what was spent stays in the ledger.

        Raises:
            NotFound: there is none.
        """
        others, before = self._without(dataset, unit)
        if before is None:
            raise NotFound(
                f"dataset {dataset!r} has no limit for one {unit}",
                remedy="atoll node ledger show lists the limits",
            )
        self._write(others)

    def _without(self, dataset: str, unit: str) -> tuple[list[Limit], Limit | None]:
        found = self.all()
        same = [n for n in found if (n.dataset, n.unit) == (dataset, unit)]
        return [n for n in found if n not in same], same[0] if same else None

    def _write(self, limits: Iterable[Limit]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = ["# Written by atoll node ledger limit."]
        for limit in sorted(limits, key=lambda n: (n.dataset, n.unit)):
            lines += [
                f"\n[{json.dumps(limit.dataset)}.{limit.unit}]",
                f"epsilon = {limit.epsilon!r}",
                f"delta = {limit.delta!r}",
                f'neighbouring = "{limit.neighbouring}"',
            ]
        write_text(self.path, "\n".join(lines) + "\n")


def _table_faults(name: str, units: Any) -> Iterable[Fault]:
    if not isinstance(units, dict):
        yield Fault(name, "is no table", f"write [{name}.record] and epsilon = … below it")
        return
    for unit, table in units.items():
        place = f"{name}.{unit}"
        if not isinstance(table, dict):
            yield Fault(place, "is no table", f"write [{name}.record] and epsilon = … below it")
            continue
        for key in sorted(set(table) - set(_KEYS)):
            yield Fault(f"{place}.{key}", "unknown key", suggest(key, _KEYS))
        missing = [key for key in _KEYS[:2] if type(table.get(key)) not in (int, float)]
        for key in missing:
            yield Fault(f"{place}.{key}", "a number is required", f"add {key} = …")
        if not missing:
            relation = table.get("neighbouring", _RELATIONS[0])
            yield from _faults(Limit(name, table["epsilon"], table["delta"], unit, relation))


def _faults(limit: Limit) -> Iterable[Fault]:
    place = f"{limit.dataset}.{limit.unit}"
    if limit.unit not in UNITS:
        yield Fault(place, f"unit {limit.unit!r} is unknown", suggest(limit.unit, UNITS))
    if not (math.isfinite(limit.epsilon) and limit.epsilon > 0):
        yield Fault(f"{place}.epsilon", f"{limit.epsilon} is no finite number above 0")
    if not 0 < limit.delta < 1:
        yield Fault(f"{place}.delta", f"{limit.delta} is not between 0 and 1")
    if limit.neighbouring not in _RELATIONS:
        known = suggest(str(limit.neighbouring), _RELATIONS)
        yield Fault(f"{place}.neighbouring", f"{limit.neighbouring!r} is unknown", known)
