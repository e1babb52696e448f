"""Sites with small tables, each with a server in this process (:class:`~fake_server.FakeServer`).

:class:`Deployed` runs a job's preparation and rounds over such servers, one for each site.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fake_server import FakeServer

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.values import Update
from atoll.data.readers import read_table
from atoll.data.table import Table
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.job.package import pack, spec_digest, spec_to_plain
from atoll.node.agent import Agent
from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.node.policy.steward import opened
from atoll.node.settings import Limits, Settings
from atoll.runtime.loop import Evaluation, Loop
from atoll.wire.frames import encode
from atoll.wire.identity import Identity
from atoll.wire.messages import (
    BlobRef,
    ResultBody,
    SignedBody,
    TaskBody,
)
from atoll.wire.metrics import metrics_from_plain
from atoll.wire.submissions import Submission

KEYS: dict[str, Identity] = {}
"""Of researchers, by name."""


# Sites ------------------------------------------------------------------------------------------


def table_text(seed: int, rows: int = 60) -> str:
    """A small table with two classes that can be learned."""
    draw = np.random.default_rng(seed)
    x = draw.normal(seed / 3, 1, (rows, 2))
    y = (x @ [1.5, -1] + draw.normal(0, 0.3, rows) > seed / 6).astype(int)
    y[:4] = [0, 1, 0, 1]
    lines = [f"{a:.6f},{b:.6f},{c}" for (a, b), c in zip(x, y, strict=True)]
    return "\n".join(["a,b,sick", *lines]) + "\n"


def job_tables(**over: Any) -> dict[str, Any]:
    """A job on these tables, as nested tables of a job file."""
    tables: dict[str, Any] = {
        "name": "toy",
        "seed": 3,
        "data": {"source": "sites/*.csv", "target": "sick", "test_fraction": 0.3},
        "model": {"kind": "logistic"},
        "local": {"epochs": 1, "batch_size": 8, "lr": 0.1},
        "algorithm": {"name": "scaffold", "weights": "uniform"},
        "rounds": {"count": 3},
        "evaluation": {"compare": False},
    }
    for name, table in over.items():
        tables[name] = {**tables.get(name, {}), **table} if isinstance(table, dict) else table
    return tables


LIMITS = Limits(memory=4.0, seconds=60.0, cpu=60)


def node_at(
    folder: Path,
    name: str,
    server: Any,
    table: str | None = None,
    steward: bool = False,
    **settings: Any,
) -> Agent:
    """A node with one dataset, called as the job's is; with a ledger where it has a steward."""
    home = Home(folder / name)
    home.make()
    if table is not None:
        path = folder / f"{name}.csv"
        path.write_text(table)
        Datasets(home.datasets).add("sites", path)
    made = Settings(**{"limits": LIMITS, **settings})
    if steward and not home.identity.exists():
        Identity.create(home.identity)
    rules = opened(home, made) if steward else None
    return Agent(home, name, server, made, jitter=lambda: 0.0, steward=rules)


class Running:
    """A node's thread."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.thread = threading.Thread(target=agent.run, daemon=True)

    def __enter__(self) -> Agent:
        self.thread.start()
        return self.agent

    def __exit__(self, *ended: object) -> None:
        self.agent.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


def eventually(what: Any, seconds: float = 45.0) -> None:
    """Wait until ``what()`` holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.005)


# A deployed run -----------------------------------------------------------------------------------


