"""Atoll deployed: a server, nodes and their workers on the loopback interface, as their commands start them.

TLS, signatures, hashes and durable receipts are on: there is no way to turn them off. A round's end is
when the last of its answers was acknowledged, as the server's store has it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import atoll
from atoll.node.home import Home
from atoll.node.join import join
from atoll.server import admin
from atoll.server.admin import Founding
from benchmarks.deploy.memory import Watch, descendants
from benchmarks.deploy.work import Given, asked, finish

ROOT = Path(__file__).parents[2]
STEPS = ("train", "commit", "share", "pledge", "release", "open")
"""Of a round, however its updates are added up."""
COMMAND = (
    sys.executable,
    "-c",
    "import sys; from atoll.cli.main import main; sys.exit(main(sys.argv[1:]))",
)

CODE = """
import numpy as np


def initial(rng):
    return {{f"a{{i}}": rng.standard_normal({each}, dtype=np.float32) for i in range(10)}}


def fit(parameters, data, context):
    for array in parameters.values():
        array += np.float32(1e-3)
    return parameters, {{"loss": 0.0}}


def evaluate(parameters, data):
    return {{"loss": 0.0}}
"""

JOB = """
name = "noop"

[data]
source = "rows.csv"
site_column = "site"
target = "y"
task = "regression"
test_fraction = 0.0

[model]
kind = "function"
initial = "noop.py:initial"
fit = "noop.py:fit"
evaluate = "noop.py:evaluate"

[algorithm]
name = "{algorithm}"
weights = "uniform"

[rounds]
count = {rounds}
{mode}

[evaluation]
every = 0
central = false
federated = false
compare = false
"""

BUFFERED = """
mode = "async"
buffer = {sites}
max_staleness = 16
"""

ROWS = "x,y\n" + "".join(f"{i},{i % 3}\n" for i in range(40))


def free_port() -> int:
    """A port that nobody listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of Atoll's commands, until the context ends."""
    with log.open("wb") as file:
        process = subprocess.Popen([*COMMAND, *words], stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(what: Path, log: Path) -> None:
    """Wait until a file is there."""
    limit = time.monotonic() + 60
    while not what.exists():
        if time.monotonic() > limit:
            sys.exit(f"no {what} after a minute:\n{log.read_text()}")
        time.sleep(0.02)


def job(folder: Path, given: Given) -> Path:
    """The job and the code of its own."""
    folder.mkdir()
    (folder / "noop.py").write_text(CODE.format(each=given.values // 10))
    (folder / "rows.csv").write_text(ROWS)
    path = folder / "job.toml"
    privacy = f'\n[privacy]\naggregation = "{given.aggregation}"\n'
    algorithm, mode = ("fedbuff", BUFFERED) if given.buffered else ("fedavg", "")
    mode = mode.format(sites=given.sites)
    path.write_text(JOB.format(rounds=given.rounds, algorithm=algorithm, mode=mode) + privacy)
    return path


def node(home: Path, server: Path, name: str) -> Path:
    """A site that has joined and has a few rows."""
    code = admin.invite(server, name, "site", 1.0, time.time())
    join(Home(home), code)
    rows = home / "rows.csv"
    rows.write_text(ROWS)
    add = ("node", "data", "add", "rows", str(rows), "--home", str(home))
    subprocess.run([*COMMAND, *add], check=True, stdout=subprocess.DEVNULL)
    return home


def ends_of(database: Path, run: str, rounds: int) -> list[float]:
    """When the last answer of each round was acknowledged, in seconds since 1970."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "select round, max(received) from contributions"
            " where run = ? and round is not null group by round order by round",
            (run,),
        ).fetchall()
    if [number for number, _ in rows] != list(range(1, rounds + 1)):
        sys.exit(f"rounds {[number for number, _ in rows]} were committed, not {rounds}")
    return [at for _, at in rows]


def sent_of(database: Path, run: str, answers: int) -> float:
    """Bytes that a site answers with in a round, all of its steps together."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        rows = db.execute("select task, size from contributions where run = ?", (run,)).fetchall()
    return sum(size for task, size in rows if task.split(".")[1] in STEPS) / answers


def measure(folder: Path, given: Given) -> None:
    """Found a federation in ``folder`` and have it run the job."""
    server, log = folder / "server", folder / "server.log"
    admin.found(server, Founding(address=f"127.0.0.1:{free_port()}"), time.time())
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(running(log, "server", "start", str(server)))
        wait_for(server / "running.json", log)
        code = admin.invite(server, "ada", "researcher", 1.0, time.time())
        names = [f"site-{number:02}" for number in range(given.sites)]
        for home in [node(folder / name, server, name) for name in names]:
            pin = ("node", "peers", "--pin", "--home", str(home))
            subprocess.run([*COMMAND, *pin], check=True, capture_output=True)
            words = ("node", "start", "--home", str(home))
            stack.enter_context(running(folder / f"{home.name}.log", *words))
        me, pid = os.getpid(), service.pid
        with atoll.connect(folder / "ada", code=code) as federation:
            path = job(folder / "job", given)
            time.sleep(2.0)  # nodes have asked for the first time
            with Watch(lambda: [pid], lambda: descendants(me), given.watch) as watch:
                start = time.time()
                run = federation.submit(path)
                while not federation.show(run).ended:
                    time.sleep(0.5)
            ended = federation.show(run)
        if ended.status != "completed":
            sys.exit(f"{ended.status}: {ended.reason}")
    database = server / "atoll.db"
    sent = sent_of(database, run, given.rounds * given.sites)
    finish(ends_of(database, run, given.rounds), start, watch.most, sent)


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    if given.keep:
        shutil.rmtree(given.keep, ignore_errors=True)
        Path(given.keep).mkdir(parents=True)
        measure(Path(given.keep).resolve(), given)
        return
    scratch = ROOT / ".bench"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="deploy-") as folder:
        measure(Path(folder), given)


if __name__ == "__main__":
    main()
