"""Before the first round: what the sites' data look like, added up, and whether all mean the same model.

Three calls to every site of the run. Nothing of them is remembered but the answers themselves, which
are durable: a server that was stopped asks again, finds the answers there, and comes to the same plan.

=========  ===============================================  ======================================
call       a site answers                                   the server makes of it
=========  ===============================================  ======================================
survey     names of its columns and their levels            the schema
sums       exact sums of its training rows                  the sums over all sites
ready      rows, card, layout, hash of the initial vector;  the run's parts
           the first site the vector itself, where
           none came with the job
=========  ===============================================  ======================================

The *plan* is what sites need to work on the run: a frame ``{"run", "spec", "sites", "schema"}`` whose
arrays are the sums. It grows with the calls, and each task names the newest.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import DataError, LayoutError
from atoll.core.layout import Array
from atoll.core.values import ClientId, Update
from atoll.data.schema import Schema
from atoll.job import deployed, study_deployed
from atoll.job.build import Job
from atoll.job.datasets import own_arrays
from atoll.job.package import spec_from_plain
from atoll.job.start import Start
from atoll.job.study import Agreed
from atoll.job.summed import check_columns, column_shapes, work_mark
from atoll.privacy.he.contexts import PublicContext
from atoll.runtime.client import Parts
from atoll.runtime.figures import Kinds
from atoll.server.office import Office
from atoll.server.rounds.answers import Expected
from atoll.server.rounds.columns import masked_sums
from atoll.server.rounds.desk import Call, Take, all_took_part
from atoll.server.rounds.key_sharing import shared_key
from atoll.server.rounds.starts import start_in
from atoll.server.store.contract import RunRow
from atoll.wire.frames import Blob, check_finite
from atoll.wire.messages import INITIAL, BlobRef, ResultBody, TaskBody

__all__ = ["Asking", "Prepared", "Preparing", "body_of"]

Asking = Generator[Call, Sequence[Outcome], None]
"""Yields calls and is sent what became of their tasks."""

_SUMS = ("rows", "present", "limbs", "levels")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready for its first round.

    Args:
        job: the job as objects.
        parts: of the run; its trainer has a layout and an initial vector and nothing else.
        plan: the newest plan.
        figures: in a masked or encrypted run, the metrics of held-out rows that sites will add up.
        key: in an encrypted run, the public half of the sites' key.
    """

    job: Job
    parts: Parts
    plan: Blob
    figures: Kinds = field(default_factory=dict)
    key: PublicContext | None = None


def body_of(
    row: RunRow, plan: Blob, kind: str, number: int, site: ClientId, name: str = "", **more: Any
) -> TaskBody:
    """A task of a run; its id follows from what it is, so a server that was stopped asks for the same."""
    code = {name: BlobRef(**ref) for name, ref in row.files.items()}
    return TaskBody(
        id=name or f"{row.id}.{kind}.{number}.{site}",
        run=row.id,
        kind=kind,  # type: ignore[arg-type]  # checked by the schema
        number=number,
        client=site,
        plan=BlobRef.of(plan),
        code=code,
        **more,
    )


