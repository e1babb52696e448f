"""Tables of several sites as one federation to be asked, with disclosure control at each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.columns import complete, only_binary, selected
from atoll.algorithms.statistics.holding import Holding
from atoll.algorithms.statistics.running import NoModel, Statistic
from atoll.core.errors import DataError, suggest
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.data.coded import coded, levels_of, mixed_note, partly_note
from atoll.data.columns import is_missing
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import QueryLog
from atoll.data.readers import as_table, read_table, sites_from_column
from atoll.data.table import Table, label
from atoll.data.zones import zones_note
from atoll.job.build import Job
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Inquiry
from atoll.runtime.client import Parts
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.schedule import Synchronous
from atoll.runtime.serial import SerialExecutor

__all__ = ["Federation"]

_MOST_ROUNDS = 10_000


@dataclass(frozen=True, eq=False)
class _Site:
    """One site: its rows, and its log."""

    holding: Holding
    log: QueryLog


@dataclass(frozen=True, eq=False)
class Federation:
    """Sites that answer analyses; made by :meth:`of`.

    Args:
        sites: by name.
        levels: names of the categories, by column; their codes count from 0.
        rule: disclosure control.
        text: columns that no analysis reads: dates, and text of many values.
        notes: what a reader has to know of a column, by its name.
    """

    sites: Mapping[str, _Site]
    levels: Mapping[str, tuple[str, ...]]
    rule: Disclosure = field(default_factory=Disclosure)
    text: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: Any,
        site: str = "",
        *,
        rule: Disclosure | None = None,
        levels: Mapping[str, Sequence[object]] | None = None,
        logs: str | Path | None = None,
    ) -> Federation:
        """A federation from one table with a column of sites, or from a mapping of tables.

        Args:
            data: a pandas frame, a mapping of columns or a file's path with a column ``site``; or, without
                ``site``, a mapping from site to frame, to :class:`~atoll.data.table.Table`, to columns or to a
                file's path.
            site: name of that column.
            rule: disclosure control; the default keeps a minimum of 11 persons.
            levels: all values of columns that are categories. Text with up to 50 different values is
                one without being named here; their names then leave the sites.
            logs: folder for the sites' query logs; None keeps them in memory.

        Raises:
            DataError: no rows, an unknown column, one that is there twice, rows without a site, an undeclared
                value, a file that cannot be read, or a site whose name cannot be that of a log's file.
        """
        rule = rule or Disclosure()
        tables = _tables(data, site)
        declared = {n: tuple(label(v) for v in values) for n, values in (levels or {}).items()}
        _check_levels(tables, declared)
        held = _held(tables, {*declared, rule.person})
        found = {**declared, **levels_of({n: told.values() for n, told in held.items()})}
        sites = {}
        for name, raw in sorted(tables.items()):
            path = None if logs is None else _log(logs, name)
            persons = rule.persons(raw)
            table = coded(name, raw, found, rule.person, persons)
            log = QueryLog(rule.minimum, path, rule.masked)
            sites[name] = _Site(Holding.whole(table, persons), log)
        named = dict.fromkeys(name for raw in tables.values() for name in raw.names)
        text = {n for s in sites.values() for n in named if n not in s.holding.table.names}
        kept = {n for raw in tables.values() for n in named if n not in raw.names}
        zones = {n: zones_note(n, told) for n, told in held.items() if n in found}
        lost = text - kept
        mixed = {
            n: mixed_note(n, {s: t[n] for s, t in tables.items() if n in t.names}, read=n in found)
            for n in (*zones, *sorted(lost))
        }
        notes = {n: note for n in mixed if (note := zones.get(n) or mixed[n])}
        return cls(sites, found, rule, tuple(n for n in named if n in lost), notes)

    def __repr__(self) -> str:
        """Sites and columns; no rows, which a notebook would show."""
        return f"<Federation of {', '.join(self.sites)}: {', '.join(self.columns)}>"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every site has."""
        every = [site.holding.table.names for site in self.sites.values()]
        shared = set(every[0]).intersection(*every) - {self.rule.person}
        return tuple(name for name in every[0] if name in shared)

    @cached_property
    def book(self) -> Codebook:
        """Columns, categories, the rule and who is asked: what analyses have to know."""
        tables = [site.holding.table for site in self.sites.values()]
        binary = frozenset(
            name
            for name in self.columns
            if name not in self.levels and all(only_binary(table[name]) for table in tables)
        )
        asked = tuple(name for name, site in self.sites.items() if site.holding.rows.any())
        return Codebook(self.columns, self.levels, binary, self.rule, asked, self.text)

    def complete(self, *names: str) -> Federation:
        """The rows with a value in every column named: one population for several analyses.

        Raises:
            DataError: an unknown column.
        """
        self.book.check(*names)
        return self._where(lambda table: complete(table.columns, names), chosen=False)

    def where(self, **chosen: Any) -> Federation:
        """The rows with these values: a category's name or number, or a range ``(low, high)``.

        An end of a range may be None; the lower end belongs to it, the upper one does not.

        Raises:
            DataError: an unknown column or category.
        """
        wanted = self.book.selection(chosen)
        return self._where(lambda table: selected(table, wanted))

    def changed(self, apply: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> Federation:
        """Every site's columns replaced by what ``apply`` makes of the rows in the selection."""
        sites = {}
        for name, site in self.sites.items():
            held = site.holding
            columns = dict(held.table.columns)
            if held.rows.any():
                for column, values in apply(held.seen.columns).items():
                    whole = np.full(len(held.table), math.nan)
                    whole[held.rows] = values
                    columns[column] = whole
            sites[name] = replace(site, holding=replace(held, table=Table(columns)))
        return replace(self, sites=sites)

    def _where(self, keep: Callable[[Table], Array], *, chosen: bool = True) -> Federation:
        sites = {}
        for name, site in self.sites.items():
            held = site.holding
            part = held.where(keep(held.table), chosen=chosen)
            sites[name] = replace(site, holding=part)
        return replace(self, sites=sites)

    def ask(self, inquiry: Inquiry, **run: Any) -> Any:
        """Ask all sites and give what the result shows.

        Args:
            inquiry: what is asked; a :class:`~atoll.job.inquiries.inquiry.Finding` comes of it.
            run: options of :meth:`solve`.

        Raises:
            Forbidden: disclosure control refuses; names the site where one does.
            AtollError: a site cannot answer, or the analysis refuses.
        """
        analysis = inquiry.analysis(self.book)
        found: Any = inquiry.finding(self.book, self.solve(analysis, **run))
        more = [note for name, note in self.notes.items() if name in analysis.columns()]
        if not inquiry.named():  # then nobody learns from a refusal what was not read
            more += [note for name, note in self.notes.items() if name in self.text]
            more += filter(None, [self._partly()])
        return replace(found, notes=(*found.notes, *more)) if more else found

    def _partly(self) -> str:
        hidden = {*self.text, self.rule.person}
        tables = {name: site.holding.table.names for name, site in self.sites.items()}
        return partly_note({s: [n for n in own if n not in hidden] for s, own in tables.items()})

    def solve(
        self,
        analysis: Analysis,
        *,
        executor: str = "serial",
        workers: int | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        name: str = "statistic",
    ) -> Any:
        """Ask all sites and give the analysis' result.

        Args:
            analysis: what is computed.
            executor: as in :func:`~atoll.simulation.run.simulate`; it changes no bit.
            workers: number of processes.
            out: folder for the run: records and checkpoints of its rounds.
            resume: continue a run that was cut off in ``out``.
            name: of the run.

        Raises:
            Forbidden: disclosure control refuses; names the site.
            AtollError: a site cannot answer, or the analysis refuses.
        """
        seen = self._admitted(analysis)
        algorithm = Statistic(analysis, tuple(seen), self.rule)
        stop, schedule = Stop(_MOST_ROUNDS, max_aborts=1), Synchronous(quorum=len(seen))
        if out is None and executor == "serial":
            parts = Parts(algorithm, NoModel(), seen, Seed(0))
            loop = Loop(
                parts,
                SerialExecutor(parts),
                schedule=schedule,
                evaluation=Evaluation(every=0),
                stop=stop,
            )
            return algorithm.result(loop.run().progress.state)
        from atoll.simulation import simulate  # with what a run's folder needs

        job = Job(
            NoModel(),
            algorithm,
            schedule=schedule,
            stop=stop,
            evaluate_every=0,
            central=False,
            federated=False,
            name=name,
        )
        run = simulate(job, seen, executor=executor, workers=workers, out=out, resume=resume)
        return algorithm.result(run.progress.state)

    def _admitted(self, analysis: Analysis) -> dict[str, Table]:
        """The tables that answer: all sites agree before any of them notes it.

        Raises:
            Forbidden: a site does not agree.
        """
        self.book.check(*(name for name in analysis.columns() if name != self.rule.person))
        asked = {name: site for name, site in self.sites.items() if site.holding.rows.any()}
        if not asked:
            raise DataError("no site has a row left", remedy="widen the selection")
        for dry in (True, False):
            for name, site in asked.items():
                site.holding.admit(analysis, self.rule, site.log, name, dry=dry)
        return {name: site.holding.seen for name, site in asked.items()}


def _tables(data: Any, site: str) -> dict[str, Table]:
    if not site:
        if not isinstance(data, Mapping) or not all(map(_is_table, data.values())):
            raise DataError(
                "no column is said to name each row's site",
                remedy="give site=, the name of that column, or a table for each site by its name",
            )
        found = {str(name): as_table(part) for name, part in data.items()}
    else:
        named = read_table(data, names=site) if isinstance(data, str | Path) else as_table(data)
        found = sites_from_column(named, site)
    if not found or not any(len(table) for table in found.values()):
        raise DataError("there are no rows", remedy="check the table and the site column")
    return found


def _check_levels(tables: Mapping[str, Table], declared: Mapping[str, Sequence[str]]) -> None:
    """Refuse categories of a column that is nowhere, and a category that is there twice.

    Raises:
        DataError: names the column.
    """
    known = list(dict.fromkeys(name for table in tables.values() for name in table.names))
    for name, levels in declared.items():
        if name not in known:
            raise DataError(
                f"levels are given of {name!r}, which no site has", remedy=suggest(name, known)
            )
        if len(set(levels)) < len(levels):
            raise DataError(f"levels of {name!r} hold a category twice", remedy="name each once")


def _log(folder: str | Path, site: str) -> Path:
    """The file of a site's query log, which has to lie in the folder itself."""
    if set("/\\") & set(site):
        raise DataError(
            f"a query log cannot be named after the site {site!r}",
            remedy="give the site a name without / and \\",
        )
    return Path(folder) / f"{site}.jsonl"


def _is_table(data: Any) -> bool:
    return isinstance(data, Table | Mapping | str | Path) or hasattr(data, "columns")


def _held(tables: Mapping[str, Table], others: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """What each site holds of the columns of text, by column and site, without ``others``."""
    held = {}
    for name in dict.fromkeys(name for table in tables.values() for name in table.names):
        cells = {site: table[name] for site, table in tables.items() if name in table.columns}
        if name not in others and any(c.dtype.kind == "O" for c in cells.values()):
            held[name] = {
                site: [label(cell) for cell in c if not is_missing(cell)]
                for site, c in cells.items()
            }
    return held
