"""A run on tables leaves what its model has to be given: raw rows lead to the very figures of the run."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import atoll
from atoll.core.errors import AtollError, DataError, JobConflict, JobError
from atoll.data.inputs import Inputs
from atoll.data.population import LazyClients
from atoll.job.islands import islands_of, sized
from atoll.job.privacy import Privacy, RowPrivacy
from atoll.models.function import FunctionTrainer
from atoll.models.linear import LinearTrainer
from atoll.models.torch import TorchTrainer

JOB = """seed = 2
[data]
source = "rows.csv"
site_column = "site"
target = "ill"
test_fraction = 0.5
central_test = true
[data.columns.age]
type = "integer"
missing = [-9]
[data.columns.sex]
type = "category"
[evaluation]
compare = false
[rounds]
count = 3
"""


@pytest.fixture
def folder(tmp_path):
    rng, lines = np.random.default_rng(0), ["site,age,sex,ill"]
    for i in range(60):
        age = rng.choice([rng.integers(20, 80), -9], p=[0.9, 0.1])
        lines.append(
            f"{'abc'[i % 3]},{age},{rng.choice(['f', 'm', ''])},{rng.choice(['no', 'yes'])}"
        )
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def test_raw_rows_and_the_folder_alone_give_the_model_s_answers(folder):
    job = atoll.load_job(folder / "job.toml")
    run = atoll.simulate(job, out=folder / "run")
    inputs = Inputs.read(folder / "run")
    assert inputs == run.inputs
    raw = (folder / "rows.csv").read_text().splitlines()
    rows = {"age": [], "sex": []}
    for line in raw[1:]:
        _, age, sex, _ = line.split(",")
        rows["age"].append(float(age))
        rows["sex"].append(sex)
    features = inputs.features(rows)
    islands = job.islands(2)
    trained = np.concatenate([e.features for e in islands.train.values()])
    held_out = np.concatenate([e.features for e in islands.held_out.values()])
    ours = sorted(map(tuple, features.tolist()))
    assert ours == sorted(map(tuple, np.concatenate([trained, held_out]).tolist()))
    # The central figure again, from the parameters by name and the classes by word.
    test = islands.central
    logits = test.features @ run.parameters["weight"] + run.parameters["intercept"]
    right = inputs.labels(logits) == np.array(["no", "yes"])[test.targets]
    assert right.mean() == run.rounds[-1]["central"]["accuracy"]
    loss = -np.log(inputs.probabilities(logits)[np.arange(len(test)), test.targets]).mean()
    assert loss == pytest.approx(run.rounds[-1]["central"]["loss"])
    assert len(run.parameters["weight"]) == len(inputs.names)


def test_the_report_of_a_run_holds_them_too_and_replaces_those_of_another(folder):
    job = atoll.load_job(folder / "job.toml")
    atoll.simulate(job).report(folder / "report")
    assert Inputs.read(folder / "report").names == ("age", "sex=f", "sex=m")
    other = atoll.load_job(folder / "job.toml", ["preprocessing.mode=site"])
    run = atoll.simulate(other, out=folder / "report", overwrite=True)
    assert run.inputs is None  # each site has its own
    assert not (folder / "report" / "inputs.json").exists()
    assert json.loads((folder / "report" / "manifest.json").read_text())["status"] == "completed"


def test_a_job_file_runs_on_rows_that_are_handed_over_too(folder):
    job = atoll.load_job(folder / "job.toml")
    islands = job.islands(2)
    own = atoll.simulate(job)
    handed = atoll.simulate(
        job, islands.train, held_out=islands.held_out, central=islands.central, seed=2
    )
    assert len(handed.parameters["weight"]) == 3
    # Sites of one's own are trained one by one, clients that are handed over side by side: other last bits.
    for name, value in own.parameters.items():
        np.testing.assert_allclose(handed.parameters[name], value, rtol=1e-9)


def test_the_best_model_is_had_as_the_final_one_is(folder):
    changes = ["stop.metric=federated.loss", "local.lr=30.0"]
    run = atoll.simulate(atoll.load_job(folder / "job.toml", changes))
    best = run.manifest["best"]["round"]
    assert best < 3  # so large a rate makes it worse
    assert run.best_model["weight"].tolist() == run.best_parameters["weight"].tolist()
    assert run.best_model["weight"].tolist() != run.model["weight"].tolist()


def test_columns_that_are_left_out_are_named(folder):
    lines = (folder / "rows.csv").read_text().splitlines()
    more = [f"{line},free text number {i}" for i, line in enumerate(lines[1:])]
    (folder / "rows.csv").write_text("\n".join([lines[0] + ",remark", *more]) + "\n")
    run = atoll.simulate(atoll.load_job(folder / "job.toml"))
    assert any("left out" in note and "remark" in note for note in run.manifest["notes"])
    assert "remark" not in run.inputs.names


def test_rows_that_no_model_reads_are_named_before_training():
    x, y = np.zeros((4, 2)), np.zeros(4, int)
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    clients = {"a": atoll.Examples(x, y), "b": (x, y), "c": {"features": x, "targets": y}}
    with pytest.raises(JobConflict) as caught:
        atoll.simulate(job, clients, central=[x, y])
    assert [f.place for f in caught.value.faults] == ["client 'b'", "client 'c'", "central"]
    assert "atoll.Examples" in caught.value.faults[0].remedy
    own = FunctionTrainer(
        {"w": np.zeros(1)}, lambda p, data, context: (p, None), lambda p, data: {"loss": 0.0}
    )
    run = atoll.simulate(atoll.Job(trainer=own, stop=atoll.Stop(rounds=1)), {"b": (x, y)})
    assert run.status == "completed"


def test_clients_whose_rows_have_other_columns_are_named_before_training():
    def rows(columns):
        return atoll.Examples(np.zeros((4, columns)), np.array([0, 1, 0, 1]))

    seen = []
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    clients = {"a": rows(2), "b": rows(3), "c": rows(2), "d": rows(3)}
    with pytest.raises(JobConflict) as caught:
        atoll.simulate(job, clients, central=rows(5), observers=[seen.append])
    places = [f.place for f in caught.value.faults]
    assert places == ["client 'b'", "client 'd'", "central"]
    assert "3 values a row, client 'a' has 2 values" in caught.value.faults[0].message
    assert not seen


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64])
def test_labels_that_are_handed_over_are_classes_of_whatever_type(folder, dtype):
    changes = ["model.kind=multinomial", "rounds.count=1", "data.central_test=false"]
    rows = atoll.Examples(np.eye(3), np.array([0, 2, 1], dtype))
    run = atoll.simulate(atoll.load_job(folder / "job.toml", changes), {"a": rows, "b": rows})
    assert run.parameters["weight"].shape == (3, 3)


def test_amounts_that_are_handed_over_are_no_classes(folder):
    """A regression counted whole numbers up to the largest as its classes, and was evaluated row by row."""
    changes = ["model.kind=linear", "data.task=regression", "data.target=age", "rounds.count=1"]
    job = atoll.load_job(folder / "job.toml", [*changes, "data.central_test=false"])
    assert job.trainer(sized(islands_of({"a": PRICES}, {}, None))).classes == 1


PRICES = atoll.Examples(np.eye(3), np.array([250_000, 410_000, 320_000]))


def test_bytes_that_a_network_takes_as_floats_only_are_told_before_training():
    def run(network):
        job = atoll.Job(trainer=TorchTrainer(network, classes=2), stop=atoll.Stop(rounds=1))
        rows = atoll.Examples(np.zeros((4, 2), np.uint8), np.array([0, 1, 0, 1], np.uint8))
        return atoll.simulate(job, {"a": rows, "b": rows})

    with pytest.raises(JobConflict, match="features of dtype uint8") as caught:
        run(torch.nn.Linear(2, 2))
    assert "x.float()" in caught.value.faults[0].remedy
    tokens = torch.nn.Sequential(
        torch.nn.Embedding(256, 2), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    assert run(Whole(tokens)).status == "completed"


class Whole(torch.nn.Module):
    """Takes whole numbers only."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.long())


