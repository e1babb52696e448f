"""The process that runs job code: what it sees, what it may use, what it tells when it fails."""

from __future__ import annotations

import json
import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_federation as ff
import numpy as np
import pytest
from fake_server import ANY

import atoll
from atoll.core.contracts import Task
from atoll.core.values import Broadcast
from atoll.data.readers import read_table
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.orders import DatasetBody, Order, Report
from atoll.node.room import sandbox
from atoll.node.room.process import Ended, Log, Worker
from atoll.node.room.sandbox import Room
from atoll.node.settings import Limits, Settings
from atoll.runtime.client import answer_task
from atoll.wire.frames import decode, encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

CODE = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
import beside
from atoll.core.metrics import RankedScores

def initial(generator):
    return {"w": np.zeros(3)}

def evaluate(parameters, data):
    if parameters["w"][0] == 1:
        return {"auc": RankedScores((0.9,), (0.1,)), "loss": 0.0}
    return {"loss": float(np.sum(parameters["w"] ** 2))}

def fit(parameters, data, context):
    what = int(parameters["w"][0])
    if what == 1:
        raise ValueError(f"patient Smith, aged {data.targets[0]}, from {os.getcwd()}")
    if what == 2:
        print("ENVIRONMENT", json.dumps(dict(os.environ)))
        links = []
        for number in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
        print("FILES", json.dumps(links))
        print("INPUT", json.dumps(sys.stdin.read()))
        os.write(1, b"written past Python\\n")
    if what == 3:
        np.ones(1 << 34, np.uint8)
    if what == 4:
        while True:
            pass
    if what == 5:
        time.sleep(600)
    if what == 6:
        os._exit(3)
    if what == 7:
        sys.exit("enough")
    if what == 8:
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == 9:
        beside.deeper(lambda: parameters["none such"])
    if what == 10:
        return {"w": np.full(3, np.nan)}, None
    if what == 11:
        [open("/dev/null") for _ in range(5000)]
    if what == 12:
        Path("big").write_bytes(bytes(8 << 20))
    if what == 13:
        import no_such_module
    if what == 14:
        print("x" * (1 << 20))
    if what == 15:
        print("MODULES", json.dumps(sorted(sys.modules)))
    return {"w": parameters["w"] + 1 + np.arange(3)}, {"loss": 0.5}
