"""What a model gives row by row adds up to what it gives for all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atoll.core.contracts import Examples
from atoll.core.seeds import Seed
from atoll.models.linear import LinearTrainer
from atoll.models.scores import hits


def rows(kind: str, count: int = 50) -> Examples:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    y = x @ np.array([1.0, -1.0, 0.5, 0.0]) + rng.normal(size=count)
    targets = {"linear": y, "logistic": y > 0, "multinomial": np.digitize(y, [-1.0, 1.0])}[kind]
    return Examples(x, targets.astype(np.float32 if kind == "linear" else np.int64))


@pytest.mark.parametrize("kind", ["linear", "logistic", "multinomial"])
def test_rows_of_a_linear_model_add_up(kind: Any) -> None:
    trainer = LinearTrainer(kind, 4, **({"classes": 3} if kind == "multinomial" else {}))
    data = rows(kind)
    vector = np.random.default_rng(1).normal(size=trainer.layout.size)
    found, whole = trainer.per_row(vector, data), trainer.evaluate(vector, data)
    assert set(found) == ({"loss"} if kind == "linear" else {"loss", "accuracy"})
    for name, each in found.items():
        assert each.shape == (50,)
        assert each.mean() == pytest.approx(whole[name].value, rel=1e-5)
    assert set(np.unique(found.get("accuracy", np.ones(1)))) <= {0.0, 1.0}


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_rows_of_a_torch_module_add_up(outputs: int) -> None:
    torch = pytest.importorskip("torch")
    from atoll.models.torch.adapter import TorchTrainer
    from atoll.models.torch.rows import per_row

    kind = "multinomial" if outputs == 3 else "logistic"
    loss = "bce" if outputs == 1 else "cross_entropy"
    trainer = TorchTrainer(
        torch.nn.Linear, {"in_features": 4, "out_features": outputs}, loss=loss, eval_batch_size=16
    )
    data, vector = rows(kind), trainer.initial(Seed(1))
    found, whole = per_row(trainer, vector, data), trainer.evaluate(vector, data)
    for name in ("loss", "accuracy"):
        assert found[name].shape == (50,)
        assert found[name].mean() == pytest.approx(whole[name].value, rel=1e-5)


def test_no_rows_give_nothing() -> None:
    trainer = LinearTrainer("logistic", 4)
    found = trainer.per_row(np.zeros(trainer.layout.size), rows("logistic", 0))
    assert {name: each.shape for name, each in found.items()} == {"loss": (0,), "accuracy": (0,)}


def test_a_row_of_several_steps_is_right_in_part() -> None:
    truth = np.array([[0, 1], [1, 1]])
    logits = np.zeros((2, 3, 2))
    logits[0, 0, 0] = logits[0, 1, 1] = 1.0  # both steps right
    logits[1, 1, 0] = logits[1, 2, 1] = 1.0  # the first one only
    assert hits(truth, logits).tolist() == [1.0, 0.5]
