"""The rounds of a run: the one loop, answered by sites instead of an executor.

Each call of :meth:`atoll.runtime.loop.Loop.play` becomes tasks for sites. After a round its record, the
checkpoint and the ids of the contributions that went in are committed together (decision D10): the
checkpoint's bytes are durable first, then one transaction names them. Only then is anything deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from atoll.core.contracts import Finishing, Outcome, Task
from atoll.core.errors import AtollError, CheckpointError, JobError, NotFound, StorageError
from atoll.core.layout import Array
from atoll.core.metrics import Metric, Metrics, merge_metrics, values
from atoll.core.values import Broadcast, ClientId, Merged
from atoll.job.islands import Islands
from atoll.job.standing import Standing
from atoll.privacy.links.mask import FEWEST
from atoll.privacy.secagg.terms import model_digest
from atoll.report.folder import RunFolder, plain
from atoll.runs.session import Session
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import Progress
from atoll.runtime.figures import lanes_of, metrics_of
from atoll.runtime.live import Live
from atoll.runtime.loop import Evaluate, Evaluation, Finished, Loop, Next, Train
from atoll.runtime.pace import Pace
from atoll.runtime.pattern import lanes_at
from atoll.runtime.schedule import Asynchronous, Plan
from atoll.server.office import Office
from atoll.server.rounds.ahead import foreseen
from atoll.server.rounds.answers import Expected
from atoll.server.rounds.buffering import Buffering, is_ready, opening
from atoll.server.rounds.counter import Counter
from atoll.server.rounds.desk import Call, Desk, Take
from atoll.server.rounds.folding import Pattern, TrainFold, pattern_of
from atoll.server.rounds.masking import Masking
from atoll.server.rounds.preparing import Prepared, body_of
from atoll.server.rounds.slabs import BySlabs
from atoll.server.rounds.summing import masking_of, summed_round, summing_of, told_alike
from atoll.server.store.contract import RoundRow, RunRow
from atoll.wire.frames import Blob
from atoll.wire.messages import BlobRef, ResultBody, TaskBody
from atoll.wire.metrics import metrics_from_plain

__all__ = ["Playing"]

_NOTHING: Any = None
_LARGE = 1 << 18
"""Bytes of a model whose hash is worth a thread."""

_KEPT = 2
"""So many checkpoints are kept."""


class Playing:
    """The rounds of one run.

    Args:
        office: of the server.
        row: the run.
        prepared: what came of its preparation.
        counter: of the run.

    Attributes:
        unheard: whether nobody can have answered the next call before it is opened, neither to this
            server nor to one before it.
    """

    def __init__(self, office: Office, row: RunRow, prepared: Prepared, counter: Counter) -> None:
        self._office = office
        self._row = row
        self._plan = prepared.plan
        self._figures, self._key = prepared.figures, prepared.key
        parts = prepared.parts
        ends = isinstance(parts.algorithm, Finishing)  # a statistic: small, and asked when it ends
        self._parts = parts if ends else replace(parts, algorithm=BySlabs(parts.algorithm))
        self._job = job = prepared.job
        self._counter = counter
        self._session = Session(
            job,
            self._parts,
            Islands(train={}) if job.islands is None else job.islands(job.seed),
            RunFolder(office.folder(row.id)),
            datetime.fromtimestamp(row.created, UTC),
        )
        self.unheard = self._fresh = False
        self._opened = 0
        schedule, size = job.schedule, 0
        if isinstance(schedule, Asynchronous) and masking_of(row, self._parts) is not None:
            size = schedule.buffer
        self._buffering = Buffering(office, row.id, size) if size else None
        self._live: Live | None = None
        self._fold: TrainFold | None = None
        self._pattern: Pattern | None = None
        self._version = 0
        self._record: Mapping[str, Any] = {}
        self._trained: dict[ClientId, str] = {}
        self._answers: dict[str, str] = {}
        self._kept: dict[ClientId, str] = {}
        self._models: dict[int, Blob] = {}
        self._checkpoints: list[str] = []
        self._other = ThreadPoolExecutor(1, "atoll-show")

    def calls(self) -> Generator[Call, Sequence[Outcome], str]:
        """The calls to sites; returns how the run ended.

        Raises:
            AtollError: the run cannot go on; see :meth:`atoll.runtime.loop.Loop.play`.
        """
        office, row = self._office, self._row
        office.store.set_run(office.epoch, row.id, phase="running")
        loop = Loop(
            self._parts,
            schedule=self._job.schedule,
            clock=self._job.clock,
            evaluation=Evaluation(self._job.evaluate_every, None, self._job.federated),
            stop=self._job.stop,
            observers=(self._note,),
            save=self._save,
        )
        steps = loop.play(foreseen(office.blobs, self._resumed(), self._job.stop.rounds))
        answer = _NOTHING
        while True:
            try:
                # No name here for the call: it would keep the last model in memory beside the next.
                answer = yield from self._answer(steps.send(answer))
            except StopIteration as end:
                return self._finish(end.value)

    def close(self, desk: Desk) -> None:
        """A call has ended; to be told before its outcomes are sent to :meth:`calls`."""
        self._live = desk.live
        self._answers |= desk.digests

    def failed(self, status: str) -> None:
        """Leave an honest folder behind a run that ended before its time."""
        self._session.left(status, self._last())

    # Calls --------------------------------------------------------------------------------------

    def _answer(self, call: Next | Train | Evaluate) -> Generator[Call, Sequence[Outcome], Any]:
        if isinstance(call, Next):
            return (yield from self._plan_next(call))
        if isinstance(call, Train):
            return (yield from self._train(call))
        return (yield from self._evaluate(call))

    def _plan_next(self, call: Next) -> Generator[Call, Sequence[Outcome], tuple[Plan, Pace]]:
        """The next step: the schedule's own, or in an asynchronous run what really arrives."""
        if not isinstance(call.schedule, Asynchronous):
            return call.planned()
        office, buffering = self._office, self._buffering
        silence, now, prefix = office.settings.progress, office.now(), self._flights
        crew = None if buffering is None else buffering.crew(call.number)
        live = Live.start(call, prefix, now, now + self._deadline, silence, crew)
        live = live if buffering is None else buffering.again(live)
        kind = "train" if crew is None else "fit"
        tasks = [
            self._training(flight.task, flight.number, call.broadcasts, kind)
            for flight in live.flights
        ]
        if buffering is not None:
            yield self._call(tasks, Expected(), is_ready, live.buffer, live)
            if self._live is None:
                raise JobError("an asynchronous step ended without its plan")
            buffering.note(call.number, self._live)
            return self._live.planned()
        fold = self._folding([flight.task for flight in live.flights], call.broadcasts, live.buffer)
        yield self._call(tasks, fold.expected, fold.take, 1, live)
        if self._live is None:
            raise JobError("an asynchronous step ended without its plan")
        self._fold = fold
        self._trained = {t.client: t.id for t in tasks}
        return self._live.planned()

    def _train(self, call: Train) -> Generator[Call, Sequence[Outcome], Any]:
        masking = summing_of(self._row, self._parts, self._key)
        if masking is not None:
            if self._job.study is not None:  # whose questions have another shape in each round
                task = call.tasks[0]
                lanes = lanes_at(self._parts, task, call.broadcasts[task.version])
                masking = replace(masking, lanes=lanes)
            return (yield from self._masked(call, masking))
        if self._fold is not None and self._live is not None:  # folded as they came
            fold, self._fold = self._fold, None
            outcomes: Sequence[Outcome] = self._live.outcomes()
        else:
            fold = self._folding(call.tasks, call.broadcasts, len(call.tasks))
            tasks = [self._training(task, call.number, call.broadcasts) for task in call.tasks]
            outcomes = yield self._call(tasks, fold.expected, fold.take, call.quorum)
            self._trained = {task.client: task.id for task in tasks}
        done = {outcome.client for outcome in outcomes if outcome.status == "contributed"}
        self._trained = {site: name for site, name in self._trained.items() if site in done}
        return fold.aggregate(), outcomes, {}

    def _masked(self, call: Train, masking: Masking) -> Generator[Call, Sequence[Outcome], Any]:
        """A round whose sum alone is seen here."""

        def make(kind: str, task: Task, name: str, said: Blob) -> TaskBody:
            return self._training(
                task, call.number, call.broadcasts, kind=kind, name=name, said=BlobRef.of(said)
            )

        version = call.tasks[0].version if call.tasks else 0
        some = [self._training(task, call.number, call.broadcasts) for task in call.tasks[:1]]
        how = told_alike(masking, some, buffered=self._buffering is not None)
        if self._buffering is None:
            told, model = None, model_digest(call.broadcasts[version].vectors)
        else:
            starts = self._buffering.starts(call)
            told, model = {"starts": starts.to_plain()}, starts.mark
        office, row, number = self._office, self._row, call.number
        more: dict[str, Any] = {"begun": not self._fresh, "told": told, "least": call.quorum}
        masked = summed_round(office, row, how, number, model, make, self._deadline, **more)
        summed = yield from masked.play(call.tasks)
        self._answers |= masked.answers
        self._trained = dict(summed.trained)
        self._opened = opening(masked)
        return summed.aggregate, summed.outcomes, {}

    def _folding(
        self, tasks: Sequence[Task], models: Mapping[int, Broadcast], updates: int
    ) -> TrainFold:
        if tasks and (self._pattern is None or self._job.study is not None):
            self._pattern = pattern_of(self._parts, tasks[0], models[tasks[0].version])
        pattern = self._pattern or Pattern(Expected(), {}, False, False)
        return TrainFold(self._parts, pattern, updates, self._frame)

    def _frame(self, task: str) -> memoryview:
        return self._office.blobs.view(self._answers[task])

    def _training(
        self,
        task: Task,
        number: int,
        models: Mapping[int, Broadcast],
        kind: str = "train",
        **more: Any,
    ) -> TaskBody:
        return self._body(
            kind,
            number,
            task.client,
            models[task.version],
            scale=task.scale,
            fraction=task.fraction,
            repeat=task.repeat,
            kept=self._kept.get(task.client, ""),
            **more,
        )

    def _evaluate(
        self, call: Evaluate
    ) -> Generator[Call, Sequence[Outcome], Mapping[ClientId, Metrics] | Merged]:
        # What a site learned in this round is its memory, if the round is going to be committed.
        kept = self._kept
        if call.broadcast.version > self._version:
            kept = {**kept, **self._trained}
        masking = summing_of(self._row, self._parts, self._key)
        if masking is not None:
            return (yield from self._figures_masked(call, masking, kept))
        tasks = [
            self._body("evaluate", call.number, c, call.broadcast, kept=kept.get(c, ""))
            for c in call.clients
        ]
        found: dict[ClientId, Metrics] = {}

        def take(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
            found[task.client] = metrics_from_plain(body.metrics)

        yield self._call(tasks, Expected(), take, 1)
        return alike(found, call.clients)

    def _figures_masked(
        self, call: Evaluate, masking: Masking, kept: Mapping[ClientId, str]
    ) -> Generator[Call, Sequence[Outcome], Merged]:
        """Figures of held-out rows, of which the sum alone is seen here."""
        kinds = self._figures
        if len(call.clients) < FEWEST or not kinds:
            return Merged({}, ())

        def make(kind: str, task: Task, name: str, said: Blob) -> TaskBody:
            site = task.client
            more: dict[str, Any] = {"said": BlobRef.of(said), "about": "evaluate"}
            more["kept"] = kept.get(site, "")
            return self._body(kind, call.number, site, call.broadcast, name, **more)

        alone = self._body("evaluate", call.number, call.clients[0], call.broadcast)
        masked = summed_round(
            self._office,
            self._row,
            told_alike(replace(masking, lanes=lanes_of(kinds)), [alone]),
            call.number,
            model_digest(call.broadcast.vectors),
            make,
            self._deadline,
            begun=not self._fresh,
            about="evaluate",
        )
        version = call.broadcast.version
        summed = yield from masked.play([Task(site, version) for site in call.clients])
        self._answers |= masked.answers
        members = tuple(o.client for o in summed.outcomes if o.status == "contributed")
        return Merged(metrics_of(kinds, summed.aggregate.sums) if members else {}, members)

    def _call(
        self,
        tasks: list[TaskBody],
        expected: Expected,
        take: Take,
        quorum: int,
        live: Live | None = None,
    ) -> Call:
        limits = self._deadline, self._office.settings.progress, max(1, quorum)
        return Call(tasks, expected, take, *limits, live, together=live is None)

    def _body(
        self,
        kind: str,
        number: int,
        site: ClientId,
        broadcast: Broadcast,
        name: str = "",
        **more: Any,
    ) -> TaskBody:
        version = broadcast.version
        if version not in self._models:
            self._models[version] = self._show(broadcast)
        model = BlobRef.of(self._models[version])
        # A round that a stop has cut off may be made anew of other answers: what was said of the model
        # that it had then must not pass for an answer about the new one.
        which = f"-{model.sha256[:8]}" if kind == "evaluate" else ""
        name = name or f"{self._row.id}.{kind}.{number}{which}.{site}"
        return body_of(
            self._row,
            self._plan,
            kind,
            number,
            site,
            name,
            version=version,
            broadcast=model,
            **more,
        )

    # Records ------------------------------------------------------------------------------------

    def _resumed(self) -> Progress:
        """Where the last committed round left the run, or its start."""
        store, blobs, run = self._office.store, self._office.blobs, self._row.id
        self._kept = {site: store.kept(run, site) for site in self._row.sites}
        rows = store.rounds(run)
        self._drop_checkpoints([row.checkpoint for row in rows[-_KEPT - 1 :]])
        if not rows:
            RunFolder(self._office.folder(run)).truncate(0)
            return self._start()
        if not blobs.has(rows[-1].checkpoint):
            raise CheckpointError(
                f"the checkpoint of round {rows[-1].number} is not among the blobs",
                remedy="restore store and blobs from one and the same backup",
            )
        raw = bytes(blobs.view(rows[-1].checkpoint))
        progress, notes = checkpoint.decode(raw, self._job.hash())
        # The folder's records are a copy: what a stop has torn or added is written anew.
        self._session.continued(progress, notes, [row.record for row in rows])
        self._version = progress.state.round
        return progress

    def _last(self) -> Progress | None:
        """What the last committed round has left; None before the first, or where it cannot be read."""
        with contextlib.suppress(CheckpointError, NotFound, StorageError, IndexError):
            raw = bytes(self._office.blobs.view(self._checkpoints[-1]))
            return checkpoint.decode(raw, self._job.hash())[0]
        return None

    def _start(self) -> Progress:
        """As :meth:`atoll.runtime.loop.Loop.start`, without a copy of the initial vector."""
        trainer, parts = self._parts.trainer, self._parts
        initial = trainer.start if isinstance(trainer, Standing) else trainer.initial(parts.seed)
        state = parts.algorithm.init(initial, trainer.layout, len(parts.clients))
        return Progress(parts.chain.begun(state, trainer.layout))

    def _note(self, record: Mapping[str, Any]) -> None:
        self._record = record
        self._session.record(record)

    def _save(self, progress: Progress) -> None:
        """Commit a round."""
        office, run, record = self._office, self._row.id, self._record
        notes = {**self._session.notes, "run": run}
        trained = self._trained if record["committed"] else {}
        with self._showing(progress) as shown:
            pieces, digest = checkpoint.named(progress, self._job.hash(), notes)
            blob = office.blobs.put_pieces(pieces, Blob(digest, sum(map(len, pieces))))
            row = RoundRow(
                run=run,
                number=progress.rounds,
                record=plain({**record, **office.heads(self._row.sites)}),
                checkpoint=blob.sha256,
                model_hash=record["model_hash"],
                tasks=tuple(trained.values()),
            )
            for answer in (answers := self._counter.waiting()):  # the checkpoint is what came of it
                office.blobs.delete(self._answers.pop(answer.task, answer.sha256))
            self._counter.wrote(answers, office.store.commit_round(office.epoch, row, answers))
        self._kept |= trained
        self._version = progress.state.round
        self._models |= shown
        flying = {f"{self._flights}{event[1]}.{event[2]}" for event in progress.pace.events}
        self._counter.commit(flying)
        if self._buffering is not None:
            done = bool(record["committed"])
            self._buffering.ended(progress.rounds - 1, self._opened, committed=done)
        self._opened = 0
        self._fresh, self.unheard = True, not isinstance(self._job.schedule, Asynchronous)
        self._clean(progress, blob.sha256, flying)
        office.tell({f"run {run}"})

    @contextlib.contextmanager
    def _showing(self, progress: Progress) -> Iterator[dict[int, Blob]]:
        """While a round is committed, another core makes what tasks will name that are opened after it."""
        state, shown = progress.state, dict[int, Blob]()
        over = progress.rounds >= self._job.stop.rounds
        if state.parameters.nbytes < _LARGE or state.round in self._models or over:
            yield shown
            return
        made = self._other.submit(self._show, self._parts.broadcast(state))
        try:
            yield shown
        finally:
            wait([made])
        shown[state.round] = made.result()

    def _show(self, broadcast: Broadcast) -> Blob:
        body = {"run": self._row.id, "version": broadcast.version}
        return self._office.show(self._row.id, body, broadcast.vectors)

    def _clean(self, progress: Progress, newest: str, flying: Collection[str]) -> None:
        """Delete what the committed round has made useless."""
        office = self._office
        for name in self._answers.keys() - flying:
            office.blobs.delete(self._answers.pop(name))
        self._trained = {}
        needed = {progress.state.round, *progress.pace.versions()}
        for version in set(self._models) - needed:
            office.hide(self._row.id, self._models.pop(version))
        self._drop_checkpoints([*self._checkpoints, newest])

    def _drop_checkpoints(self, names: Sequence[str]) -> None:
        for name in names[:-_KEPT]:
            self._office.blobs.delete(name)
        self._checkpoints = list(names[-_KEPT:])

    def _finish(self, finished: Finished) -> str:
        return self._session.finish(finished).status

    @property
    def _flights(self) -> str:
        """How the ids of an asynchronous run's tasks at work start."""
        return f"{self._row.id}.{'train' if self._buffering is None else 'fit'}."

    @property
    def _deadline(self) -> float:
        own = getattr(self._job.schedule, "deadline", None)
        return own if own is not None and own < float("inf") else self._office.settings.round


def alike(found: Mapping[ClientId, Metrics], order: Sequence[ClientId]) -> dict[ClientId, Metrics]:
    """The metrics that can be merged: those of the kinds that most sites sent.

    Args:
        found: what sites sent.
        order: of the sites, for ties.
    """

    def kinds(metrics: Mapping[str, Metric]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, type(m).__name__) for name, m in metrics.items()))

    sent = [kinds(found[c]) for c in order if c in found]
    usual = max(sent, key=sent.count, default=())
    kept: dict[ClientId, Metrics] = {}
    total: Metrics = {}
    for client in order:
        if client not in found or kinds(found[client]) != usual:
            continue
        try:
            total = merge_metrics(total, found[client])
            values(found[client])
        except (TypeError, ValueError, ArithmeticError, AtollError):
            continue
        kept[client] = found[client]
    return kept