@pytest.mark.parametrize("given", [print, None, "print", [print, 3]])
def test_observers_that_are_no_list_of_functions_are_refused(given):
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    clients = {"a": atoll.Examples(np.zeros((2, 2)), np.array([0, 1]))}
    with pytest.raises(JobError, match="function") as caught:
        atoll.simulate(job, clients, observers=given)
    assert "observers=[print]" in caught.value.remedy


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"executor": 5}, "5 is no executor"),
        ({"executor": ("serial", 0, "auto")}, "is no executor"),
        ({"workers": "2"}, "'2' workers"),
        ({"workers": 1.5}, "1.5 workers"),
        ({"workers": -1}, "-1 workers"),
        ({"initial": np.zeros(3)}, "a ndarray is no model"),
        ({"out": 5}, "out is 5"),
    ],
)
def test_choices_of_another_kind_are_refused_with_an_example(choice, said):
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    clients = {"a": atoll.Examples(np.zeros((2, 2)), np.array([0, 1]))}
    with pytest.raises(JobError, match=said) as caught:
        atoll.simulate(job, clients, **choice)
    assert caught.value.remedy


class Masked(torch.nn.Module):
    """Keeps a mask among what is saved, as many transformers do."""

    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(2, 2)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x):
        return self.dense(x)


