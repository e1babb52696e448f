"""``[statistics]``: what a job asks of the sites' tables, from its file to the algorithm of its rounds.

A :class:`Study` is what the file says. Sites tell their columns (:meth:`Study.tell`), which gives an
:class:`Agreed`; with that every inquiry becomes an analysis, and all of them together one
:class:`~atoll.algorithms.statistics.running.Statistic`. A simulation calls these in one process; in a
deployment :meth:`Study.tell` and :meth:`Study.holding` run at the sites and the rest at the server.

What leaves a site before the first round: the names of its columns, the names of categories that the job does
not declare, where as many persons as the minimum hold each, and which columns hold nothing but 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.columns import complete, only_binary, selected
from atoll.algorithms.statistics.holding import Holding
from atoll.algorithms.statistics.running import Statistic
from atoll.algorithms.statistics.together import Together
from atoll.core.errors import DataError, Fault, Forbidden, JobError, raise_faults, suggest
from atoll.core.values import ClientId
from atoll.data.coded import MOST_LEVELS, coded, labels_of, levels_of, lost_notes, without_values
from atoll.data.columns import is_missing
from atoll.data.disclosure import Disclosure, persons_of
from atoll.data.table import Table, label
from atoll.data.zones import zones_note
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Inquiry
from atoll.job.inquiries.registry import inquiry_of

if TYPE_CHECKING:
    from atoll.job.schema import ColumnSpec, JobSpec, StatisticsSpec

__all__ = ["Agreed", "Study", "study_faults", "study_of"]

_PLACE = "statistics.analyses"
_MOST_COLUMNS = 20_000


@dataclass(frozen=True, eq=False)
class Agreed:
    """What all sites of a run agree on before its first round.

    Args:
        book: columns, categories, the sites, and the rule that every one of them keeps.
        notes: what a reader has to know, such as who made the rule stricter.
    """

    book: Codebook
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[ClientId, ...]:
        """All of them, in order."""
        return self.book.sites

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        rule = self.book.rule
        return {
            **self.book.to_plain(),
            "rule": {
                "minimum": rule.minimum,
                "person": rule.person,
                "extremes": rule.extremes,
                "masked": rule.masked,
            },
            "notes": list(self.notes),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Agreed:
        """Read what :meth:`to_plain` gave.

        Raises:
            DataError: it is nothing of the kind.
        """
        try:
            rule = Disclosure(
                minimum=int(plain["rule"]["minimum"]),
                person=str(plain["rule"]["person"]),
                extremes=plain["rule"]["extremes"] is True,
                masked=plain["rule"]["masked"] is True,
            )
            notes = tuple(map(str, plain["notes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no agreement of sites: {error}") from error
        return cls(Codebook.from_plain(plain, rule), notes)


@dataclass(frozen=True, eq=False)
class Study:
    """What a job asks.

    Args:
        inquiries: by name, in the order of the file.
        rule: disclosure control that the job asks for; sites may be stricter.
        declared: columns of the job, with their categories and codes for missing values.
        complete: columns in which every row of the study has a value.
        where: values or ranges that rows of the study have.
        site_column: a column that names the site, where there is one.
        agreed: what the sites agree on, once that is known.
    """

    inquiries: Mapping[str, Inquiry]
    rule: Disclosure
    declared: Mapping[str, ColumnSpec] = field(default_factory=dict)
    complete: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    site_column: str = ""
    agreed: Agreed | None = None

    # At a site ----------------------------------------------------------------------------------

    def named(self) -> tuple[str, ...]:
        """The columns that the job names; empty where one of its inquiries takes all that there are."""
        if any(not inquiry.named() for inquiry in self.inquiries.values()):
            return ()
        asked = [name for inquiry in self.inquiries.values() for name in inquiry.named()]
        return tuple(dict.fromkeys([*asked, *self.complete, *self.where]))

    def table(self, site: ClientId, raw: Table) -> Table:
        """The site's rows without the column of sites, and with the job's codes for missing taken out.

        Raises:
            DataError: the rows are of several sites.
        """
        column = self.site_column
        if column in raw.columns:
            names = {None if is_missing(cell) else label(cell) for cell in raw[column]}
            if len(names) > 1:
                message, remedy = "names more than one site", "register the rows of one site only"
                fault = Fault(_place(site, column), message, remedy, withheld=message)
                raise DataError("the rows are not of one site", site=site, faults=[fault])
            raw = raw.without(column)
        return without_values(raw, {n: c.missing for n, c in self.declared.items() if c.missing})

    def tell(self, site: ClientId, raw: Table, own: Disclosure | None = None) -> dict[str, Any]:
        """What a site tells of its columns, ready for JSON; never a count.

        Args:
            site: its name.
            raw: its rows; columns that its rule does not let out are not among them.
            own: its rule; None for the job's.

        Raises:
            DataError: a column is missing.
            Forbidden: fewer persons than the minimum, or behind the name of a category.
        """
        rule, table = own or self.rule, self.table(site, raw)
        person = rule.person or self.rule.person
        rule = replace(rule, person=person, masked=self.rule.masked)
        rule.enough(table, site)
        wanted = self.named() or tuple(n for n in table.names if n != person)
        faults = [
            Fault(_place(site, name), _ABSENT, suggest(name, table.names), withheld=_ABSENT)
            for name in dict.fromkeys(
                (*wanted, *self.declared)
            )  # misspelt, it would declare nothing
            if name not in table.columns
        ]
        raise_faults(DataError, "columns that the job reads", faults, site=site)
        persons = rule.persons(table)
        columns = {name: self._told(site, name, table, persons, rule) for name in wanted}
        limits = {"minimum": rule.minimum, "person": person, "extremes": rule.extremes}
        return {"columns": columns, "rule": limits}

    def _told(
        self, site: ClientId, name: str, table: Table, persons: Any, rule: Disclosure
    ) -> dict[str, Any]:
        cells, declared = table[name], self.declared.get(name)
        category = declared is not None and declared.type == "category"
        if declared is not None and declared.categories:
            return {"text": True, "levels": [], "binary": False}
        if cells.dtype.kind != "O" and not category:
            return {"text": False, "levels": None, "binary": only_binary(cells)}
        held = labels_of(cells)
        if len(held) > MOST_LEVELS:
            return {"text": True, "levels": None, "binary": False}
        for rows in held.values():
            if len(set(persons[rows].tolist())) < rule.minimum > 1:
                if 2 * sum(map(_numeric, held)) > len(held):
                    fault = Fault(_place(site, name), _BESIDE, _mended(name), withheld=_BESIDE)
                    raise DataError("columns that the job reads", site=site, faults=[fault])
                raise Forbidden(
                    f"a category of column {name!r} has fewer than {rule.minimum} persons here, so its "
                    "name does not leave",
                    site=site,
                    remedy=f"declare categories in [data.columns.{name}] of the job",
                )
        return {"text": True, "levels": list(held), "binary": False}

    def holding(self, agreed: Agreed, site: ClientId, raw: Table) -> Holding:
        """A site's rows as the analyses read them, and which of them are in the study.

        Args:
            agreed: what all sites agree on.
            site: its name.
            raw: its rows.

        Raises:
            DataError: a category that is not declared, or no row is left.
            Forbidden: fewer persons than the minimum.
        """
        book, rule = agreed.book, agreed.book.rule
        table = self.table(site, raw)
        persons = persons_of(table, rule.person)
        kept = [n for n in table.names if n in book.columns or n == rule.person]
        own = Table({name: table[name] for name in kept})
        made = coded(site, own, book.levels, rule.person, persons)
        chosen = {
            name: (wanted.get("least"), wanted.get("below"))
            if isinstance(wanted, Mapping)
            else wanted
            for name, wanted in self.where.items()
        }
        holding = Holding.whole(made, persons).where(selected(made, book.selection(chosen)))
        holding = holding.where(complete(made.columns, self.complete), chosen=False)
        rule.enough(holding.seen, site)  # first: no row at all is no more told than few are
        if not holding.rows.any():
            message = "no row of this site is in it"
            fault = Fault(f"site {site!r}", message, "leave the site out", withheld=message)
            raise DataError("the study's selection", site=site, faults=[fault])
        return holding

    # Together -----------------------------------------------------------------------------------

    def agree(self, surveys: Mapping[ClientId, Mapping[str, Any]]) -> Agreed:
        """What the sites agree on: the columns of all, the names of all categories, the strictest rule.

        Args:
            surveys: what :meth:`tell` gave, by site.

        Raises:
            DataError: with every fault of every site.
        """
        told = {site: _survey(site, surveys[site]) for site in sorted(surveys)}
        tables = [columns for columns, _ in told.values()]
        shared = [name for name in tables[0] if all(name in columns for columns in tables)]
        held: dict[str, list[Any]] = {
            name: [columns[name]["levels"] for columns, _ in told.values()]
            for name in shared
            if any(columns[name]["text"] for columns, _ in told.values())
        }
        declared = {
            name: tuple(label(value) for value in column.categories)
            for name, column in self.declared.items()
            if column.categories
        }
        faults = [
            fault
            for name in held
            if name not in declared
            for fault in _clashes(name, {s: columns[name] for s, (columns, _) in told.items()})
        ]
        rule, notes, wrong = self._strictest({site: rule for site, (_, rule) in told.items()})
        raise_faults(DataError, "the sites' tables", [*faults, *wrong])
        whole = {n: v for n, v in held.items() if n not in declared and None not in v}
        levels = {**{n: v for n, v in declared.items() if n in shared}, **levels_of(whole)}
        columns = tuple(n for n in shared if n not in held or n in levels)
        raise_faults(DataError, "the sites' tables", self._uncoded(held, columns))
        binary = {n for n in columns if all(c[n]["binary"] for c, _ in told.values())}
        zones = (
            zones_note(n, dict(zip(told, v, strict=True))) for n, v in whole.items() if n in levels
        )
        lost = lost_notes(dict(zip(told, tables, strict=True)), set(held) - set(levels))
        return Agreed(
            Codebook(columns, levels, frozenset(binary - set(levels)), rule, tuple(told)),
            (*notes, *filter(None, zones), *lost),
        )

    def _uncoded(self, held: Iterable[str], coded: Iterable[str]) -> list[Fault]:
        """Columns of text that the job names and that are no categories."""
        message = f"is text with more than {MOST_LEVELS} different values, so it is no category"
        remedy = "leave it out, declare its categories in [data.columns], or of dates give days since one"
        lost = set(held) & set(self.named()) - set(coded)
        return [Fault(f"column {name!r}", message, remedy) for name in sorted(lost)]

    def _strictest(
        self, rules: Mapping[ClientId, Mapping[str, Any]]
    ) -> tuple[Disclosure, tuple[str, ...], list[Fault]]:
        persons = {rule["person"] for rule in rules.values()}
        faults = []
        if len(persons) > 1:
            shown = ", ".join(sorted(repr(name) for name in persons))
            faults.append(
                Fault("statistics.person", f"sites count persons by {shown}", "set it in the job")
            )
        minimum = max([self.rule.minimum, *(rule["minimum"] for rule in rules.values())])
        extremes = self.rule.extremes and all(rule["extremes"] for rule in rules.values())
        notes = []
        if minimum > self.rule.minimum:
            asked = [site for site, rule in rules.items() if rule["minimum"] == minimum]
            notes.append(f"the minimum is {minimum} persons, as {', '.join(asked[:5])} wants it")
        if self.rule.extremes and not extremes:
            firm = [site for site, rule in rules.items() if not rule["extremes"]]
            notes.append(f"no smallest and largest values: {', '.join(firm[:5])} does not allow it")
        person = next(iter(sorted(persons)), self.rule.person)
        rule = replace(self.rule, minimum=minimum, person=person, extremes=extremes)
        return rule, tuple(notes), faults

    def analysis(self, agreed: Agreed) -> Analysis:
        """All inquiries as one analysis, whose parts share rounds.

        Raises:
            DataError: with every inquiry that does not fit the columns.
        """
        parts, faults = {}, []
        for name, inquiry in self.inquiries.items():
            try:
                parts[name] = inquiry.analysis(agreed.book)
            except (DataError, JobError, Forbidden) as error:
                faults.append(Fault(f"analysis {name!r}", error.message, error.remedy))
        raise_faults(DataError, "the job's statistics do not fit the sites' tables", faults)
        return Together(parts)

    def algorithm(self, agreed: Agreed, *, elsewhere: bool = False) -> Statistic:
        """The algorithm of the run's rounds.

        Args:
            agreed: what the sites agree on.
            elsewhere: whether this is the coordinator of a deployment, who has no rows.
        """
        return Statistic(self.analysis(agreed), agreed.sites, agreed.book.rule, elsewhere)


_ABSENT = "is not in this site's table"
_BESIDE = "holds text beside numbers at this site"
_MOST_NAMED = 5


def _place(site: ClientId, column: str) -> str:
    return f"site {site!r}, column {column!r}"


def _mended(column: str) -> str:
    return f"mend the text, or name it as missing ([data.columns.{column}] missing)"


def _numeric(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _clashes(name: str, told: Mapping[ClientId, Mapping[str, Any]]) -> list[Fault]:
    """Of a column that is text at some sites and numbers at others: which of them hold what."""
    words, numbers = (
        ", ".join([site for site, column in told.items() if column["text"] is text][:_MOST_NAMED])
        for text in (True, False)
    )
    if not numbers:
        return []
    remedy = f"{_mended(name)}; where it means categories, declare them there"
    return [Fault(f"column {name!r}", f"is text at {words}, and numbers at {numbers}", remedy)]


def _survey(
    site: ClientId, plain: Mapping[str, Any]
) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Any]]:
    """A site's survey, held against its form: it comes from another machine."""
    columns, rule = plain.get("columns"), plain.get("rule")
    good = isinstance(columns, Mapping) and len(columns) <= _MOST_COLUMNS and _is_rule(rule)
    if not good or not all(map(_is_column, dict(columns or {}).values())):
        raise DataError(
            "what it tells of its columns cannot be read",
            site=site,
            remedy="do all nodes run the same version?",
        )
    return dict(columns or {}), dict(rule or {})


