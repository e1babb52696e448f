import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import ClientError, JobConflict, JobError, LayoutError
from atoll.core.local import LocalRule, LocalWork
from atoll.core.metrics import Count
from atoll.core.seeds import Seed
from atoll.models.function import FunctionTrainer

DATA = Examples(np.zeros((4, 1)), np.array([1.0, 2.0, 3.0, 6.0]))
START = {"mean": np.zeros(1), "seen": np.array(0)}


def halfway(parameters, data, context):
    gap = data.targets.mean() - parameters["mean"]
    parameters["seen"] += len(data)
    return {**parameters, "mean": parameters["mean"] + context.lr * gap}, {
        "loss": float(gap[0] ** 2)
    }


def spread(parameters, data):
    return {"loss": np.mean((data.targets - parameters["mean"]) ** 2), "rows": Count(len(data))}


def fit(trainer, work, rule=None):
    start = trainer.initial(Seed(0))
    return trainer.fit(start, DATA, work=work, rule=rule or LocalRule(), seed=Seed(0), round=2)


def test_a_function_of_named_arrays_is_a_trainer(work):
    trainer = FunctionTrainer(START, halfway, spread)
    assert isinstance(trainer, Trainer)
    got = fit(trainer, work(lr=0.5, batch_size=2, epochs=2))
    assert trainer.layout.unpack(got.parameters)["mean"].tolist() == [1.5]
    assert trainer.layout.unpack(got.parameters)["seen"] == 4
    assert (got.steps, got.lr_sum, got.examples, got.loss) == (4, 2.0, 4, 9.0)
    assert START["seen"] == 0
    metrics = trainer.evaluate(got.parameters, DATA)
    assert metrics["loss"].value == pytest.approx(5.75)
    assert metrics["rows"] == Count(4)


def test_a_function_may_change_what_it_is_given(work):
    def more(parameters, data, context):
        for array in parameters.values():
            array += 1
        return parameters, None

    first = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32), "n": np.array(2)}
    trainer = FunctionTrainer(first, more, spread)
    start = trainer.initial(Seed(0))
    start.flags.writeable = False
    got = trainer.fit(start, DATA, work=work(), rule=LocalRule(), seed=Seed(0), round=0)
    assert (got.parameters - start).tolist() == [1.0] * 5
    assert sorted(start.tolist()) == [0.0] * 4 + [2.0]


def test_the_context_tells_what_was_asked_for(work):
    seen = []

    def look(parameters, data, context):
        seen.append(context)
        return parameters, {"steps": 7}

    trainer = FunctionTrainer(lambda rng: {"w": rng.normal(size=2)}, look, spread, corrects=True)
    rule = LocalRule(mu=0.5, anchor=np.zeros(2))
    got = fit(trainer, work(lr=0.1, epochs=3.0), rule)
    assert (seen[0].epochs, seen[0].lr, seen[0].round, seen[0].rule) == (3.0, 0.1, 2, rule)
    assert seen[0].rng.integers(1 << 30) == Seed(0).generator().integers(1 << 30)
    assert got.steps == 7
    assert np.isnan(got.loss)
    assert got.parameters.tolist() == trainer.initial(Seed(0)).tolist()


def test_the_vector_is_as_wide_as_the_arrays_need():
    def dtype(**arrays):
        return FunctionTrainer(arrays, halfway, spread).layout.dtype

    assert dtype(w=np.zeros(2, np.float32), n=np.array([3])) == "float32"
    assert dtype(w=np.zeros(2, np.float32), n=np.array([2**24 + 1])) == "float64"
    assert dtype(w=np.zeros(2)) == "float64"
    with pytest.raises(LayoutError, match="dtype <U1"):
        dtype(w=np.array(["a"]))


@pytest.mark.parametrize(
    ("returned", "error", "text"),
    [
        ({"mean": np.zeros(1)}, ClientError, "not .parameters, metrics"),
        (([1.0], None), ClientError, "list where arrays by name"),
        (({"mean": np.zeros(2), "seen": 0}, None), LayoutError, r"mean: shape \(2,\), not \(1,\)"),
        (({"mean": np.zeros(1)}, None), LayoutError, "seen: missing"),
        (({"maen": np.zeros(1), "seen": 0}, None), LayoutError, "did you mean 'mean'"),
    ],
)
def test_a_wrong_return_is_told_by_name_and_shape(returned, error, text, work):
    trainer = FunctionTrainer(START, lambda p, d, c: returned, spread)
    with pytest.raises(error, match=text):
        fit(trainer, work())


