"""Sites that are institutions, asked like a :class:`~atoll.stats.federation.Federation` of tables.

::

    federation = stats.connect("me", source="heart.csv", complete=["age", "sex", "disease"])
    stats.describe(federation, ["age"])
    stats.LogisticRegression("disease", ["age", "sex"]).fit(federation).table

Each question is a job of its own: submitted, waited for, fetched. Several analyses that belong together are
one job, whose rounds serve all of them: write a job file for that.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.connection import Connection
from atoll.connection import connect as joined
from atoll.core.errors import AtollError, Forbidden, JobError, StateError
from atoll.core.layout import Array
from atoll.job.inquiries.inquiry import Finding, Findings, Inquiry, not_shown
from atoll.job.inquiries.registry import as_options
from atoll.job.inquiries.results import result_from_plain
from atoll.runtime.aborts import parted
from atoll.wire.status import error_class

__all__ = ["Deployed", "Told", "connect", "read_results"]


@dataclass(frozen=True)
class Told(Finding):
    """What came back from the sites.

    Args:
        name: of the analysis.
        lines: one record a line; a suppressed number is None.
        index: the column that names the lines; empty for none.
        figures: numbers of the whole.
        notes: what a reader has to know.
        folder: where the run's files lie.
        trees: what :meth:`exported` gives.
        title: what was found; empty for none.
        own: the result of a test; None of other analyses.
    """

    name: str
    lines: Sequence[Mapping[str, Any]]
    index: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    trees: Mapping[str, Any] | None = None
    title: str = ""
    own: Any = None

    @property
    def result(self) -> Any:
        """Of a test its own result; of others this, for theirs stays with the run."""
        return self if self.own is None else self.own

    def records(self) -> list[dict[str, Any]]:
        """The lines."""
        return [dict(line) for line in self.lines]

    def facts(self) -> dict[str, Any]:
        """Numbers of the whole, by name."""
        return dict(self.figures)

    def exported(self) -> dict[str, Any] | None:
        """Trees in XGBoost's format; None for other analyses."""
        return None if self.trees is None else dict(self.trees)

    def predict(self, data: Any) -> Array:
        """Of boosted trees the probability of the event, or the mean, for each row, ``(n,)``.

        Args:
            data: a pandas frame or a mapping of columns; an unknown category counts as missing.

        Raises:
            StateError: the analysis is of another kind.
            DataError: a column is absent, or holds no numbers; or the trees cannot be read.
        """
        if self.trees is None:
            raise StateError(
                f"analysis {self.name!r} holds no model that predicts",
                remedy="boosted trees do (kind gradient_boosting)",
            )
        from atoll.job.inquiries.trees import predicted

        return predicted(self.trees, data)


def read_results(folder: str | Path) -> Findings[Told]:
    """What a run of statistics found, by analysis, from its folder.

    Analyses that may not be shown are in ``refused`` of what comes back, each with its error; asking for one
    of them by name raises it.

    Args:
        folder: of ``atoll run``, or as :meth:`~atoll.connection.Connection.result` has fetched it.

    Raises:
        StateError: there are no results of statistics in it.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise StateError(f"{folder} holds no results of statistics", remedy="see its manifest.json")
    found, refused = {}, {}
    told = json.loads(path.read_text(encoding="utf-8"))
    for one in told["analyses"]:
        if "refused" in one:
            refused[one["name"]] = _refused(one)
            continue
        model = path.parent / "models" / f"{one['name']}.json"
        notes, own = tuple(one["notes"]), one.get("result")
        found[one["name"]] = Told(
            one["name"],
            one["table"],
            one.get("index", ""),  # what follows by name is not in folders of earlier versions
            one["facts"],
            notes,
            Path(folder),
            json.loads(model.read_text(encoding="utf-8")) if model.is_file() else None,
            one.get("title", ""),
            None if own is None else result_from_plain(own, notes),
        )
    return Findings(found, refused, told.get("notes", ()))


def _refused(one: Mapping[str, Any]) -> AtollError:
    """The error of an analysis that is not shown; folders of earlier versions do not say which kind."""
    reason, remedy = parted(one["refused"])
    kind = error_class(one.get("code", Forbidden.code), 0)
    return not_shown(one["name"], kind(reason, remedy=remedy))


@dataclass(frozen=True, eq=False)
class Deployed:
    """Institutions that answer analyses; made by :func:`connect`.

    Args:
        connection: to their server.
        job: tables of a job file that every question shares: ``data``, ``statistics``, ``privacy``.
        sites: which sites are asked; empty for all.
        folder: where results are put; None for a folder that is thrown away.
    """

    connection: Connection
    job: Mapping[str, Any]
    sites: tuple[str, ...] = ()
    folder: Path | None = None

    def ask(self, inquiry: Inquiry, **run: Any) -> Told:
        """Submit a question as a job, wait for the sites, and fetch the result.

        Args:
            inquiry: what is asked.
            run: nothing; options of a simulation have no meaning here.

        Raises:
            JobError: with every fault that can be found without the rows, an option of a simulation, or
                an inquiry that is no kind of a job file.
            StateError: the run did not complete; with its reason.
            Forbidden: disclosure control refuses to show what came of it.
        """
        from atoll.job.load import parse_job

        if run:
            raise JobError(f"{sorted(run)[0]!r} is for simulations", remedy="leave it out")
        asked = as_options(inquiry)
        kind = str(asked["kind"])
        raw = {**self.job, "name": f"statistics-{kind.replace('_', '-')}"}
        raw["statistics"] = {**self.job.get("statistics", {}), "analyses": [asked]}
        at = self.connection
        name = at.submit(parse_job(raw, source="the question", folder=Path()), sites=self.sites)
        info = at.wait(name)
        if info.status != "completed":
            raise StateError(f"run {name} {info.status}: {info.reason}")
        with tempfile.TemporaryDirectory() as scratch:
            kept = None if self.folder is None else self.folder / name
            found = read_results(at.result(name, kept or scratch))
        one = found[kind]
        return dataclasses.replace(one, folder=kept, notes=(*one.notes, *found.notes))


def connect(
    home: str | Path | Connection | None = None,
    *,
    source: str,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    complete: Iterable[str] = (),
    where: Mapping[str, Any] | None = None,
    aggregation: str = "auto",
    sites: Iterable[str] = (),
    folder: str | Path | None = None,
    **statistics: Any,
) -> Deployed:
    """The institutions of a federation, to be asked like a federation of tables.

    What they answer is a :class:`Told`: the ``table``, figures, notes and ``summary`` of what a federation of
    tables finds. A function such as :func:`~atoll.stats.testing.t_test` gives the result of the test, as there.

    Args:
        home: folder of the researcher's key, as in :func:`atoll.connection.connect`; or a connection.
        source: name of the dataset as the sites have registered it, with an ending: ``"heart.csv"``.
        columns: ``[data.columns]`` of the job: categories, codes for missing values.
        complete: columns in which every row of the study has a value.
        where: values or ranges that rows of the study have.
        aggregation: ``plain``, ``masked``, or ``auto``.
        sites: which sites are asked; empty for all.
        folder: where results are put; None keeps no files.
        statistics: ``minimum``, ``person``, ``extremes``.
    """
    connection = home if isinstance(home, Connection) else joined(home)
    shared = {**statistics, "complete": list(complete), "where": dict(where or {})}
    job = {
        "data": {"source": source, "columns": dict(columns or {})},
        "privacy": {"aggregation": aggregation},
        "statistics": shared,
    }
    return Deployed(connection, job, tuple(sites), None if folder is None else Path(folder))