def test_initial_values_that_are_not_finite_are_named_before_training():
    """Every update was refused in every round, with the advice to lower the learning rate."""
    clients = {"a": atoll.Examples(np.zeros((2, 2), np.float32), np.array([0, 1]))}
    with pytest.raises(JobError, match=r"entry 'mask': its initial values .*persistent=False"):
        atoll.simulate(atoll.Job(trainer=TorchTrainer(Masked)), clients)


def test_a_trainer_whose_layout_fails_is_not_taken_for_a_function_that_makes_one():
    class Broken(LinearTrainer):
        @property
        def layout(self):
            raise AttributeError("no such layer")

    clients = {"a": atoll.Examples(np.zeros((2, 2)), np.array([0, 1]))}
    with pytest.raises(AttributeError, match="no such layer"):
        atoll.simulate(atoll.Job(trainer=Broken("logistic", 2)), clients)


@pytest.mark.parametrize("names", [(0, 1), (1, "1"), (None, "a"), (("a", 1), "b")])
def test_clients_whose_names_are_no_texts_are_refused_with_an_example(names):
    """Runs with numbers for names could not be resumed, of another data set as they said."""
    rows = atoll.Examples(np.zeros((2, 2)), np.array([0, 1]))
    job = atoll.Job(trainer=LinearTrainer("logistic", 2))
    with pytest.raises(DataError, match="name it by a text, such as 'client-"):
        atoll.simulate(job, dict.fromkeys(names, rows))
    with pytest.raises(DataError, match="name it by a text"):
        atoll.simulate(job, {"a": rows}, held_out=dict.fromkeys(names, rows))


@pytest.mark.parametrize("kind", ["linear", "logistic", "multinomial"])
@pytest.mark.parametrize("private", [False, True])
def test_a_single_column_of_targets_is_one_a_row(kind, private):
    """It was trained on, and judging the model ended in an error of NumPy's about shapes."""
    features, labels = np.eye(4)[:, :2], np.array([0, 1, 0, 1])
    noise = RowPrivacy(clip=1.0, noise_multiplier=1.0, open_metrics=True) if private else None
    work = atoll.LocalWork(batch_size=2, optimizer=atoll.Optimizer(lr=0.1))
    classes = {"classes": 2} if kind == "multinomial" else {}
    found = []
    for targets in (labels, labels[:, None]):
        job = atoll.Job(
            trainer=LinearTrainer(kind, 2, **classes),
            stop=atoll.Stop(rounds=2),
            local=work,
            privacy=Privacy(record=noise),
        )
        rows = {name: atoll.Examples(features, targets) for name in "ab"}
        run = atoll.simulate(job, rows, held_out=rows)
        found.append([*run.parameters["weight"].ravel(), run.metrics["federated.loss"].iloc[-1]])
    if not private:  # whose noise is another each time
        np.testing.assert_allclose(*found, rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_targets_in_columns_are_told_with_what_to_give(kind):
    rows = atoll.Examples(np.zeros((4, 2)), np.zeros((4, 2), int))
    with pytest.raises(JobConflict, match=r"targets of shape \(4, 2\).*give (one column|classes)"):
        atoll.simulate(atoll.Job(trainer=LinearTrainer(kind, 2)), {"a": rows})


@pytest.mark.parametrize("what", ["features", "targets"])
def test_masked_values_are_no_values(what):
    """What lay below a mask was trained on without a word."""
    given = {"features": np.zeros((3, 2)), "targets": np.array([0, 1, 1])}
    whole = np.ma.array(given[what], mask=np.zeros(given[what].shape, bool))
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    atoll.simulate(job, {"a": atoll.Examples(**{**given, what: whole})})
    whole[1] = np.ma.masked
    with pytest.raises(DataError, match=f"client 'a': {what} hold masked values"):
        atoll.simulate(job, {"a": atoll.Examples(**{**given, what: whole})})


def test_a_client_that_is_nothing_and_a_trainer_that_is_none_are_named():
    job = atoll.Job(trainer=LinearTrainer("logistic", 2))
    with pytest.raises(DataError, match="client 'a': a NoneType holds no rows"):
        atoll.simulate(job, {"a": None})
    rows = atoll.Examples(np.zeros((2, 2)), np.array([0, 1]))
    with pytest.raises(JobError, match="5, which the job's function made, is no trainer"):
        atoll.simulate(atoll.Job(trainer=lambda islands: 5), {"a": rows})


def test_new_rows_with_a_target_of_0_and_1_are_scored_as_they_are(folder):
    text = (folder / "rows.csv").read_text().replace(",no\n", ",0\n").replace(",yes\n", ",1\n")
    (folder / "rows.csv").write_text(text)
    run = atoll.simulate(atoll.load_job(folder / "job.toml"), out=folder / "run")
    inputs, rows = Inputs.read(folder / "run"), pd.read_csv(folder / "rows.csv")
    assert inputs.classes == ("0", "1")
    outputs = inputs.features(rows) @ run.parameters["weight"] + run.parameters["intercept"]
    right = (inputs.labels(outputs) == rows["ill"]).mean()
    assert 0.5 < right == ((outputs > 0) == inputs.targets(rows)).mean()


def rows_of(count, labels=(0, 1), gap=None):
    features = np.random.default_rng(count).normal(size=(count, 2))
    if gap is not None:
        features[gap] = np.nan
    return atoll.Examples(features, np.resize(np.array(labels), count))


def one_hot(index, seed):
    return atoll.Examples(np.zeros((4, 2)), np.eye(2)[[0, 1, 0, 1]])


def words(index, seed):
    return rows_of(4, ["no", "yes"])


def broken(index, seed):
    raise RuntimeError("mine")


@pytest.mark.parametrize(
    ("make", "told", "remedy"),
    [
        (one_hot, r"shape \(4, 2\), and the model has one a row", "argmax"),
        (words, "targets of dtype <U3 are no numbers", "number the classes"),
        (broken, "RuntimeError: mine", ""),
    ],
)
def test_a_few_clients_of_a_population_are_looked_at_before_training(make, told, remedy):
    job, seen = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1)), []
    with pytest.raises(AtollError, match=told) as caught:
        atoll.simulate(job, LazyClients(1000, make), observers=[seen.append])
    assert remedy in str(caught.value)
    assert not seen
    assert len(caught.value.faults) <= 2