def test_scores_need_a_loss_and_numbers():
    def trainer(found):
        return FunctionTrainer(START, halfway, lambda p, d: found)

    start = trainer({}).initial(Seed(0))
    with pytest.raises(ClientError, match="without 'loss'"):
        trainer({"accuracy": 1.0}).evaluate(start, DATA)
    with pytest.raises(ClientError, match="'f1' is str"):
        trainer({"loss": 1.0, "f1": "good"}).evaluate(start, DATA)


def test_rules_and_gradients_it_cannot_serve_are_refused(work):
    trainer = FunctionTrainer(START, halfway, spread)
    with pytest.raises(JobConflict, match="corrects"):
        fit(trainer, work(), LocalRule(mu=1.0, anchor=np.zeros(2)))
    with pytest.raises(JobConflict, match="gradient"):
        trainer.gradient(trainer.initial(Seed(0)), DATA)


def test_a_given_gradient_is_zero_where_nothing_is_trained():
    def slope(parameters, data):
        return {"mean": 2 * (parameters["mean"] - data.targets.mean())}, 1.5

    trainer = FunctionTrainer(START, halfway, spread, gradient=slope)
    vector, loss = trainer.gradient(trainer.initial(Seed(0)), DATA)
    assert trainer.layout.views(vector)["mean"].tolist() == [-6.0]
    assert trainer.layout.views(vector)["seen"] == 0
    assert loss == 1.5


def test_torch_in_a_function_of_one_s_own_is_as_in_every_worker(work):
    torch = pytest.importorskip("torch")

    def draw(parameters, data, context):
        count = float(torch.get_num_threads())
        return {"drawn": torch.rand(3).numpy(), "threads": np.array([count])}, None

    def score(parameters, data):
        return {"loss": torch.rand(1).item(), "threads": torch.get_num_threads()}

    trainer = FunctionTrainer(
        lambda rng: {"drawn": torch.rand(3).numpy(), "threads": np.zeros(1)}, draw, score
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(5)
        first, start = fit(trainer, work()), trainer.initial(Seed(0))
        state = torch.get_rng_state()
        torch.rand(7)  # somebody else draws meanwhile
        again = fit(trainer, work())
        assert again.parameters.tolist() == first.parameters.tolist()
        assert trainer.initial(Seed(0)).tolist() == start.tolist() != again.parameters.tolist()
        assert trainer.layout.unpack(again.parameters)["threads"].tolist() == [1.0]
        told = [trainer.evaluate(start, DATA) for _ in range(2)]
        assert told[0]["loss"].value == told[1]["loss"].value
        assert told[0]["threads"].value == 1.0
        other = trainer.fit(
            start, DATA, work=work(), rule=LocalRule(), seed=Seed(1), round=2
        ).parameters
        assert other.tolist() != again.parameters.tolist()
        # Nothing of the caller's was touched.
        assert torch.get_num_threads() == 2
        torch.manual_seed(5)
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_functions_in_two_threads_draw_from_torch_one_after_the_other(work):
    """One drew from the stream that the other had set, and put back what was the other's."""
    torch = pytest.importorskip("torch")
    begun, both, drawn = threading.Event(), threading.Event(), threading.Event()

    def draw(parameters, data, context):
        if context.round == 1:  # lets the other begin, and draws before that does
            begun.set()
            both.wait(0.3)
        elif context.round == 2:
            both.set()
            drawn.wait(0.3)
        values = torch.rand(3).numpy()
        drawn.set()
        return {"drawn": values}, None

    trainer = FunctionTrainer({"drawn": np.zeros(3, np.float32)}, draw, spread)

    def trained(round):
        given = {"work": work(), "rule": LocalRule(), "seed": Seed(round % 2), "round": round}
        return trainer.fit(np.zeros(3, np.float32), DATA, **given).parameters.tolist()

    def second():
        begun.wait()
        return trained(2)

    wanted = [trained(3), trained(4)]
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(trained, 1), pool.submit(second)]
    assert [one.result() for one in found] == wanted


