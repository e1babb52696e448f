"""Names in a job become algorithms and trainers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from atoll.algorithms import ALGORITHMS, FedAvg
from atoll.core.errors import JobError, MissingExtra
from atoll.core.seeds import Seed
from atoll.job import load_job, registry
from atoll.job.datasets import load_islands
from atoll.job.registry import algorithm_named, algorithms, model_faults, trainer_for
from atoll.job.schema import AlgorithmSpec

OPTIONS = {
    "fedsgd": {"server_lr": 0.5},
    "fedavg": {"server_lr": 0.1},
    "fedavgm": {"server_lr": 0.5, "momentum": 0.5, "nesterov": True},
    "fedadagrad": {"server_lr": 0.5, "beta1": 0.1, "tau": 0.01, "initial_v": 0.5},
    "fedadam": {"beta1": 0.8, "beta2": 0.9, "bias_correction": "none"},
    "fedyogi": {"beta1": 0.8, "beta2": 0.9, "tau": 1},
    "fedprox": {"mu": 0.5, "server_lr": 0.5},
    "scaffold": {},
    "fednova": {"mu": 0.1, "server_lr": 0.5},
    "feddyn": {"alpha": 0.1},
    "qfedavg": {},
    "fedasync": {"alpha": 0.5, "decay": "polynomial", "a": 0.3},
    "fedbuff": {"server_lr": 0.5, "exponent": 1},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_takes_its_options_from_a_job(name):
    made = algorithm_named(AlgorithmSpec(name=name, **OPTIONS[name]))
    assert type(made) is ALGORITHMS[name]
    assert {key: getattr(made, key) for key in OPTIONS[name]} == OPTIONS[name]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_default_of_every_algorithm_may_be_written_out(name):
    defaults = {
        f.name: f.default
        for f in dataclasses.fields(ALGORITHMS[name])
        if isinstance(f.default, bool | int | float | str)
    }
    assert algorithm_named(AlgorithmSpec(name=name, **defaults)) == ALGORITHMS[name]()


def test_all_faults_of_options_come_together():
    spec = AlgorithmSpec(name="fedavgm", momentum=1.5, server_lr="fast", nesterof=True)
    with pytest.raises(JobError) as caught:
        algorithm_named(spec)
    assert {fault.place for fault in caught.value.faults} == {
        "algorithm.momentum", "algorithm.server_lr", "algorithm.nesterof"}  # fmt: skip


def test_misspelt_weights_are_recognised():
    with pytest.raises(JobError) as caught:
        algorithm_named(AlgorithmSpec(name="fedavg", wieghts="uniform"))
    assert caught.value.faults[0].remedy == "did you mean 'weights'?"


@dataclass(frozen=True)
class Half(FedAvg):
    """What an installed package might add."""

    share: float = 0.5


class Point:
    def __init__(self, name, kind):
        self.name, self.load = name, lambda: kind


def installed(monkeypatch, *points):
    found = {"atoll.algorithms": points}
    monkeypatch.setattr(registry, "entry_points", lambda *, group: found[group])


def test_installed_package_adds_an_algorithm(monkeypatch, job_file):
    installed(monkeypatch, Point("half", Half))
    job = load_job(job_file("[algorithm]\nname = 'half'\nshare = 0.25\n"))
    assert job.algorithm == Half(share=0.25)
    assert list(algorithms())[-1] == "half"


def test_installed_package_cannot_replace_a_method_of_ours(monkeypatch):
    installed(monkeypatch, Point("fedavg", Half))
    assert type(algorithm_named(AlgorithmSpec(name="fedavg"))) is FedAvg


@pytest.fixture
def _own(folder, monkeypatch):
    """A module of the job's own, forgotten afterwards."""
    import sys

    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "start = {'w': np.zeros(2)}\n"
        "def fit(parameters, data, context):\n"
        "    return {'w': parameters['w'] + len(data)}, {'loss': 0.5}\n"
        "def score(parameters, data):\n"
        "    return {'loss': float(parameters['w'].sum())}\n"
        "def slope(parameters, data):\n"
        "    return {'w': np.ones(2)}, 0.0\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("mine", None)
    sys.modules.pop("nets", None)


FIT = {
    "kind": "function", "fit": "mine.py:fit", "evaluate": "mine.py:score", "initial": "mine.py:start"
}  # fmt: skip