def _is_rule(rule: Any) -> bool:
    kinds = {"minimum": int, "person": str, "extremes": bool}
    return isinstance(rule, Mapping) and all(type(rule.get(k)) is t for k, t in kinds.items())


def _is_column(told: Any) -> bool:
    if not isinstance(told, Mapping) or type(told.get("text")) is not bool:
        return False
    levels = told.get("levels")
    named = isinstance(levels, list) and len(levels) <= MOST_LEVELS
    return type(told.get("binary")) is bool and (
        levels is None or (named and all(isinstance(name, str) for name in levels))
    )


def study_of(spec: JobSpec, *, masked: bool = False) -> Study:
    """The study of a job with a section ``[statistics]``.

    Args:
        spec: the job.
        masked: whether sums of single sites are seen by nobody.

    Raises:
        JobError: with every fault of the section.
    """
    raise_faults(JobError, "statistics", study_faults(spec))
    given = spec.statistics
    if given is None:
        raise JobError("a job without a section [statistics] asks no questions")
    made = {}
    for name, kind, options, place in _listed(given):
        inquiry, _ = inquiry_of(kind, options, place)
        if inquiry is not None:
            made[name] = inquiry
    rule = Disclosure(given.minimum, given.person, given.extremes, masked=masked)
    data = spec.data
    return Study(made, rule, data.columns, given.complete, given.where, data.site_column)


