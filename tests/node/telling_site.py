"""A site whose worker answers in this process, and rows with a few persons who are after nobody's business."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import AtollError
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.datasets import Dataset
from atoll.node.orders import DatasetBody, Order
from atoll.node.policy.leaving import checked
from atoll.node.room.workplace import Workplace, written
from atoll.node.rules import Rule
from atoll.wire.frames import Allowed, encode, open_frame
from atoll.wire.messages import BlobRef, TaskBody

OFF = Rule(minimum=1)
ON = Rule()
STRICT = Rule(training="strict")
BY_PATIENT = Rule(person="patient")
ANY = Allowed(most_arrays=100, most_bytes=1 << 30)


def rows(n: int = 60) -> dict[str, list[Any]]:
    """Ordinary rows; attacks change a few cells."""
    draw = np.random.default_rng(5)
    return {
        "age": [float(a) for a in draw.integers(30, 80, n)],
        "dose": [round(float(d), 2) for d in draw.gamma(2.0, 3.0, n)],
        "smokes": [float(i % 2) for i in range(n)],
        "clan": [("north", "south", "west")[i % 3] for i in range(n)],
        "sick": [("no", "yes")[i // 2 % 2] for i in range(n)],
        "patient": [f"p{i}" for i in range(n)],
    }


def changed(n: int = 60, **cells: Mapping[int, Any]) -> dict[str, list[Any]]:
    """The rows with other cells, by column and number of the row."""
    made = rows(n)
    for name, own in cells.items():
        made.setdefault(name, [""] * n)
        for row, value in own.items():
            made[name][row] = value
    return made


def job(**over: Any) -> dict[str, Any]:
    """A job on such rows, as tables of a job file."""
    columns = {
        "age": {"type": "number"},
        "dose": {"type": "number"},
        "smokes": {"type": "boolean"},
        "clan": {"type": "category", "categories": ["north", "south", "west", "rare"]},
    }
    data: dict[str, Any] = {
        "source": "sites/*.csv",
        "target": "sick",
        "classes": ["no", "yes"],
        "test_fraction": 0.4,
        "drop": ["patient"],
        "columns": columns,
    }
    tables: dict[str, Any] = {"name": "spy", "seed": 3, "data": data, "model": {"kind": "logistic"}}
    for key, table in over.items():
        tables[key] = {**tables.get(key, {}), **table}
    own = over.get("data", {}).get("columns", {})
    tables["data"]["columns"] = {**columns, **own}
    for name in tables["data"].pop("undeclared", ()):
        del tables["data"]["columns"][name]
    return tables


class Told:
    """One site and one job; what the node would send, task by task.

    Args:
        folder: an empty one.
        table: the rows, by column.
        rule: of the dataset.
        over: of the job.
    """

    def __init__(
        self, folder: Path, table: Mapping[str, list[Any]] | Path, rule: Rule, **over: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, 0
        path = table if isinstance(table, Path) else folder / "sites.csv"
        if not isinstance(table, Path):
            lines = [
                ",".join(table),
                *(",".join(map(_text, r)) for r in zip(*table.values(), strict=True)),
            ]
            path.write_text("\n".join(lines) + "\n")
        self.spec = parse_job(job(**over), folder=folder)
        self.data = Dataset("sites", str(path), rule=rule, queries=str(folder / "q.jsonl"))
        self.place = Workplace(folder)
        self.schema: Any = None
        self.sent: list[str] = []

    def order(self, kind: str, sums: Any = None, model: Any = None) -> Order:
        """One task for the worker."""
        self.count += 1
        body = {"run": "r1", "spec": spec_to_plain(self.spec), "sites": ["east", "west"]}
        body["schema"] = None if self.schema is None else deployed.schema_to_plain(self.schema)
        plan, cast = self.folder / f"plan{self.count}", self.folder / f"cast{self.count}"
        plan.write_bytes(encode(body, sums or {}))
        cast.write_bytes(encode({"version": 0}, model or {}))
        task = TaskBody(
            id=f"r1.{kind}.{self.count}.east",
            run="r1",
            kind=kind,  # type: ignore[arg-type]  # one of the known ones
            number=self.count,
            client="east",
            plan=BlobRef(sha256="0" * 64, size=0),
        )
        return Order(
            task=task,
            plan=str(plan),
            broadcast=str(cast),
            result=str(self.folder / f"result{self.count}"),
            keep=str(self.folder / f"keep{self.count}"),
            dataset=DatasetBody.model_validate(self.data.to_plain()),
        )

    def write(self, order: Order, fields: Mapping[str, Any]) -> None:
        """What a worker that runs somebody's code might write in the place of its answer."""
        Path(order.result).write_bytes(encode(written(order.task.id, "done", **fields)))

    def ask(self, kind: str, sums: Any = None, model: Any = None) -> tuple[dict[str, Any], Any]:
        """One task; its answer as the node would send it.

        Raises:
            AtollError: it was refused, in the words that others hear.
        """
        order = self.order(kind, sums, model)
        self.place.carry_out(order)
        found = checked(order)
        self.sent.append(found.model_dump_json())
        if found.status != "done":
            raise AtollError(found.reason)
        return found.model_dump(), open_frame(Path(order.result), ANY)[1]

    def survey(self) -> dict[str, Any]:
        """What is told of the columns, as the server sees it."""
        answer: dict[str, Any] = self.ask("survey")[0]["answer"]
        return answer

    def agreed(self) -> Told:
        """With a schema, from what was told."""
        self.schema = deployed.agree(self.spec, {"east": self.survey()})
        return self

    def sums(self) -> Mapping[str, Any]:
        """Sums of the training rows."""
        found = self.agreed().ask("sums")[1]
        return {name: np.array(v) for name, v in found.items()}

    def ready(self) -> dict[str, Any]:
        """What is told before the first round."""
        answer: dict[str, Any] = self.ask("ready", self.sums())[0]["answer"]
        return answer

    def evaluated(self, *weights: float) -> dict[str, Any]:
        """Figures of the held-out rows under a model of the asker's choice."""
        sums = self.sums()
        answer = self.ask("ready", sums)[0]["answer"]
        size = deployed.layout_from_plain(answer["layout"]).size
        vector = np.zeros(size, self.spec.model.dtype)
        vector[: len(weights)] = weights
        found: dict[str, Any] = self.ask("evaluate", sums, {"parameters": vector})[0]["metrics"]
        return found


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def ranged(most: float) -> dict[str, Any]:
    return {"columns": {"age": {"type": "number", "range": [0, most]}}}