def test_a_function_that_is_the_first_to_load_torch_is_no_exception():
    """Its first client in a process had drawn from torch's own seed, and counted on all cores."""
    script = """
import sys
import numpy as np
from atoll.core.contracts import Examples
from atoll.core.local import LocalRule, LocalWork
from atoll.core.seeds import Seed
from atoll.models.function import FunctionTrainer

def fit(parameters, data, context):
    import torch
    count = np.array([float(torch.get_num_threads())])
    return {"drawn": torch.rand(3).numpy(), "own": context.rng.random(2), "threads": count}, None

start = {"drawn": np.zeros(3), "own": np.zeros(2), "threads": np.zeros(1)}
trainer = FunctionTrainer(start, fit, lambda parameters, data: {"loss": 0.0})
data, work = Examples(np.zeros((4, 1)), np.zeros(4)), LocalWork(epochs=1, batch_size=2)
assert "torch" not in sys.modules
for _ in range(2):
    got = trainer.fit(trainer.initial(Seed(0)), data, work=work, rule=LocalRule(), seed=Seed(7), round=0)
    print(got.parameters.tolist())
"""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    first, second = (done.stdout + done.stderr).splitlines()
    assert first == second
    assert first.endswith(", 1.0]")


def test_rows_that_a_function_changes_in_place_stay_as_they_are():
    """The next round began at the changed ones, and at which of them hung on the executor."""

    def changes(parameters, data):
        data.features[:] -= 1.0
        data.targets[:] = 0.0
        return {"loss": float(data.features.mean())}

    def fit(parameters, data, context):
        return {"w": np.array([changes(parameters, data)["loss"]])}, None

    def gradient(parameters, data):
        return {"w": np.array([changes(parameters, data)["loss"]])}, 0.0

    trainer = FunctionTrainer({"w": np.zeros(1)}, fit, changes, gradient=gradient)
    rows, start = Examples(np.ones((4, 2)), np.ones(4)), trainer.initial(Seed(0))
    work = LocalWork(epochs=1, batch_size=2)
    for turn in range(2):
        got = trainer.fit(start, rows, work=work, rule=LocalRule(), seed=Seed(0), round=turn)
        assert got.parameters.tolist() == [0.0]
        assert trainer.gradient(start, rows)[0].tolist() == [0.0]
        assert trainer.evaluate(start, rows)["loss"].value == 0.0
    assert (rows.features == 1).all()
    assert (rows.targets == 1).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [("initial", None), ("fit", None), ("evaluate", "loss"), ("gradient", 5), ("corrects", 1)],
)
def test_what_is_no_function_is_refused_where_the_trainer_is_made(option, value):
    given = {"initial": START, "fit": halfway, "evaluate": spread, option: value}
    with pytest.raises(JobError) as caught:
        FunctionTrainer(**given)
    assert [fault.place for fault in caught.value.faults] == [f"model.{option}"]


@pytest.mark.parametrize("steps", [-1, 2.5, "many", float("nan")])
def test_steps_that_cannot_have_been_taken_are_refused(steps, work):
    """They went into what SCAFFOLD and FedNova divide by."""
    trainer = FunctionTrainer(START, lambda p, d, c: (p, {"steps": steps}), spread)
    with pytest.raises(ClientError, match="steps"):
        fit(trainer, work())
    told = FunctionTrainer(START, lambda p, d, c: (p, {"steps": np.int64(3)}), spread)
    assert fit(told, work()).steps == 3


def test_fractions_in_an_entry_of_whole_numbers_are_told_as_that(work):
    """A model that began as zeros of whole numbers was said to hold what float32 cannot."""
    trainer = FunctionTrainer({"w": [0, 0]}, lambda p, d, c: ({"w": p["w"] + 0.1}, None), spread)
    with pytest.raises(LayoutError, match=r"began as int64.*floats"):
        fit(trainer, work())
    counts = FunctionTrainer({"w": [0, 0]}, lambda p, d, c: ({"w": p["w"] + 1.0}, None), spread)
    assert fit(counts, work()).parameters.tolist() == [1, 1]