"""
BESIDE = "def deeper(what):\n    return what()\n"
LIMITS = Limits(memory=2.0, cpu=1, seconds=30.0, files=64, file_size=1 / 256)


class Bench:
    """A worker on a bench: one site's run, ready for orders."""

    def __init__(self, folder: Path, room: bool = False, **job: Any) -> None:
        self.room = room
        self.folder, self.heard = folder, queue.SimpleQueue[Report | Ended]()
        (folder / "own.py").write_text(CODE)
        (folder / "beside.py").write_text(BESIDE)
        (folder / "rows.csv").write_text(ff.table_text(1))
        own = {f: f"own.py:{f}" for f in ("initial", "fit", "evaluate")}
        tables = {"model": {"kind": "function", **own}, "algorithm": {"name": "fedavg"}, **job}
        self.spec = parse_job(ff.job_tables(**tables))
        self.rows = read_table(folder / "rows.csv")
        self.schema = deployed.agree(
            self.spec, {"east": deployed.survey(self.spec, "east", self.rows)}
        )
        self.sums = deployed.column_sums_at(self.spec, self.schema, "east", self.rows).vectors
        body = {
            "run": "r1",
            "spec": spec_to_plain(self.spec),
            "sites": ["east"],
            "schema": deployed.schema_to_plain(self.schema),
        }
        (folder / "plan").write_bytes(encode(body, self.sums))
        self.log = folder / "log"
        self.number = 0
        self.logs: list[Log] = []
        self.settings = Settings(limits=LIMITS)
        self.start()

    def start(self, settings: Settings | None = None) -> None:
        self.settings = made = settings or self.settings
        log = Log(self.log, round(made.log * (1 << 20)))
        self.logs.append(log)
        work = self.folder / f"work{self.number}"
        room = None
        if self.room:
            (work / "room").mkdir(parents=True)
            writes = [str(self.folder)]
            room = Room(folder=str(work), base=str(work / "room"), writes=writes)
        self.worker = Worker(work, made, log, lambda _, what: self.heard.put(what), room)

    def order(self, what: float, kind: str = "train", **more: Any) -> Order:
        self.number += 1
        vector = np.array([what, 0.0, 0.0])
        (self.folder / "broadcast").write_bytes(encode({"version": 0}, {"parameters": vector}))
        ref = BlobRef(sha256="0" * 64, size=0)
        task = TaskBody(
            id=f"r1.{kind}.{self.number}.east",
            run="r1",
            kind=kind,  # type: ignore[arg-type]  # one of the five
            number=self.number,
            client="east",
            plan=ref,
        )
        order = {
            "task": task,
            "plan": str(self.folder / "plan"),
            "code": {n: str(self.folder / n) for n in ("own.py", "beside.py")},
            "broadcast": str(self.folder / "broadcast"),
            "result": str(self.folder / "result"),
            "keep": str(self.folder / "keep"),
            "dataset": DatasetBody(
                name="sites", path=str(self.folder / "rows.csv"), missing=[], columns={}
            ),
        }
        return Order(**{**order, **more})

    def do(self, what: float, kind: str = "train", **more: Any) -> tuple[ResultBody, Any]:
        """A task's result; the worker must live on."""
        order = self.order(what, kind, **more)
        self.worker.order(order)
        heard = self.heard.get(timeout=60)
        assert isinstance(heard, Report), heard
        body, arrays = decode(Path(order.result).read_bytes(), ANY)
        return ResultBody.model_validate(body), arrays

    def dies(self, what: float) -> str:
        """Why the worker ended at a task; a new one is started."""
        self.worker.order(self.order(what))
        heard = self.heard.get(timeout=60)
        assert isinstance(heard, Ended), heard
        self.start()
        return heard.reason

    def said(self, word: str) -> Any:
        """What job code printed after ``word``."""
        ff.eventually(lambda: f"{word} " in self.log.read_text())
        (line,) = [x for x in self.log.read_text().splitlines() if x.startswith(f"{word} ")]
        return json.loads(line.removeprefix(f"{word} "))

    def close(self) -> None:
        self.worker.end()
        assert isinstance(self.heard.get(timeout=60), Ended)


@pytest.fixture(scope="module", params=["open", "room"])
def bench(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    if request.param == "room" and sandbox.trouble():
        pytest.skip(sandbox.trouble())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "top secret")
        patch.setenv("CUDA_VISIBLE_DEVICES", "7")
        patch.setenv("LET_THROUGH", "1")
        made = Bench(tmp_path_factory.mktemp("site"), request.param == "room")
        made.close()
        made.start(Settings(limits=LIMITS, pass_on=("LET_THROUGH",)))
        yield made
        made.close()
        for log in made.logs:
            log.close()


def test_an_update_has_the_bits_of_the_same_call_in_this_process(bench: Bench) -> None:
    body, arrays = bench.do(0.0)
    islands = deployed.islands_at(bench.spec, bench.schema, bench.sums, "east", bench.rows)
    parts = deployed.parts_at(bench.spec, islands, bench.folder, "east")
    start = Broadcast(0, {"parameters": np.zeros(3)})
    update, _ = answer_task(parts, Task("east", 0), start, {})
    assert (body.status, body.weight, body.examples) == ("done", update.weight, update.examples)
    assert {n: a.tobytes() for n, a in arrays.items()} == {
        n: a.tobytes() for n, a in update.vectors.items()
    }


