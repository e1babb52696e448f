"""Sites that answer statistics with the node's own code: their rule, their query log, and then the sums."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import played_sites as played

from atoll.core.contracts import Task
from atoll.core.errors import AtollError
from atoll.core.values import Broadcast
from atoll.data.table import Table
from atoll.job.schema import JobSpec
from atoll.node.datasets import Datasets, digest_of, open_table
from atoll.node.policy.queries import Answering
from atoll.node.rules import Rule
from atoll.wire.messages import TaskBody


def write_table(path: Path, table: Table) -> Path:
    """A table as a CSV file whose numbers read back as the same bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.names)
        for row in zip(*(column.tolist() for column in table.columns.values()), strict=True):
            writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    return path


class RuledSite(played.Site):
    """A site with a register of datasets.

    Attributes:
        doctor: changes what the server says all sites agreed on, before the site sees it.
    """

    def __init__(self, name: str, table: Any, home: Path, dataset: str) -> None:
        super().__init__(name, table)
        self.home, self.dataset = home, dataset
        self.register = Datasets(home / "datasets.toml")
        self.register.add(dataset, write_table(home / "data" / f"{dataset}.csv", table))
        self.doctor: Callable[[Any], Any] = lambda agreed: agreed

    def govern(self, **rule: Any) -> None:
        """Set the rule of the dataset."""
        self.register.govern(self.dataset, Rule(**rule))

    @property
    def log(self) -> Path:
        """The query log."""
        return Path(self.register.get(self.dataset).queries)

    def _study(
        self, service: Any, task: TaskBody, body: dict[str, Any], spec: JobSpec, agreed: Any
    ) -> dict[str, Any]:
        try:
            return self._ruled(service, task, body, spec, agreed)
        except AtollError as error:
            body |= {"status": "refused", "reason": str(error)[:1000]}
            return {}

    def _ruled(
        self, service: Any, task: TaskBody, body: dict[str, Any], spec: JobSpec, agreed: Any
    ) -> dict[str, Any]:
        sites = len(self._fetch(service, task.plan)[0]["sites"])
        dataset = self.register.get(self.dataset)
        rows, digest = open_table(dataset), digest_of(dataset.path)
        at = Answering(spec, self.name, sites, dataset)  # made anew: nothing is remembered
        agreed = agreed and self.doctor(agreed)
        if task.kind == "survey":
            body["answer"] = at.survey(rows)
            return {}
        if task.kind == "ready":
            body["answer"] = at.ready(agreed, rows, digest)
            return {}
        asked = Broadcast(task.version, self._fetch(service, task.broadcast)[1])
        work = Task(self.name, task.version, task.scale, task.fraction, task.repeat)
        update = at.answer(agreed, rows, digest, work, asked)
        body |= {"examples": update.examples, "weight": update.weight}
        return dict(update.vectors)


class RuledWorld(played.World):
    """A server and such sites."""

    def __init__(self, home: Path, sites: Mapping[str, Any], dataset: str = "rows") -> None:
        self.dataset = dataset
        super().__init__(home, sites)

    def site(self, name: str, table: Any) -> RuledSite:
        return RuledSite(name, table, self.home / "nodes" / name, self.dataset)

    def asked(self, spec: JobSpec) -> Any:
        """Submit and run a job; its row when it has ended."""
        run = self.submit(spec)
        self.run()
        return self.store.run(run)