def study_faults(spec: JobSpec) -> list[Fault]:
    """What is wrong with a section on statistics, and with tables that mean nothing beside it."""
    return [*_section(spec), *_misplaced(spec)]


def _listed(given: StatisticsSpec) -> Iterator[tuple[str, str, Mapping[str, Any], str]]:
    """Name, kind, options and place of each analysis; one without a name is called by its kind."""
    for number, analysis in enumerate(given.analyses):
        options = dict(analysis.model_extra or {})
        yield analysis.name or analysis.kind, analysis.kind, options, f"{_PLACE}.{number}"


def _section(spec: JobSpec) -> Iterator[Fault]:
    given = spec.statistics
    if given is None:
        return
    if not given.analyses:
        yield Fault(_PLACE, "nothing is asked", "add [[statistics.analyses]] with a kind")
    seen = set[str]()
    for name, kind, options, place in _listed(given):
        if name in seen:
            yield Fault(f"{place}.name", f"another analysis is called {name!r}", "name this one")
        seen.add(name)
        yield from inquiry_of(kind, options, place)[1]
    for name, wanted in given.where.items():
        if isinstance(wanted, Mapping):
            ends = {k: v for k, v in wanted.items() if k in ("least", "below")}
            sound = len(ends) == len(wanted) > 0
            if not sound or not all(type(v) in (int, float) for v in ends.values()):
                remedy = "write { least = 18, below = 65 }, or one of both"
                yield Fault(f"statistics.where.{name}", "is no range of numbers", remedy)
        elif type(wanted) not in (int, float, str, bool):
            yield Fault(f"statistics.where.{name}", "is no value", "give a category, a number")
    if given.person and given.person in spec.data.columns:
        yield Fault("statistics.person", "is also a declared column", "leave it undeclared")


