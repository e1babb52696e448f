"""A small sound job on disk that tests break in one place or another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from atoll.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))

import federation_processes
from process_copies import Launcher

BASE = {
    "name": '"small"',
    "data.source": '"rows.csv"',
    "data.site_column": '"site"',
    "data.target": '"sick"',
    "data.classes": '["no", "yes"]',
    "data.columns.age.range": "[18, 110]",
    "data.columns.age.unit": '"years"',
    "data.columns.sex.type": '"category"',
    "data.columns.sex.categories": '["f", "m"]',
    "model.kind": '"logistic"',
    "local.lr": "0.1",
    "algorithm.name": '"fedavg"',
    "rounds.count": "2",
    "evaluation.compare": "false",
}
SITES = ("east", "north", "south")

Row = dict[str, str]


@pytest.fixture(scope="session", autouse=True)
def _launcher() -> Iterator[None]:
    """Processes of all federations of these tests are copies of one, which starts with the first of them."""
    made: list[Launcher] = []

    def launcher() -> Launcher:
        if not made:
            made.append(Launcher(federation_processes.READ, [federation_processes.MACHINE]))
        return made[0]

    federation_processes.launcher = launcher
    yield
    federation_processes.launcher = None
    for one in made:
        one.close()


class Small:
    """The job, its table and its run's folder ``out``."""

    sites = SITES

    def __init__(self, folder: Path) -> None:
        self.folder, self.job, self.out = folder, folder / "job.toml", folder / "out"
        self.rows = [
            {
                "site": site,
                "age": str(30 + 5 * i),
                "dose": f"{i % 3}.5",
                "sex": "fm"[i % 2],
                "sick": ("no", "yes")[(i // 2) % 2],
            }
            for site in SITES
            for i in range(8)
        ]

    def write(self, edits: Mapping[str, str | None] | None = None) -> None:
        """The base job with some keys replaced (None: removed), and the table."""
        settings = {k: v for k, v in {**BASE, **(edits or {})}.items() if v is not None}
        tables: dict[str, list[str]] = {"": []}
        for key, value in settings.items():
            table, _, last = key.rpartition(".")
            tables.setdefault(table, []).append(f"{last} = {value}")
        lines = []
        for table, body in tables.items():
            lines += ([f"[{table}]"] if table else []) + body
        self.file("job.toml", "\n".join(lines) + "\n")
        self.file("rows.csv", _csv(self.rows))

    def file(self, name: str, content: str | bytes) -> None:
        """A file beside the job."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def cell(self, at: str, number: int, **changes: str) -> None:
        """Change one row, counted from 1 at its site."""
        self.rows[SITES.index(at) * 8 + number - 1].update(changes)
        self.file("rows.csv", _csv(self.rows))

    def files(self, **changes: Callable[[Row], Row | None]) -> None:
        """One file per site in ``sites/``; at some sites each row is changed, or left out (None)."""
        for site in SITES:
            change = changes.get(site, lambda row: row)
            own = [dict(r) for r in self.rows if r["site"] == site]
            for row in own:
                del row["site"]
            kept = [row for r in own if (row := change(r)) is not None]
            self.file(f"sites/{site}.csv", _csv(kept, own[0]))

    def run(self, *flags: str) -> int:
        """The exit status of ``atoll run``."""
        return main(["run", str(self.job), "--out", str(self.out), *flags])

    def snapshot(self) -> dict[str, bytes]:
        """Content of every file of the run."""
        found = (p for p in self.out.rglob("*") if p.is_file())
        return {str(p.relative_to(self.out)): p.read_bytes() for p in found}


def _csv(rows: list[Row], like: Row | None = None) -> str:
    columns = list(rows[0] if rows else like or {})
    return "\n".join([",".join(columns), *(",".join(r[c] for c in columns) for r in rows)]) + "\n"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    """The sound job, written; ``own.py`` is forgotten afterwards, as in a process of its own."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own", None)
    made = Small(tmp_path)
    made.write()
    yield made
    sys.modules.pop("own", None)
