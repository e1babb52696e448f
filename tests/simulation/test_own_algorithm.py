"""Algorithms and trainers of one's own: the same on every executor, and told where they go wrong."""

import numpy as np
import own_algorithms as own
import own_trainers as trainers
import pytest

import atoll
from atoll.core.errors import AtollError, ClientError, JobError
from atoll.models.linear import LinearTrainer


def clients():
    rng = np.random.default_rng(0)
    rows = {f"site-{i}": rng.normal(size=(8 + i, 3)).astype(np.float32) for i in range(4)}
    return {site: atoll.Examples(x, (x.sum(1) > 0).astype(int)) for site, x in rows.items()}


def run(algorithm, *, rounds=3, **how):
    job = atoll.Job(
        trainer=LinearTrainer("logistic", 3, dtype="float32"),
        algorithm=algorithm,
        stop=atoll.Stop(rounds=rounds),
    )
    return atoll.simulate(job, clients(), **how)


def test_a_number_is_an_array_wherever_a_vector_may_stand(tmp_path):
    """Serial runs took them; worker processes and checkpoints ended with a traceback."""
    alone = run(own.Numbers())
    assert [record["train"]["rate"] for record in alone.rounds] == [1.0, 0.5, 0.25]
    assert run(own.Numbers(), executor="processes", workers=2).model_hash == alone.model_hash
    run(own.Numbers(), rounds=1, out=tmp_path)
    further = run(own.Numbers(), out=tmp_path, resume=True)
    assert further.model_hash == alone.model_hash
    for done in (alone, further):
        memory = done.progress.memories["site-2"]
        assert memory["times"].tolist() == 3
        assert memory["rates"].tolist() == [0.25, 0.125]


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_memory_cannot_be_changed_behind_the_run_s_back(executor):
    """A serial run did it also in rounds that were aborted; a resumed one failed at once."""
    with pytest.raises(ClientError, match="read-only"):
        run(own.Writes(), executor=executor, workers=2)


@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize("how", ["shape", "name", "dtype", "metric"])
def test_updates_that_do_not_add_up_end_the_run_on_every_executor(executor, how):
    """One process lost the clients that came later, and several ended with what two of them had met."""
    with pytest.raises(
        JobError, match=r"client\(\) of Unlike sent updates .* do not add up: ."
    ) as caught:
        run(own.Unlike(how=how), executor=executor, workers=2)
    assert "same names, shapes and dtypes" in caught.value.remedy


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("unchanged", "gave ndarray after version 0"),
        ("version", "gave version 0 after version 0"),
        ("shape", r"gave parameters \(5,\) float32, and the model's are \(4,\) float32"),
        ("precision", r"gave parameters \(4,\) float64, and the model's are \(4,\) float32"),
    ],
)
def test_a_server_half_that_gives_no_next_state_is_told_so(how, says):
    """One that kept the version trained on the same batches in all rounds, and failed after the last."""
    with pytest.raises(JobError, match=f"^server\\(\\) of Server {says}") as caught:
        run(own.Server(how=how))
    assert "state.next(" in caught.value.remedy


@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize(
    ("where", "what", "says"),
    [
        ("init", None, r"init\(\) of Odd gave a NoneType"),
        ("init slots", None, "gave a NoneType as 'kept'"),
        ("broadcast", None, r"broadcast\(\) of Odd gave a NoneType"),
        ("broadcast model", None, r"gave no 'parameters' but \['model'\]"),
        ("broadcast vectors", {"a": 1}, "gave a dict as 'kept'"),
        ("client", None, r"client\(\) of Odd gave Update, not an update and a memory"),
        ("client memory", None, "gave Update, NoneType, not"),
        ("server slots", "text", "gave a str as 'kept'"),
        ("faults", "it cannot", "algorithm: it cannot"),
    ],
)
def test_what_a_method_should_not_give_is_told_by_its_name(executor, where, what, says):
    """Some ended in tracebacks, some on one executor only, some with the first checkpoint."""
    with pytest.raises(AtollError, match=says):
        run(own.Odd(where=where, what=what), executor=executor, workers=2)


@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize("what", [1.0, [1.0, 2.0]])
def test_numbers_and_lists_are_vectors_of_an_update_too(executor, what):
    alone = run(own.Odd()).model_hash
    assert (
        run(own.Odd(where="client vectors", what=what), executor=executor, workers=2).model_hash
        == alone
    )
    assert run(own.Odd(where="faults", what=None)).model_hash == alone


@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize(
    ("where", "what", "says"),
    [
        ("initial", [0.0] * 4, "initial parameters is a list, and no array"),
        ("initial", np.zeros(3, np.float32), r"initial parameters has shape \(3,\)"),
        ("fit", None, r"fit\(\) of Odd gave a NoneType"),
        ("fit", np.zeros(4), r"fit\(\) of Odd gave a ndarray"),
        ("parameters", slice(3), r"gave ndarray \(3,\) as parameters \(4,\)"),
        ("list", None, r"gave list \(4,\) as parameters \(4,\)"),
    ],
)
def test_what_a_trainer_should_not_give_is_told_by_its_name(executor, where, what, says):
    job = atoll.Job(trainer=trainers.Odd(where, what), stop=atoll.Stop(rounds=1))
    with pytest.raises(AtollError, match=says):
        atoll.simulate(job, clients(), executor=executor, workers=2)
