"""A small federation on disk, and jobs about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from atoll.job.load import parse_job
from atoll.job.schema import JobSpec

TABLE = """[data]
source = "rows.csv"
site_column = "site"
target = "sick"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sites of 8 rows: age 30 to 65 in steps of 5, sex f/m in turn, sick no/no/yes/yes."""
    lines = ["site,age,sex,dose,sick"]
    for site in ("east", "north", "south"):
        for i in range(8):
            sick = ("no", "yes")[(i // 2) % 2]
            lines.append(f"{site},{30 + 5 * i},{'fm'[i % 2]},{i}.5,{sick}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def spec_of(folder: Path) -> Callable[..., JobSpec]:
    """Checked jobs about the table in ``folder``: keyword arguments are tables."""

    def make(**tables: object) -> JobSpec:
        data = {"source": "rows.csv", "site_column": "site", "target": "sick"}
        own = tables.pop("data", {})
        return parse_job({"data": {**data, **own}, **tables}, folder=folder)  # type: ignore[dict-item]

    return make


@pytest.fixture
def job_file(folder: Path) -> Callable[[str], Path]:
    """A job file: its ``[data]`` table and what is given."""

    def write(text: str = "") -> Path:
        path = folder / "job.toml"
        path.write_text(TABLE + text)
        return path

    return write
