"""``atoll audit``: findings on stdout and in the run's folder; malicious clients refused by name."""

import json

import pytest

from atoll.cli.main import main

JOB = """name = "tiny"
[data]
source = "fcube"
options = { rows = 20, test_rows = 10 }
[local]
lr = 0.5
[rounds]
count = 2
[evaluation]
compare = false
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


@pytest.fixture
def told(capsys):
    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def test_findings_are_printed_kept_and_reported(job, tmp_path, told):
    folder = tmp_path / "run"
    assert told("run", job, "--out", folder, "--quiet")[0] == 0
    status, out, err = told(
        "audit", "privacy", folder, "--job", job, "--models", 4, "--rows", 30, "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert "run 4 of 4" in err
    assert (found["models"], found["one_run"]["reported"]) == (4, None)
    assert 0 <= found["membership"]["lira"]["tpr"] <= 1
    kept = json.loads((folder / "audit.json").read_text())
    assert kept["membership"] == found["membership"]
    report = (folder / "report.html").read_text()
    assert "membership by likelihood ratio" in report
    again = told("run", job, "--out", folder, "--quiet", "--overwrite")
    assert again[0] == 0
    assert not (folder / "audit.json").exists()


def test_the_definition_in_the_manifest_is_enough_where_the_data_are_found(job, tmp_path, told):
    folder = tmp_path / "run"
    told("run", job, "--out", folder, "--quiet")
    status, out, _ = told("audit", "privacy", folder, "--models", 4, "--rows", 20, "--quiet")
    assert status == 0
    assert "no differential privacy for single rows was promised" in out


def test_another_job_is_refused(job, tmp_path, told):
    folder = tmp_path / "run"
    told("run", job, "--out", folder, "--quiet", "--seed", "7")
    status, _, err = told("audit", "privacy", folder, "--job", job)
    assert status == 2
    assert "not the job of the run" in err
    assert told("audit", "privacy", tmp_path)[0] == 5


def test_malformed_updates_are_refused_and_poison_is_told(job, told):
    attacks = ("nan", "weight_large", "sign_flip")
    given = [word for name in attacks for word in ("--attack", name)]
    status, out, _ = told("audit", "clients", job, "--rounds", 2, *given, "--json")
    nan, heavy, flip = json.loads(out)["attacks"]
    assert status == 0
    for line in (nan, heavy):
        assert (line["refused"], line["asked"], line["model_as_without"]) == (2, 2, True)
    assert (flip["refused"], flip["kind"]) == (0, "valid in form")
    assert "not finite" in nan["reason"]


def test_names_that_are_none_are_refused_with_the_nearest(job, told):
    status, _, err = told("audit", "clients", job, "--attack", "sign_flop")
    assert status == 2
    assert "sign_flip" in err
    status, _, err = told("audit", "clients", job, "--site", "nobody", "--attack", "nan")
    assert status == 2
    assert "no client 'nobody'" in err


def test_a_gate_that_lets_nan_through_ends_with_status_4(job, told, monkeypatch):
    from atoll.privacy.audit import hostile

    monkeypatch.setattr(
        hostile, "TAMPERINGS", {**hostile.TAMPERINGS, "nan": hostile.POISON["sign_flip"]}
    )
    status, _, err = told("audit", "clients", job, "--attack", "nan", "--rounds", 1)
    assert status == 4
    assert "were not refused" in err


def test_the_promise_of_a_record_level_job_is_put_to_the_test(tmp_path, told):
    pytest.importorskip("dp_accounting")
    job, folder = tmp_path / "private.toml", tmp_path / "run"
    private = "\n[privacy.record]\nclip = 1.0\nepsilon = 4.0\n"
    job.write_text(JOB + "federated = false\ncentral = false\n" + private)
    status, _, err = told("run", job, "--out", folder, "--quiet")
    assert (status, err) == (0, "")
    given = ("--job", job, "--models", 4, "--rows", 20, "--quiet", "--json")
    status, out, _ = told("audit", "privacy", folder, *given)
    found = json.loads(out)
    assert status == 0
    assert 3.9 < found["one_run"]["reported"] <= 4.0
    assert found["one_run"]["holds"] is True
    assert found["protection"]["statement"]["unit"] == "record"
