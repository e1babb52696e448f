"""What goes wrong beyond one fault in a job: many at once, folders, checkpoints, updates, processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from atoll.cli.main import main

FIT = {
    "model.kind": '"function"',
    "model.fit": '"own.py:fit"',
    "model.evaluate": '"own.py:score"',
    "model.initial": '"own.py:start"',
}
OWN = """
import numpy as np
start = {{"w": np.zeros(4)}}
def fit(parameters, data, context):
    return {fit}
def score(parameters, data):
    return {{"loss": 1.0}}
"""

Captured = pytest.CaptureFixture[str]


def test_sound_job_runs(small: Any, capsys: Captured) -> None:
    assert small.run() == 0
    assert "completed, 2 rounds" in capsys.readouterr().out


def test_faults_of_job_data_and_federation_come_together(small: Any, capsys: Captured) -> None:
    small.write(
        {
            "locl.lr": "1.0",
            "checkpoint.every": "-1",
            "local.batch_size": '"all"',
            "algorithm.name": '"fedprx"',
            "rounds.cohort": '"uniform"',
            "rounds.size": "9",
            "clock.delay.kind": '"trace"',
        }
    )
    small.cell("east", 1, age="7")
    small.cell("south", 8, sex="z")
    assert small.run() == 2
    out, err = capsys.readouterr()
    told = [line.removeprefix("  - ").partition(":")[0] for line in err.splitlines()[1:]]
    assert sorted(told) == [
        "algorithm.name",
        "checkpoint.every",
        "clock.delay.trace",
        "local.batch_size",
        "locl",
        "rounds",
        "site 'east', column 'age'",
        "site 'south', column 'sex'",
    ]
    assert "8 faults" in err
    assert "Traceback" not in err
    assert out == ""
    assert not small.out.exists()


def test_faults_of_all_sites_and_a_cohort_too_large_come_together(
    small: Any, capsys: Captured
) -> None:
    small.write({"rounds.cohort": '"uniform"', "rounds.size": "9"})
    for site in small.sites:
        small.cell(site, 1, age="7")
    assert small.run() == 2
    err = capsys.readouterr().err
    assert "4 faults" in err
    assert all(f"site {site!r}, column 'age': 7 is outside" in err for site in small.sites)
    assert "cohort of 9 from a federation of 3" in err


def test_faulty_table_produces_no_echoes(small: Any, capsys: Captured) -> None:
    # With rounds.mode unread, buffer would seem to stand in a synchronous job.
    small.write({"rounds.mode": '"asink"', "rounds.buffer": "2"})
    assert small.run() == 2
    assert "1 fault\n" in capsys.readouterr().err


def test_single_class_site_is_allowed_and_noted(small: Any, capsys: Captured) -> None:
    small.write({"data.source": '"sites"', "data.site_column": None})
    small.files(east=lambda row: {**row, "sick": "no"})
    assert small.run() == 0
    note = "site 'east': a single class, 'no', in 8 rows"
    assert note in json.loads((small.out / "manifest.json").read_text())["notes"]
    assert "a single class" in (small.out / "report.html").read_text()
    capsys.readouterr()
    assert main(["check", str(small.job)]) == 0
    assert note in capsys.readouterr().out


def test_toml_error_names_the_line(small: Any, capsys: Captured) -> None:
    small.file("job.toml", "name = 'x'\n[data\n")
    assert small.run() == 2
    err = capsys.readouterr().err
    assert "job.toml is not valid TOML" in err
    assert "line 2" in err


def test_job_file_that_cannot_be_read(small: Any, capsys: Captured) -> None:
    small.file("job.toml", b"name = '\xe4'\n")
    assert small.run() == 2
    assert "not UTF-8" in capsys.readouterr().err
    small.job.unlink()
    assert small.run() == 2
    assert "job.toml cannot be read: No such file" in capsys.readouterr().err


def test_images_need_a_partition(small: Any, capsys: Captured) -> None:
    np.savez(small.folder / "x.npz", features=np.zeros((6, 2)), targets=np.arange(6) % 2)
    small.file("job.toml", "[data]\nsource = 'x.npz'\n")
    assert small.run() == 2
    assert "data.partition: is required" in capsys.readouterr().err


def test_earlier_run_is_left_alone(small: Any, capsys: Captured) -> None:
    assert small.run() == 0
    before = small.snapshot()
    capsys.readouterr()
    assert small.run() == 5
    err = capsys.readouterr().err
    assert "holds an earlier run" in err
    assert "--resume" in err
    assert "--overwrite" in err
    assert small.snapshot() == before
    assert small.run("--overwrite") == 0


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]])
def test_foreign_folder_is_left_alone(small: Any, capsys: Captured, flags: list[str]) -> None:
    small.file("out/thesis.doc", "do not lose me")
    assert small.run(*flags) == 5
    err = capsys.readouterr().err
    assert "holds something else than a run: thesis.doc" in err
    assert "name a new or empty folder" in err
    assert small.snapshot() == {"thesis.doc": b"do not lose me"}


def test_folder_that_cannot_be_made(small: Any, capsys: Captured) -> None:
    small.file("out", "a file is in the way")
    assert small.run() == 5
    err = capsys.readouterr().err
    assert str(small.out) in err
    assert "next:" in err
    assert small.out.read_text() == "a file is in the way"


def test_checkpoint_of_another_job_is_refused(small: Any, capsys: Captured) -> None:
    assert small.run() == 0
    before = small.snapshot()
    assert small.run("--resume", "--set", "local.lr=0.2") == 5
    err = capsys.readouterr().err
    assert "checkpoint" in err
    assert "another job" in err
    assert small.snapshot() == before


def test_checkpoint_of_other_data_is_refused(small: Any, capsys: Captured) -> None:
    assert small.run() == 0
    (small.out / "manifest.json").unlink()  # as if it had died before its end
    small.cell("east", 1, age="31")
    assert small.run("--resume") == 5
    assert "another data set" in capsys.readouterr().err


def test_updates_that_are_not_finite_are_refused_by_name(small: Any, capsys: Captured) -> None:
    small.write({**FIT, "rounds.max_aborts": "2", "rounds.count": "5"})
    small.file("own.py", OWN.format(fit="{'w': parameters['w'] + np.inf}, None"))
    assert small.run() == 4
    err = capsys.readouterr().err
    assert "2 rounds in a row could not commit" in err
    assert "without east, north, south" in err
    assert "Traceback" not in err
    lines = (small.out / "metrics.jsonl").read_text().splitlines()
    missing = [json.loads(line)["missing"] for line in lines]
    assert [set(record) for record in missing] == [set(small.sites)] * 2
    assert all(reason.startswith("refused: ") for r in missing for reason in r.values())
    manifest = json.loads((small.out / "manifest.json").read_text())
    assert manifest["status"].startswith("failed: 2 rounds in a row")


def test_learning_rate_beyond_measure_ends_with_a_quorum_error(
    small: Any, capsys: Captured
) -> None:
    small.write(
        {
            "model.kind": '"linear"',
            "data.task": '"regression"',
            "data.target": '"dose"',
            "data.classes": None,
            "local.lr": "1e30",
            "local.epochs": "20.0",
            "rounds.count": "40",
        }
    )
    assert small.run("--quiet") == 4
    err = capsys.readouterr().err
    assert err.startswith("error round.quorum  10 rounds in a row could not commit")
    assert "next:" in err


def test_fit_that_raises_names_client_and_line(small: Any, capsys: Captured) -> None:
    small.write(FIT)
    small.file("own.py", OWN.format(fit="1 / 0"))
    assert small.run("--quiet") == 4
    err = capsys.readouterr().err
    assert err.startswith("error client.failed  at east: ")
    assert "own.py" in err
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("edits", "status", "part"),
    [
        ({"local.lrr": "1.0"}, 2, "did you mean 'lr'?"),
        ({"data.source": '"gone.csv"'}, 3, "no such file"),
        ({}, 0, ""),
    ],
    ids=["key", "data", "sound"],
)
def test_installed_command_gives_the_same_status(
    small: Any, edits: dict[str, str], status: int, part: str
) -> None:
    small.write(edits)
    code = "from atoll.cli.main import app; app()"
    flags = ["run", str(small.job), "--out", str(small.out), "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert small.out.exists() == (status == 0)
    assert bool(done.stdout) == (status == 0)