@pytest.mark.usefixtures("_own")
def test_functions_of_a_file_become_a_trainer(folder, spec_of):
    spec = spec_of(model={**FIT, "options": {"gradient": "mine.py:slope"}})
    islands = load_islands(spec, folder, 0)
    trainer = trainer_for(spec, islands, folder)
    assert not trainer.corrects
    assert trainer.initial(Seed(0)).tolist() == [0.0, 0.0]
    assert trainer.evaluate(np.array([1.0, 2.0]), islands.train["east"])["loss"].value == 3.0
    assert trainer.gradient(np.zeros(2), islands.train["east"])[0].tolist() == [1.0, 1.0]


@pytest.mark.usefixtures("_own")
def test_fit_that_corrects_may_run_scaffold(folder, spec_of):
    spec = spec_of(
        model={**FIT, "options": {"corrects": True, "gradient": "mine.py:slope"}},
        algorithm={"name": "scaffold"},
    )
    assert trainer_for(spec, load_islands(spec, folder, 0), folder).corrects


@pytest.mark.usefixtures("_own")
def test_fit_keeps_personal_entries(folder, spec_of):
    spec = spec_of(model={**FIT, "personal": ["w"]})
    layout = trainer_for(spec, load_islands(spec, folder, 0), folder).layout
    assert layout.shared == slice(0, 0)


def test_linear_models_take_their_sizes_from_the_data(folder, spec_of):
    spec = spec_of(model={"kind": "multinomial", "l2": 0.5, "dtype": "float32"})
    trainer = trainer_for(spec, load_islands(spec, folder, 0), folder)
    sizes = {entry.name: entry.shape for entry in trainer.layout.entries}
    assert sizes == {"weight": (2, 4), "intercept": (2,)}  # age, dose, sex f, sex m
    assert trainer.layout.entries[0].dtype == "float32"


def test_personal_patterns_of_linear_models(folder, spec_of):
    spec = spec_of(model={"personal": ["intercept"], "options": {"exact_auc": False}})
    layout = trainer_for(spec, load_islands(spec, folder, 0), folder).layout
    assert (layout.shared, layout.size) == (slice(0, 4), 5)


def test_networks_take_their_sizes_from_the_data(folder, spec_of):
    pytest.importorskip("torch")
    spec = spec_of(model={"kind": "mlp", "options": {"hidden": [3]}})
    trainer = trainer_for(spec, load_islands(spec, folder, 0), folder)
    assert trainer.layout.size == 4 * 3 + 3 + 3 * 2 + 2


def test_lanes_stand_before_the_network_and_belong_to_the_job(folder, spec_of):
    pytest.importorskip("torch")
    spec = spec_of(model={"kind": "mlp", "lanes": 3, "devices": ["cpu", "cpu"]})
    trainer = trainer_for(spec, load_islands(spec, folder, 0), folder)
    assert (trainer.width, trainer.devices) == (3, ("cpu", "cpu"))
    assert trainer.lanes > 1
    assert spec.hash() != spec_of(model={"kind": "mlp"}).hash()


def test_lanes_where_they_mean_nothing_are_faults(folder, spec_of):
    pytest.importorskip("torch")
    with pytest.raises(JobError, match=r"model\.lanes: has no meaning for kind 'logistic'"):
        spec_of(model={"lanes": 2})
    with pytest.raises(JobError, match=r"model\.devices: is for clients in lanes"):
        spec_of(model={"kind": "mlp", "devices": ["cuda"]})
    spec = spec_of(model={"kind": "mlp", "lanes": 2, "devices": ["cuda:99"]})
    with pytest.raises(JobError, match=r"model\.devices: this machine has no device 'cuda:99'"):
        trainer_for(spec, load_islands(spec, folder, 0), folder)


@pytest.mark.usefixtures("_own")
def test_factory_of_a_file_becomes_a_module(folder, spec_of):
    pytest.importorskip("torch")
    (folder / "nets.py").write_text(
        "from torch import nn\ndef net(inputs, classes=2):\n    return nn.Linear(inputs, classes)\n"
    )
    spec = spec_of(
        model={"kind": "torch", "factory": "nets.py:net", "options": {"inputs": 4},
               "personal": ["bias"]}
    )  # fmt: skip
    trainer = trainer_for(spec, load_islands(spec, folder, 0), folder)
    assert [(e.name, e.shape) for e in trainer.layout.entries] == [
        ("weight", (2, 4)),
        ("bias", (2,)),
    ]
    assert trainer.layout.shared == slice(0, 8)


