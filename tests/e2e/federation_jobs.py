"""Jobs and rows for tests of real federations, and what their simulations come to."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import atoll


@dataclass(frozen=True)
class Task:
    """A job on disk.

    Args:
        job: the file.
        sites: datasets of each site: name and file.
        settings: of the job, beside the file.
    """

    job: Path
    sites: Mapping[str, Mapping[str, Path]]
    settings: Sequence[str] = field(default=())

    def simulated(self, *settings: str) -> str:
        """The model's hash of the serial simulation."""
        job = atoll.load_job(self.job, [*self.settings, *settings])
        return atoll.simulate(job, executor="serial").model_hash


def names(count: int) -> list[str]:
    """So many sites."""
    return [f"site-{number:02}" for number in range(1, count + 1)]


TABLE = """
name = "{name}"
seed = 7

[data]
source = "rows.csv"
site_column = "site"
target = "sick"
classes = ["no", "yes"]
test_fraction = 0.25

[model]
kind = "logistic"

[local]
batch_size = 8
lr = 0.1

[algorithm]
name = "{algorithm}"

[rounds]
count = {rounds}

[evaluation]
compare = false
"""


def table_task(
    folder: Path, sites: int, rounds: int, *, rows: int = 40, algorithm: str = "fedavg"
) -> Task:
    """Logistic regression on a table: one file over all sites for the simulation, one a site for the nodes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    columns = ["age", "dose", "sex", "sick"]
    lines: dict[str, list[list[str]]] = {}
    for number, site in enumerate(names(sites)):
        lines[site] = []
        for _ in range(rows + number):
            age, dose, sex = rng.normal(50 + number, 12), rng.gamma(2.0, 1.5), rng.integers(2)
            risk = 0.06 * (age - 50) - 0.5 * (dose - 3) + 0.4 * sex + rng.normal()
            lines[site].append(
                [f"{age:.1f}", f"{dose:.2f}", "fm"[int(sex)], ("no", "yes")[int(risk > 0)]]
            )
    _write(folder / "rows.csv", ["site", *columns], [[s, *r] for s in lines for r in lines[s]])
    files = {}
    for site, own in lines.items():
        _write(folder / "sites" / site / "rows.csv", columns, own)
        files[site] = {"rows": folder / "sites" / site / "rows.csv"}
    job = folder / "job.toml"
    job.write_text(TABLE.format(name="table", algorithm=algorithm, rounds=rounds))
    return Task(job, files)


ARRAYS = """
name = "{name}"
seed = 3

[data]
source = "arrays/*.npz"
test_fraction = 0.25

[model]
kind = "logistic"
dtype = "float32"

[local]
batch_size = 4
lr = 0.05

[algorithm]
name = "{algorithm}"

[rounds]
count = {rounds}

[evaluation]
compare = false
"""


def arrays_task(
    folder: Path, sites: int, rounds: int, *, features: int, algorithm: str = "fedavg"
) -> Task:
    """Logistic regression on a few rows of many features: a large model that costs little work."""
    files = write_arrays(folder / "arrays", sites, rows=16, features=features)
    job = folder / "job.toml"
    job.write_text(ARRAYS.format(name="arrays", algorithm=algorithm, rounds=rounds))
    return Task(job, files)


def write_arrays(
    folder: Path, sites: int, *, rows: int, features: int, slow: Collection[str] = ()
) -> dict[str, dict[str, Path]]:
    """A file of features and targets for each site; those that are ``slow`` get a hundred times the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    files = {}
    for site in names(sites):
        own = 100 * rows if site in slow else rows
        x = rng.normal(size=(own, features)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64)
        np.savez(folder / f"{site}.npz", features=x, targets=y)
        files[site] = {folder.name: folder / f"{site}.npz"}
    return files


OWN = '''
"""A model of any size whose training takes as long as asked."""

import time

import numpy as np


def initial(rng):
    return {{"w": np.zeros({size}, dtype=np.float32)}}


def fit(parameters, data, context):
    time.sleep({seconds} * len(data) / {rows})
    w = parameters["w"] + np.float32(context.rng.normal())
    w[: data.features.shape[1]] += data.features.mean(axis=0)
    return {{"w": w}}, {{"loss": float(w[0])}}


def evaluate(parameters, data):
    return {{"loss": float(parameters["w"][0])}}
'''

FUNCTION = """
name = "{name}"
seed = 2

[data]
source = "own/*.npz"
test_fraction = 0.0

[model]
kind = "function"
initial = "{code}.py:initial"
fit = "{code}.py:fit"
evaluate = "{code}.py:evaluate"

[rounds]
count = {rounds}

[privacy]
aggregation = "plain"

[evaluation]
every = 0
federated = false
compare = false
"""


def own_task(
    folder: Path,
    sites: int,
    rounds: int,
    *,
    size: int = 8,
    seconds: float = 0.0,
    slow: Collection[str] = (),
) -> Task:
    """Code of the job's own: a vector of ``size`` float32, and so many seconds for each training.

    Sites that are ``slow`` have a hundred times as many rows, and take that much longer.
    """
    files = write_arrays(folder / "own", sites, rows=12, features=4, slow=slow)
    code = f"own_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"  # one process, one name
    (folder / f"{code}.py").write_text(OWN.format(size=size, seconds=seconds, rows=12))
    job = folder / "job.toml"
    job.write_text(FUNCTION.format(name="own", rounds=rounds, code=code))
    return Task(job, files)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