@pytest.mark.parametrize("where", ["clients", "held_out", "central"])
def test_gaps_in_rows_are_named_before_training(where):
    """In rows of a test they gave ``loss: None``, and clients with gaps were left out of every round."""
    given = {"clients": {"a": rows_of(9), "b": rows_of(8)}, "held_out": {"a": rows_of(5)}}
    given["central"] = rows_of(7)
    if where == "central":
        given["central"], place = rows_of(7, gap=3), "central"
    else:
        place = {"clients": "client 'a'", "held_out": "held-out rows of 'a'"}[where]
        given[where]["a"] = rows_of(9, gap=[3, 5])
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    with pytest.raises(JobConflict) as caught:
        atoll.simulate(job, **given)
    (fault,) = caught.value.faults
    assert fault.place == place
    assert "features[3] to begin with" in fault.message


def test_a_module_that_fills_gaps_itself_is_given_them():
    module = torch.nn.Sequential(NoGaps(), torch.nn.Linear(2, 2))
    job = atoll.Job(trainer=TorchTrainer(module), stop=atoll.Stop(rounds=1))
    run = atoll.simulate(job, {"a": rows_of(9, gap=3)}, central=rows_of(9, gap=2))
    assert np.isfinite(run.metrics["central.loss"]).all()


class NoGaps(torch.nn.Module):
    def forward(self, x):
        return torch.nan_to_num(x)


def test_of_a_thousand_clients_with_the_same_fault_a_few_are_named():
    clients = {f"c{i}": words(i, None) for i in range(1000)}
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    with pytest.raises(DataError, match=r"1,000 faults(.|\n)*and 995 more of this kind") as caught:
        atoll.simulate(job, clients)
    assert len(caught.value.faults) == 6


def test_where_the_first_client_is_the_odd_one_it_is_named():
    """It was left out of every round without a word."""
    job = atoll.Job(trainer=LinearTrainer("logistic", 2), stop=atoll.Stop(rounds=1))
    clients = {"a": atoll.Examples(np.zeros((4, 3)), np.array([0, 1, 0, 1])), "b": rows_of(4)}
    with pytest.raises(JobConflict) as caught:
        atoll.simulate(job, clients)
    assert [fault.place for fault in caught.value.faults] == ["client 'a'"]
