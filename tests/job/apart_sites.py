"""A deployment without machines: each site has its own table and parts, and all they say passes JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory
from atoll.job import deployed
from atoll.job.build import Job
from atoll.job.discretion import OPEN, Discretion
from atoll.job.islands import Islands
from atoll.job.package import spec_from_plain, spec_to_plain
from atoll.job.schema import JobSpec
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import Parts, answer_task, evaluate_client
from atoll.runtime.loop import Evaluation, Loop
from atoll.runtime.threads import Threads


def sent(plain: Any) -> Any:
    """What arrives when it is sent."""
    return json.loads(json.dumps(plain, allow_nan=False))


@dataclass(frozen=True, eq=False)
class Apart:
    """An executor that asks each site's own parts, in an order that is not the tasks'."""

    sites: Mapping[ClientId, Parts]

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        fold, outcomes, changed = Fold(len(tasks)), {}, {}
        with Threads().one():
            for task in reversed(tasks):
                own = memories.get(task.client, {})
                update, kept = answer_task(
                    self.sites[task.client], task, broadcasts[task.version], own
                )
                fold.add(update, task.scale)
                outcomes[task.client] = Outcome(task.client, "contributed", update.examples)
                if kept:
                    changed[task.client] = kept
        return fold.aggregate(), [outcomes[task.client] for task in tasks], changed

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        with Threads().one():
            return {
                c: evaluate_client(self.sites[c], parameters.parameters, c, memories.get(c, {}))
                for c in clients
            }

    def close(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Deployment:
    """A run that is ready to begin."""

    job: Job
    parts: Parts
    sites: Mapping[ClientId, Parts]
    islands: Mapping[ClientId, Islands]
    answers: Mapping[ClientId, Mapping[str, Any]]

    def run(self) -> Any:
        """The final progress and the records of its rounds."""
        records: list[Mapping[str, Any]] = []
        loop = Loop(
            self.parts,
            Apart(self.sites),
            schedule=self.job.schedule,
            clock=self.job.clock,
            evaluation=Evaluation(self.job.evaluate_every, None, self.job.federated),
            stop=self.job.stop,
            observers=[records.append],
        )
        return loop.run().progress, records

    def model_hash(self) -> str:
        return model_hash(self.run()[0].state.parameters)


def islands_apart(
    spec: JobSpec, tables: Mapping[ClientId, Any], rule: Discretion = OPEN
) -> dict[ClientId, Islands]:
    """The preparation up to each site's own rows."""
    surveys = {s: sent(deployed.survey(spec, s, table, rule)) for s, table in tables.items()}
    schema = deployed.agree(spec, surveys)
    assert deployed.schema_from_plain(sent(deployed.schema_to_plain(schema))) == schema
    fold = Fold(len(tables))
    for site, table in reversed(tables.items()):
        fold.add(deployed.column_sums_at(spec, schema, site, table, rule))
    sums = fold.aggregate().sums
    return {s: deployed.islands_at(spec, schema, sums, s, t, rule) for s, t in tables.items()}


def deployment(
    spec: JobSpec, folder: Path, tables: Mapping[ClientId, Any], rule: Discretion = OPEN
) -> Deployment:
    """The whole preparation, from a job that was sent and tables that were not."""
    spec = spec_from_plain(sent(spec_to_plain(spec)))
    islands = islands_apart(spec, tables, rule)
    sites = {site: deployed.parts_at(spec, own, folder, site) for site, own in islands.items()}
    answers = {site: sent(deployed.ready(sites[site], islands[site])) for site in sites}
    first = next(iter(sites))
    layout = deployed.layout_from_plain(answers[first]["layout"])
    initial = deployed.initial_vector(sites[first])
    job, parts = deployed.coordinator(spec, layout, initial, answers)
    return Deployment(job, parts, sites, islands, answers)
