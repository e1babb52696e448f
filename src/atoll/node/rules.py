"""What may be told of a dataset beside updates: the rule that its steward has set, in ``datasets.toml``.

::

    [heart.statistics]
    minimum = 11
    person = "patient"
    columns = ["age", "sex", "disease"]
    extremes = false
    differences = true
    small = "masked"
    training = "needed"
    inputs = false

It holds for statistics and, in ``minimum``, ``person``, ``training`` and ``inputs``, for jobs that train
(:mod:`atoll.node.policy.leaving`). The rule is the site's own: a job or a server may ask for a stricter
one, never for a weaker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from atoll.core.errors import Fault, PolicyError, raise_faults, suggest
from atoll.data.disclosure import Disclosure

__all__ = ["Rule", "rule_faults"]


@dataclass(frozen=True)
class Rule:
    """Disclosure control of one dataset.

    Args:
        minimum: least number of persons behind anything that is released.
        person: column that names the person a row belongs to; empty: every row is a person.
        columns: columns that statistics may read; empty for all.
        extremes: whether smallest and largest values may be released.
        differences: whether the query log refuses differences of answers.
        small: what becomes of counts of fewer persons than the minimum that single answers hold
            (cells, bins, the deaths of a day): ``masked``: they leave under masks only; ``clear``: whoever
            runs the server may see them.
        training: what becomes of such counts *inside* what training in the clear takes (sums of columns,
            figures of held-out rows, names of categories): ``needed``: they leave with it; ``strict``:
            what holds one does not leave.
        inputs: whether those who get a model get what it has to be given as well: means, standard deviations
            and commonest categories of the training rows of all sites together.
    """

    minimum: int = 11
    person: str = ""
    columns: tuple[str, ...] = ()
    extremes: bool = False
    differences: bool = True
    small: Literal["masked", "clear"] = "masked"
    training: Literal["needed", "strict"] = "needed"
    inputs: bool = False

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "columns": list(self.columns)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Rule:
        """Read what :meth:`to_plain` gave, or a table of the register that has no faults."""
        return cls(**{**plain, "columns": tuple(plain.get("columns", ()))})

    @property
    def disclosure(self) -> Disclosure:
        """As analyses read it."""
        return Disclosure(self.minimum, self.person, self.extremes, self.differences)

    def check(self, agreed: Disclosure, columns: Iterable[str], *, masked: bool) -> None:
        """Refuse an agreement of sites that is weaker than this rule.

        Args:
            agreed: the rule that a run goes by, as the server says.
            columns: that its analyses read.
            masked: whether single answers of the run are masked, as the site itself finds.

        Raises:
            PolicyError: with every way in which it is weaker.
        """
        faults = [*self.column_faults(columns)]
        if agreed.minimum < self.minimum:
            reason = f"{agreed.minimum} persons where this site wants {self.minimum}"
            faults.append(Fault("statistics.minimum", reason, "do all sides run the same version?"))
        if agreed.extremes and not self.extremes:
            reason = "smallest and largest values do not leave this site"
            faults.append(Fault("statistics.extremes", reason, "leave them out"))
        if self.person and agreed.person != self.person:
            reason = f"persons are counted by {agreed.person!r}, here they are by {self.person!r}"
            faults.append(Fault("statistics.person", reason, "name the column in the job"))
        if agreed.masked and not masked:
            reason = "sums are said to be masked, and they are not"
            faults.append(Fault("statistics", reason, "do all sides run the same version?"))
        raise_faults(PolicyError, "the rule of this dataset forbids it", faults)

    def column_faults(self, columns: Iterable[str]) -> list[Fault]:
        """The columns that statistics may not read here."""
        if not self.columns:
            return []
        return [
            Fault(f"column {name!r}", "may not be used for statistics at this site", "leave it out")
            for name in columns
            if name not in self.columns and name != self.person
        ]


_KINDS: Mapping[str, type] = {
    "minimum": int,
    "person": str,
    "columns": list,
    "extremes": bool,
    "differences": bool,
    "small": str,
    "training": str,
    "inputs": bool,
}


def rule_faults(place: str, table: Any) -> Iterable[Fault]:
    """What is wrong with a rule's table in the register."""
    if not isinstance(table, dict):
        yield Fault(place, "is no table", f"write [{place}] and minimum = … below it")
        return
    known = [field.name for field in fields(Rule)]
    for key, value in sorted(table.items()):
        if key not in known:
            yield Fault(f"{place}.{key}", "unknown key", suggest(key, known))
        elif type(value) is not _KINDS[key]:
            yield Fault(f"{place}.{key}", f"{value!r} is no {_KINDS[key].__name__}")
    minimum = table.get("minimum", 1)
    if type(minimum) is int and minimum < 1:
        yield Fault(f"{place}.minimum", f"a minimum of {minimum} persons", "give 1 or more")
    columns = table.get("columns", [])
    if isinstance(columns, list) and not all(isinstance(name, str) for name in columns):
        yield Fault(f"{place}.columns", "is not a list of names", 'write columns = ["age"]')
    if table.get("small", "masked") not in ("masked", "clear"):
        yield Fault(f"{place}.small", f"{table['small']!r} is unknown", "write masked or clear")
    if table.get("training", "needed") not in ("needed", "strict"):
        what = f"{table['training']!r} is unknown"
        yield Fault(f"{place}.training", what, "write needed or strict")
