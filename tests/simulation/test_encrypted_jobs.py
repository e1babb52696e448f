"""``privacy.aggregation = "encrypted"`` and ``privacy.max_norm`` in a job file."""

import numpy as np
import pytest

from atoll.core.errors import JobConflict, JobError, QuorumError
from atoll.job import load_job
from atoll.job.deployed import deployable
from atoll.job.load import read_spec
from atoll.simulation import simulate

JOB = """name = "tiny"
[data]
source = "fcube"
options = { rows = 60, test_rows = 10 }
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


def run(job, *settings, **how):
    return simulate(load_job(job, settings), **how)


def test_an_encrypted_job_ends_in_the_bits_of_the_quantised_and_the_masked_one(job):
    pytest.importorskip("tenseal")
    hashes = {
        kind: run(job, f"privacy.aggregation={kind}").model_hash
        for kind in ("plain", "quantised", "masked", "encrypted")
    }
    assert hashes["encrypted"] == hashes["quantised"] == hashes["masked"] != hashes["plain"]


def test_encrypted_jobs_are_simulated_in_one_process_and_run_at_sites_in_rounds(job):
    with pytest.raises(JobConflict, match="hides updates runs in one process"):
        run(job, "privacy.aggregation=encrypted", executor="processes", workers=1)
    partition = {"data.partition", "data.source"}  # of this job's made-up rows
    spec = read_spec(job, ["privacy.aggregation=encrypted"])
    assert not {fault.place for fault in deployable(spec)} - partition
    late = ["privacy.aggregation=encrypted", "rounds.mode=async", "algorithm.name=fedbuff"]
    spec = read_spec(job, [*late, "rounds.buffer=3"])
    assert {fault.place for fault in deployable(spec)} - partition == {"rounds.mode"}


def test_a_limit_on_norms_refuses_who_is_beyond_it_and_is_part_of_the_job(job):
    free, wide = run(job), run(job, "privacy.max_norm=1e9")
    np.testing.assert_allclose(free.vector, wide.vector, rtol=1e-9)  # one by one, not in groups
    assert free.job.hash() != wide.job.hash()
    with pytest.raises(QuorumError, match=r"allowed are 0\.001"):
        run(job, "privacy.max_norm=0.001")


def test_a_limit_that_nobody_could_check_is_told_before_the_run(job):
    with pytest.raises(JobError) as told:
        load_job(job, ["privacy.max_norm=1.0", "privacy.aggregation=quantised"])
    assert any(fault.place == "privacy.max_norm" for fault in told.value.faults)
