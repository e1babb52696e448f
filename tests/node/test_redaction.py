"""What a site tells of an error: where, never on what data, never where on its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.core.errors import ClientError, DataError, Fault, JobError
from atoll.node.policy.redaction import MOST, told, without_paths


def raised(code: str, folder: Path) -> Exception:
    """What running ``code`` as the job's own file raises."""
    path = folder / "own.py"
    path.write_text(code)
    try:
        exec(compile(code, str(path), "exec"), {})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "code",
    [
        "int('Smith')",
        "{}['Smith']",
        "raise RuntimeError('Smith, born in 1950')",
        "class Odd(Exception): pass\nraise Odd('Smith')",
        "assert False, 'Smith'",
        "raise TypeError('/srv/hospital/Smith.csv')",
    ],
)
def test_the_text_of_a_foreign_error_stays_here(tmp_path: Path, code: str) -> None:
    reason = told(raised(code, tmp_path), tmp_path)
    assert "Smith" not in reason
    assert str(tmp_path) not in reason
    assert f"own.py:{code.count(chr(10)) + 1} in <module>" in reason


def test_the_error_that_job_code_caused_is_told_in_place_of_its_wrapping(tmp_path: Path) -> None:
    inner = raised("int('Smith')", tmp_path)
    error = ClientError(f"evaluation failed: ValueError: {inner} (/srv/x.py:3)", site="east")
    error.__cause__ = inner
    reason = told(error, tmp_path)
    assert reason.startswith("evaluation failed: ValueError (own.py:1")
    assert "Smith" not in reason


def test_faults_of_data_are_told_by_their_places(tmp_path: Path) -> None:
    faults = [
        Fault("site 'east', column 'age'", "940 is outside [18, 110] in row 17", "correct it")
    ]
    error = DataError("the sites' data do not match the declared columns: 1 fault", faults=faults)
    reason = told(error, tmp_path)
    assert "column 'age'" in reason
    for secret in ("940", "17", "110"):
        assert secret not in reason


def test_faults_of_the_job_are_told_with_their_remedy(tmp_path: Path) -> None:
    error = JobError("the model cannot be built", remedy="mend /home/site/jobs/code/model.py")
    assert told(error, tmp_path) == "the model cannot be built\n  next: mend model.py"


def test_a_reason_has_an_end(tmp_path: Path) -> None:
    assert len(told(JobError("x" * 10 * MOST), tmp_path)) == MOST


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/data/heart.csv: no such file", "heart.csv: no such file"),
        ("see '/srv/data/heart.csv' (in /tmp/x/)", "see 'heart.csv' (in x)"),
        ("3 of 4 sites, 1/2 of them", "3 of 4 sites, 1/2 of them"),
        ("model.py and data/heart.csv", "model.py and data/heart.csv"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, shown: str) -> None:
    assert without_paths(text) == shown