class Deployed:
    """A job over fake servers: the preparation, then an executor for the real loop."""

    def __init__(
        self, spec: Any, servers: dict[str, FakeServer], folder: Path, run: str = "r1"
    ) -> None:
        self.spec, self.servers, self.run_id = spec, servers, run
        self.files = pack(spec, folder).files
        self.kept = dict.fromkeys(servers, "")
        self.number = 0
        self.by, self.federation = "ana", ""
        self.schema: Any = None
        self.sums: dict[str, Any] = {}

    def alone(self, rows: Table) -> None:
        """As after the preparation of a run whose only site has these rows."""
        (site,) = self.servers
        self.schema = deployed.agree(self.spec, {site: deployed.survey(self.spec, site, rows)})
        self.sums = dict(deployed.column_sums_at(self.spec, self.schema, site, rows).vectors)

    def signed(self, code: Mapping[str, BlobRef]) -> SignedBody:
        """As the researcher ``by`` signs this job with this code."""
        files = {name: ref.sha256 for name, ref in code.items()}
        nonce = hashlib.sha256(self.run_id.encode()).hexdigest()[:32]
        told = Submission(self.federation, self.by, spec_digest(self.spec), files, (), nonce)
        return told.signed(KEYS.setdefault(self.by, Identity.fresh()))

    def plan(self, code: Mapping[str, BlobRef]) -> bytes:
        schema = None if self.schema is None else deployed.schema_to_plain(self.schema)
        body = {
            "run": self.run_id,
            "by": self.by,
            "signed": self.signed(code).model_dump(),
            "spec": spec_to_plain(self.spec),
            "sites": sorted(self.servers),
            "schema": schema,
        }
        return encode(body, self.sums)

    def task(
        self, kind: str, site: str, *, broadcast: bytes | None = None, **more: Any
    ) -> TaskBody:
        server = self.servers[site]
        code = {name: server.keep(raw) for name, raw in self.files.items()}
        more = {"kept": self.kept[site], "code": code, **more}
        return TaskBody(
            id=f"{self.run_id}.{kind}.{self.number}.{site}",
            run=self.run_id,
            kind=kind,
            number=self.number,
            client=site,
            plan=server.keep(self.plan(more["code"])),
            broadcast=None if broadcast is None else server.keep(broadcast),
            **more,
        )

    def ask(self, kind: str, **more: Any) -> dict[str, tuple[ResultBody, dict[str, Any]]]:
        """One call to every site."""
        asked = {s: srv.offer(self.task(kind, s, **more)) for s, srv in self.servers.items()}
        found = {site: self.servers[site].result(task.id) for site, task in asked.items()}
        for site, (body, _) in found.items():
            assert body.status == "done", f"{site}: {body.reason}"
        return found

    def prepare(self) -> Loop:
        self.schema = deployed.agree(
            self.spec, {s: body.answer for s, (body, _) in self.ask("survey").items()}
        )
        fold = Fold(len(self.servers))
        for body, arrays in self.ask("sums").values():
            fold.add(Update(arrays, 1.0, body.examples))
        self.sums = dict(fold.aggregate().sums)
        answers = self.ask("ready", initial=True)
        first = answers[min(answers)][1]["initial"]
        layout = deployed.layout_from_plain(answers[min(answers)][0].answer["layout"])
        job, parts = deployed.coordinator(
            self.spec, layout, first, {s: body.answer for s, (body, _) in answers.items()}
        )
        return Loop(
            parts,
            self,
            schedule=job.schedule,
            evaluation=Evaluation(1, None, bool(parts.held_out)),
            stop=job.stop,
        )

    # An executor, as the loop wants it.

    def run(self, tasks: Any, broadcasts: Any, memories: Any) -> Any:
        fold, outcomes = Fold(len(tasks)), []
        bodies = [self._train(task, broadcasts[task.version]) for task in tasks]
        for task, asked in zip(tasks, bodies, strict=True):
            body, arrays = self.servers[task.client].result(asked.id)
            assert body.status == "done", body.reason
            metrics = metrics_from_plain(body.metrics)
            fold.add(Update(arrays, body.weight, body.examples, metrics), task.scale)
            outcomes.append(Outcome(task.client, "contributed", body.examples))
            self.kept[task.client] = asked.id
        self.number += 1
        return fold.aggregate(), outcomes, {}

    def _train(self, task: Task, broadcast: Any) -> TaskBody:
        raw = encode({"version": broadcast.version}, broadcast.vectors)
        body = self.task(
            "train",
            task.client,
            broadcast=raw,
            version=task.version,
            scale=task.scale,
            fraction=task.fraction,
            repeat=task.repeat,
        )
        return self.servers[task.client].offer(body)

    def evaluate(self, parameters: Any, clients: Any, memories: Any) -> Any:
        raw = encode({"version": parameters.version}, parameters.vectors)
        found = self.ask("evaluate", broadcast=raw, version=parameters.version)
        return {s: metrics_from_plain(body.metrics) for s, (body, _) in found.items()}

    def close(self) -> None:
        """Nothing to close."""


# One site, code of its own ------------------------------------------------------------------------

OWN = """
import time
import numpy as np

def initial(generator):
    return {"w": np.zeros(3)}

def evaluate(parameters, data):
    return {"loss": float(np.sum(parameters["w"] ** 2))}

def fit(parameters, data, context):
    seconds = float(parameters["w"][0])
    if seconds:
        time.sleep(seconds)
    return {"w": parameters["w"] + 1 + np.arange(len(parameters["w"]))}, {"loss": 0.5}
"""

LOOKING = """
import os
from pathlib import Path
import numpy as np

def initial(generator):
    return {"w": np.zeros(3)}

def evaluate(parameters, data):
    return {"loss": 0.0}

def fit(parameters, data, context):
    node = Path(os.environ["HOME"]).parents[1]
"""
"""Code of a job that looks around at the node; its last lines are the test's."""


def asked(
    folder: Path, job: Mapping[str, Any], kind: str, model: bytes | None, **more: Any
) -> tuple[ResultBody, dict[str, Any]]:
    """What a real node, the only site of a job, answers to one task that a server makes as it likes."""
    server = FakeServer()
    (folder / "east.csv").write_text(table_text(1))
    run = Deployed(
        parse_job(job_tables(algorithm={"name": "fedavg"}, **job)), {"east": server}, folder
    )
    run.alone(read_table(folder / "east.csv"))
    with Running(node_at(folder, "east", server, table_text(1))):
        task = server.offer(run.task(kind, "east", broadcast=model, **more))
        return server.result(task.id)


class Solo:
    """One site's run whose training sleeps as long as the broadcast says."""

    def __init__(self, server: FakeServer, folder: Path, run: str = "r1", size: int = 3) -> None:
        code = folder / f"code-{run}"
        code.mkdir()
        (code / "own.py").write_text(OWN.replace("zeros(3)", f"zeros({size})"))
        (code / "east.csv").write_text(table_text(1))
        own = {name: f"own.py:{name}" for name in ("initial", "fit", "evaluate")}
        model = {"kind": "function", **own}
        spec = parse_job(job_tables(model=model, algorithm={"name": "fedavg"}))
        self.server, self.size = server, size
        self.run = Deployed(spec, {"east": server}, code, run)
        self.run.alone(read_table(code / "east.csv"))

    def task(self, seconds: float = 0.0, **more: Any) -> TaskBody:
        """A training task, not yet offered."""
        vector = np.zeros(self.size)
        vector[0] = seconds
        code = {"code": more.pop("code")} if "code" in more else {}
        made = self.run.task("train", "east", broadcast=encode({}, {"parameters": vector}), **code)
        self.run.number += 1
        return made.model_copy(update=more)

    def train(self, seconds: float = 0.0, **more: Any) -> TaskBody:
        return self.server.offer(self.task(seconds, **more))