class Preparing:
    """The preparation of one run.

    Args:
        office: of the server.
        row: the run.
    """

    def __init__(self, office: Office, row: RunRow) -> None:
        self._office = office
        self._row = row
        self._spec = spec_from_plain(json.loads(row.spec))
        self._plan = Blob("", 0)
        self._schema: Schema | None = None
        self._agreed: Agreed | None = None
        self._sums: Mapping[str, Array] = {}
        self._answers: dict[ClientId, Mapping[str, Any]] = {}
        self._initial: Array | None = None
        self._start: Start | None = None
        self._settled = deployed.settled_of(self._spec, len(row.sites))
        self._key: PublicContext | None = None

    def calls(self) -> Generator[Call, Sequence[Outcome], Prepared]:
        """The calls, one after another, and what comes of them.

        Raises:
            DataError: the sites' data do not fit the job or one another; every fault of every site.
        """
        yield from self._call("survey", Expected(), self._note)
        if self._spec.statistics is not None:
            return (yield from self._asking())
        self._schema = deployed.agree(self._spec, self._by_site())
        if self._settled.kind == "encrypted":
            self._key = yield from self._shared_key()
        columns = not own_arrays(self._spec.data)  # those of arrays are not added up
        if columns and self._spec.preprocessing.mode == "federated":
            yield from self._under_masks() if self._settled.hidden else self._add_up()
        self._answers, self._start = {}, self._given()
        yield from self._call("ready", Expected(), self._note)
        return self._finish()

    def _asking(self) -> Generator[Call, Sequence[Outcome], Prepared]:
        """Of statistics: what the sites agree on, and whether each of them is going to answer."""
        self._agreed = agreed = study_deployed.agreed_by(self._spec, self._by_site())
        self._answers = {}
        yield from self._call("ready", Expected(), self._note)
        job, parts = study_deployed.coordinated(self._spec, agreed, self._by_site())
        return Prepared(job, parts, self._plan)

    def _schema_plain(self) -> dict[str, Any] | None:
        if self._agreed is not None:
            return self._agreed.to_plain()
        return None if self._schema is None else deployed.schema_to_plain(self._schema)

    def _call(self, kind: str, expected: Expected, take: Take) -> Asking:
        """Ask every site; all must have done it."""
        row, settings = self._row, self._office.settings
        self._show(kind)
        given = self._start is not None or self._agreed is not None
        wanted = kind == "ready" and self._initial is None and not given
        tasks = [
            body_of(row, self._plan, kind, 0, site, initial=wanted and site == row.sites[0])
            for site in row.sites
        ]
        vector = Expected({"initial": (None, "float")}, most=settings.largest_vector)
        outcomes = yield Call(
            tasks,
            expected,
            take,
            settings.round,
            settings.progress,
            needed=len(tasks),
            special={task.id: vector for task in tasks if task.initial},
        )
        all_took_part(kind, outcomes)

    def _show(self, phase: str) -> None:
        """Make the newest plan, and say how far the run is."""
        office, row = self._office, self._row
        body = {
            "run": row.id,
            "by": row.by,
            "signed": dict(row.signed),
            "spec": json.loads(row.spec),
            "sites": list(row.sites),
            "schema": self._schema_plain(),
        }
        before, self._plan = self._plan, office.keep(body, self._sums)
        office.store.set_run(office.epoch, row.id, plan=self._plan.sha256, phase=phase)
        if before.sha256:
            office.blobs.delete(before.sha256)

    def _note(self, task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
        """An answer in words, and the initial vector where it was asked for."""
        check_finite(arrays)
        self._answers[task.client] = body.answer
        if task.initial:
            self._initial = arrays["initial"]

    def _add_up(self) -> Asking:
        fold = Fold(len(self._row.sites))
        most = self._office.settings.overhead
        shapes: Mapping[str, tuple[int, ...] | None] = dict.fromkeys(_SUMS)
        if self._schema is not None:
            shapes = column_shapes(self._spec, self._schema)
        expected = Expected({name: (shape, "float64") for name, shape in shapes.items()}, most)

        def take(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
            check_columns(arrays)
            fold.add(Update(arrays, 1.0, body.examples))

        yield from self._call("sums", expected, take)
        self._sums = fold.aggregate().sums

    def _under_masks(self) -> Asking:
        """The same in a masked or encrypted run: only the sum is seen here."""
        row, schema = self._row, self._schema
        if schema is None:
            return
        self._show("sums")
        plan = self._plan

        def make(kind: str, task: Task, name: str, said: Blob) -> TaskBody:
            more: dict[str, Any] = {"said": BlobRef.of(said), "about": "sums"}
            return body_of(row, plan, kind, 0, task.client, name, **more)

        office, spec = self._office, self._spec
        work = work_mark(body_of(row, plan, "sums", 0, row.sites[0]))
        self._sums = yield from masked_sums(office, row, spec, schema, make, self._key, work)

    def _shared_key(self) -> Generator[Call, Sequence[Outcome], PublicContext]:
        """The sites' key, of which the server gets the public half."""
        row, plan, office = self._row, self._plan, self._office
        office.store.set_run(office.epoch, row.id, phase="key")

        def make(kind: str, task: Task, name: str, said: Blob) -> TaskBody:
            return body_of(row, plan, kind, 0, task.client, name, said=BlobRef.of(said))

        work = work_mark(body_of(row, plan, "greet", 0, row.sites[0]))
        return (yield from shared_key(office, row, make, work))

    def _given(self) -> Start | None:
        """The model that came with the job."""
        ref = self._row.files.get(INITIAL)
        return (
            None if ref is None else start_in(self._office, BlobRef(**ref), self._spec.model.start)
        )

    def _finish(self) -> Prepared:
        answers = self._by_site()
        first = self._row.sites[0]
        try:
            with _told("ready"):
                layout = deployed.layout_from_plain(answers[first]["layout"])
        except LayoutError as error:
            raise DataError(f"its layout is none: {error.message}", site=first) from error
        if self._start is not None:
            self._initial = self._start.vector(layout)
        if self._initial is None:
            raise DataError("no site sent the initial vector", site=first)
        inputs = None
        if self._schema is not None and self._sums:
            inputs = deployed.inputs_of(self._spec, self._schema, self._sums)
        job, parts = deployed.coordinator(self._spec, layout, self._initial, answers, inputs)
        job = replace(job, start=self._start)
        figures = deployed.figures_told(answers) if self._settled.hidden else {}
        return Prepared(job, parts, self._plan, figures, self._key)

    def _by_site(self) -> dict[ClientId, Mapping[str, Any]]:
        """The answers in the order of the sites, not of their arrival."""
        return {site: self._answers[site] for site in self._row.sites}


@contextlib.contextmanager
def _told(kind: str) -> Iterator[None]:
    """What a site made up, and no honest node says."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"the sites' answers to {kind!r} cannot be read: {type(error).__name__}: {error}",
            remedy="do all nodes run the same version?",
        ) from error