def test_a_stop_of_all_processes_of_a_service_does_not_end_a_worker_that_begins(
    bench: Bench,
) -> None:
    bench.close()
    bench.number += 1
    bench.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(bench.worker.pid, number)
    body, _ = bench.do(0.0)
    assert body.status == "done"
    status = Path(f"/proc/{bench.worker.pid}/status").read_text(encoding="utf-8")
    (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    assert int(blocked, 16) == 0  # or what job code starts could not be stopped


def test_every_kind_of_task_is_answered(bench: Bench) -> None:
    survey, _ = bench.do(0.0, "survey")
    assert survey.answer == deployed.survey(bench.spec, "east", bench.rows)
    sums, vectors = bench.do(0.0, "sums")
    assert sums.examples == len(bench.rows) - round(0.3 * len(bench.rows))
    assert {n: a.tobytes() for n, a in vectors.items()} == {
        n: a.tobytes() for n, a in bench.sums.items()
    }
    ready, vectors = bench.do(0.0, "ready")
    assert (ready.answer["rows"], vectors) == (sums.examples, {})
    evaluated, _ = bench.do(2.0, "evaluate")
    assert evaluated.examples == len(bench.rows) - sums.examples
    assert list(evaluated.metrics) == ["loss"]


def test_the_first_site_also_sends_the_initial_vector(bench: Bench) -> None:
    order = bench.order(0.0, "ready")
    _, vectors = bench.do(0.0, "ready", task=order.task.model_copy(update={"initial": True}))
    assert vectors["initial"].tolist() == [0.0, 0.0, 0.0]


def test_job_code_sees_an_environment_without_secrets_and_no_files_of_the_node(
    bench: Bench,
) -> None:
    bench.do(2.0)
    seen = bench.said("ENVIRONMENT")
    assert "top secret" not in seen.values()
    assert set(seen) <= {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "LD_LIBRARY_PATH",
        "HOME",
        "TMPDIR",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONUNBUFFERED",
        "MALLOC_MMAP_MAX_",
        "MALLOC_TRIM_THRESHOLD_",
        "LET_THROUGH",
        "KMP_DUPLICATE_LIB_OK",  # a library sets it while it is loaded
    }
    assert seen["HOME"] == seen["TMPDIR"] == str(bench.worker.folder)
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["LET_THROUGH"] == "1"  # the site said so
    assert not [f for f in bench.said("FILES") if "socket" in f or f.endswith((".pem", ".log"))]
    assert bench.said("INPUT") == ""
    ff.eventually(lambda: "written past Python" in bench.log.read_text())


def test_a_worker_that_trains_has_imported_nothing_for_other_work(bench: Bench) -> None:
    bench.do(15.0)
    modules = set(bench.said("MODULES"))
    assert "atoll.node.room.workplace" in modules
    heavy = {"cryptography", "dp_accounting", "ray", "scipy", "tenseal", "torch"}
    assert {name.partition(".")[0] for name in modules} & heavy == set()
    # What a plan needs to tell whether it is of statistics; no method of theirs, and no kind of question.
    frame = {"analysis", "columns", "digits", "holding", "running", "together"}
    asking = {"book", "frames", "inquiry", "registry"}
    for package, allowed in (("algorithms.statistics", frame), ("job.inquiries", asking)):
        start = f"atoll.{package}."
        found = {name.removeprefix(start) for name in modules if name.startswith(start)}
        assert found <= allowed


def test_an_exception_tells_where_and_not_on_what(bench: Bench) -> None:
    body, arrays = bench.do(1.0)
    assert (body.status, arrays) == ("failed", {})
    assert "ValueError" in body.reason
    assert "own.py:19 in fit" in body.reason
    for secret in ("Smith", "aged", str(bench.folder), str(Path(atoll.__file__).parent)):
        assert secret not in body.reason
    ff.eventually(lambda: "Smith" in bench.log.read_text())  # the site itself may know


def test_frames_of_modules_beside_are_named(bench: Bench) -> None:
    body, _ = bench.do(9.0)
    assert body.reason.startswith("KeyError (own.py:")
    assert "beside.py:2 in deeper" in body.reason
    assert "none such" not in body.reason


def test_a_missing_module_is_named(bench: Bench) -> None:
    body, _ = bench.do(13.0)
    assert "no_such_module" in body.reason


def test_an_exit_of_job_code_is_its_failure_and_the_worker_lives(bench: Bench) -> None:
    pid = bench.worker.pid
    body, _ = bench.do(7.0)
    assert (body.status, body.reason[:10]) == ("failed", "SystemExit")
    assert bench.do(0.0)[0].status == "done"
    assert bench.worker.pid == pid


def test_an_update_that_is_not_finite_is_not_sent(bench: Bench) -> None:
    body, arrays = bench.do(10.0)
    assert body.status == "refused"
    assert arrays == {}


def test_scores_of_single_rows_do_not_leave(bench: Bench) -> None:
    body, _ = bench.do(1.0, "evaluate")
    assert (body.status, body.metrics) == ("failed", {})
    assert "'auc' holds the score of every row" in body.reason


@pytest.mark.parametrize(
    ("what", "word"),
    [(3.0, "2 GiB"), (11.0, "OSError"), (12.0, "OSError")],
    ids=["memory", "open files", "file size"],
)
def test_limits_of_memory_and_files_are_the_task_s_failure(
    bench: Bench, what: float, word: str
) -> None:
    body, _ = bench.do(what)
    assert body.status == "failed"
    assert word in body.reason
    assert bench.do(0.0)[0].status == "done"


@pytest.mark.parametrize(
    ("what", "reason"),
    [(4.0, "1 s of processor time"), (6.0, "status 3"), (8.0, "SIGSEGV")],
    ids=["processor time", "exit", "crash"],
)
def test_an_end_of_the_process_is_told_with_its_reason(
    bench: Bench, what: float, reason: str
) -> None:
    assert reason in bench.dies(what)
    assert bench.do(0.0)[0].status == "done"


def test_no_core_is_dumped(bench: Bench) -> None:
    def limits() -> list[str]:
        told = Path(f"/proc/{bench.worker.pid}/limits").read_text()
        (line,) = [x for x in told.splitlines() if x.startswith("Max core file size")]
        return line.split()[4:6]

    ff.eventually(lambda: limits() == ["0", "0"])  # the first thing that a worker does


def test_a_worker_is_ended_with_its_children_and_its_folder(bench: Bench) -> None:
    folder, pid = bench.worker.folder, bench.worker.pid
    bench.worker.order(bench.order(5.0))
    bench.worker.end("took too long")
    assert bench.heard.get(timeout=60) == Ended("took too long")
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    bench.start()


def test_a_stop_that_is_meant_for_all_does_not_end_a_worker(bench: Bench) -> None:
    bench.do(0.0)
    os.kill(bench.worker.pid, signal.SIGTERM)
    assert bench.do(0.0)[0].status == "done"


def test_changed_data_are_noticed(bench: Bench) -> None:
    assert bench.do(0.0)[0].status == "done"
    bench.close()
    bench.start()
    body, _ = bench.do(0.0, digest="b" * 64)
    assert body.status == "failed"
    assert "changed since the run began" in body.reason


def test_the_log_does_not_outgrow_its_limit(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", 1000)
    for _ in range(100):
        log.write(b"x" * 90)
    log.write(b"y" * 5000)
    log.close()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 1000


def test_a_worker_that_died_while_idle_takes_no_order_and_says_so(bench: Bench) -> None:
    os.kill(bench.worker.pid, signal.SIGKILL)
    heard = bench.heard.get(timeout=60)
    assert isinstance(heard, Ended)
    assert bench.worker.order(bench.order(0.0)) is False
    bench.start()
    assert bench.worker.order(bench.order(0.0)) is True
    assert isinstance(bench.heard.get(timeout=60), Report)