@pytest.mark.usefixtures("_own")
def test_factory_that_raises_is_a_fault_of_the_job(folder, spec_of):
    pytest.importorskip("torch")
    (folder / "nets.py").write_text("def net():\n    raise RuntimeError('no weights')\n")
    spec = spec_of(model={"kind": "torch", "factory": "nets.py:net"})
    with pytest.raises(JobError, match=r"model\.factory: RuntimeError: no weights"):
        trainer_for(spec, load_islands(spec, folder, 0), folder)


@pytest.mark.usefixtures("_own")
def test_two_modules_of_one_name_are_refused(folder, spec_of, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "mine.py").write_text("fit = 1\n")
    spec = spec_of(model=FIT)
    clash = spec.model.model_copy(update={"fit": "sub/mine.py:fit"})
    found = model_faults(spec.model_copy(update={"model": clash}), folder)
    assert [f.place for f in found] == ["model.fit"]
    assert "rename the file" in found[0].message


def without_torch(monkeypatch):
    def missing():
        raise MissingExtra("torch is not installed", remedy="pip install 'atoll[torch]'")

    monkeypatch.setattr(registry, "_networks", missing)


def test_misspelt_linear_model_is_recognised_without_torch(monkeypatch, folder, spec_of):
    without_torch(monkeypatch)
    with pytest.raises(JobError, match="did you mean 'logistic'"):
        spec_of(model={"kind": "logistc"})


def test_network_without_torch_names_the_extra(monkeypatch, folder, spec_of):
    without_torch(monkeypatch)
    with pytest.raises(MissingExtra, match=r"atoll\[torch\]"):
        spec_of(model={"kind": "paper_cnn"})


@pytest.mark.parametrize(
    ("data", "options", "exact"),
    [
        ({}, {}, False),
        ({}, {"exact_auc": True}, True),
        ({"site_column": "", "partition": {"kind": "iid", "clients": 2}}, {}, True),
    ],
)
def test_single_scores_are_kept_where_rows_lie_together_or_it_is_asked_for(
    folder, spec_of, data, options, exact
):
    spec = spec_of(data=data, model={"options": options})
    assert trainer_for(spec, load_islands(spec, folder, 0), folder).exact_auc is exact


def test_networks_of_sites_keep_no_single_scores(folder, spec_of):
    pytest.importorskip("torch")
    spec = spec_of(model={"kind": "mlp", "options": {"hidden": [3]}})
    assert trainer_for(spec, load_islands(spec, folder, 0), folder).exact_auc is False


LOSSES = """import torch
from torch.nn import functional as F
weights = torch.tensor([1.0, 3.0])
constant = 0.5
def weighted(output, target):
    return F.cross_entropy(output, target, weight=weights)
def huber(output, target):
    return F.huber_loss(output.reshape(target.shape), target.to(output.dtype))
"""


@pytest.mark.usefixtures("_own")
def test_a_loss_of_the_job_s_own_is_what_is_trained(folder, spec_of):
    torch = pytest.importorskip("torch")
    (folder / "nets.py").write_text(LOSSES)
    spec = spec_of(model={"kind": "mlp", "loss": "nets.py:weighted"})
    islands = load_islands(spec, folder, 0)
    trainer = trainer_for(spec, islands, folder)
    assert (trainer.task, trainer.classes) == ("classification", 2)
    rows, start = islands.train["east"], trainer.initial(Seed(1))
    logits = trainer.module_with(start)(torch.tensor(rows.features, dtype=torch.float32))
    weights, labels = torch.tensor([1.0, 3.0]), torch.tensor(rows.targets)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
    assert trainer.gradient(start, rows)[1] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.usefixtures("_own")
def test_a_loss_of_one_s_own_is_for_the_task_of_the_data(folder, spec_of):
    pytest.importorskip("torch")
    (folder / "nets.py").write_text(LOSSES)
    spec = spec_of(
        model={"kind": "mlp", "loss": "nets.py:huber"},
        data={"target": "dose", "task": "regression"},
    )
    trainer = trainer_for(spec, load_islands(spec, folder, 0), folder)
    assert (trainer.task, trainer.classes) == ("regression", None)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(
    ("name", "told"),
    [("nets.py:weightd", "weighted"), ("nets.py:constant", "not a function"), ("no.py:f", "no.py")],
)
def test_a_loss_that_is_none_is_named_before_training(folder, spec_of, name, told):
    pytest.importorskip("torch")
    (folder / "nets.py").write_text(LOSSES)
    with pytest.raises(JobError) as caught:
        spec_of(model={"kind": "mlp", "loss": name})
    (fault,) = caught.value.faults
    assert fault.place == "model.loss"
    assert told in f"{fault.message} {fault.remedy}"