_UNUSED = ("preprocessing", "model", "local", "algorithm", "clock", "evaluation", "stop")
_DATA = ("target", "task", "features", "drop", "classes", "partition", "test_fraction")


def _misplaced(spec: JobSpec) -> Iterator[Fault]:
    """Tables and keys that a statistic would silently ignore."""
    fields = type(spec).model_fields
    for name in _UNUSED:
        if getattr(spec, name) != fields[name].get_default(call_default_factory=True):
            yield Fault(name, "has no meaning for statistics", "remove it")
    for name in (*_DATA, "central_test", "stratify", "options"):
        default = type(spec.data).model_fields[name].get_default(call_default_factory=True)
        if getattr(spec.data, name) != default:
            yield Fault(f"data.{name}", "has no meaning for statistics", "remove it")
    for name, column in spec.data.columns.items():
        if column.range is not None:
            yield Fault(f"data.columns.{name}.range", "is not checked for statistics", "remove it")
        if len(set(map(label, column.categories))) < len(column.categories):
            yield Fault(f"data.columns.{name}.categories", "hold one twice", "remove the second")
    rounds = spec.rounds
    for name in type(rounds).model_fields:
        default = type(rounds).model_fields[name].get_default(call_default_factory=True)
        if name != "deadline" and getattr(rounds, name) != default:
            reason = "has no meaning for statistics: every site answers until all is asked"
            yield Fault(f"rounds.{name}", reason, "remove it")
    privacy = spec.privacy
    for name in type(privacy).model_fields:
        default = type(privacy).model_fields[name].get_default(call_default_factory=True)
        if name not in ("aggregation", "threshold", "degree") and getattr(privacy, name) != default:
            yield Fault(f"privacy.{name}", "has no meaning for statistics", "remove it")
    if privacy.aggregation not in ("auto", "plain", "masked"):
        reason = f"{privacy.aggregation!r} is for models"
        yield Fault("privacy.aggregation", reason, "use 'plain' or 'masked'")
    if spec.data.source.endswith((".npz", ".npy")) or "." not in spec.data.source:
        yield from _no_table(spec.data.source)


def _no_table(source: str) -> Iterator[Fault]:
    from atoll.job.datasets import BUILT_IN

    if source in BUILT_IN:
        yield Fault("data.source", f"{source!r} is no table", "name a table, such as 'heart.csv'")
