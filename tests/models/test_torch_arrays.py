"""Small operations of a replayed step on NumPy's side: the same values as torch's, in the given place."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from atoll.models.torch import arrays as torch_arrays
from atoll.models.torch.arrays import on_arrays

aten = torch.ops.aten


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))


CASES = {
    "mm": (aten.mm.default, (draw(4, 5), draw(5, 3))),
    "mm of doubles": (
        aten.mm.default,
        (draw(4, 5, dtype=torch.float64), draw(5, 3, dtype=torch.float64)),
    ),
    "mm with a transpose": (aten.mm.default, (draw(4, 5), draw(3, 5).t())),
    "addmm": (aten.addmm.default, (draw(3), draw(4, 5), draw(5, 3))),
    "dot": (aten.dot.default, (draw(7), draw(7))),
    "relu": (aten.relu.default, (draw(4, 5),)),
    "threshold": (aten.threshold_backward.default, (draw(4, 5), draw(4, 5).flip(0), 0)),
    "threshold elsewhere": (aten.threshold_backward.default, (draw(4, 5), draw(4, 5), 0.5)),
    "add": (aten.add.Tensor, (draw(4, 5), draw(5))),
    "sub": (aten.sub.Tensor, (draw(4, 5), 2.0)),
    "mul": (aten.mul.Tensor, (draw(), -0.1)),
    "div": (aten.div.Tensor, (draw(4, 5), draw(4, 1))),
    "neg": (aten.neg.default, (draw(6),)),
    "exp": (aten.exp.default, (draw(4, 5),)),
    "tanh": (aten.tanh.default, (draw(4, 5),)),
}


def done(func, args):
    """What torch gives, and what NumPy's calls leave where they were told to."""
    wanted = func(*args)
    out = torch.full_like(wanted, 7)
    runs = on_arrays(func, args, {}, [out])
    for run in runs:
        run()
    return wanted, out, len(runs)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_torchs_values_where_it_is_told(name):
    wanted, out, calls = done(*CASES[name])
    assert calls
    torch.testing.assert_close(out, wanted)


def test_every_operation_of_the_table_has_a_case():
    assert {func for func, _ in CASES.values()} == set(torch_arrays._TABLE)


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize(("rows", "deep", "columns"), [(10, 784, 200), (3, 500, 401), (16, 40, 90)])
def test_a_product_of_few_rows_is_cut_into_pieces_that_are_read_in_place(
    monkeypatch, rows, deep, columns, turned
):
    monkeypatch.setattr(torch_arrays, "_reads_in_place", lambda: True)
    a = draw(rows, deep)
    b = draw(columns, deep).t() if turned else draw(deep, columns)
    wanted, out, calls = done(aten.mm.default, (a, b))
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)
    least = rows * deep * columns / 10**6
    assert calls >= (max(least, rows * columns / 1200) if turned else least)
    bias = draw(columns)
    wanted, out, _ = done(aten.addmm.default, (bias, a, b))
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_what_torch_does_better_is_left_to_it(monkeypatch):
    few = torch.ones(2, 2)
    large = torch.ones(torch_arrays._FEW + 1)
    left = {
        "unknown": (aten.sinh.default, (few,)),
        "large": (aten.exp.default, (large,)),
        "half": (aten.exp.default, (few.bfloat16(),)),
        "mixed": (aten.add.Tensor, (few, few.double())),
        "counted": (aten.add.Tensor, (few.long(), few.long())),
        "many rows": (aten.mm.default, (torch.ones(17, 784), torch.ones(784, 200))),
        "large matrix": (aten.mm.default, (torch.ones(10, 1024), torch.ones(1024, 512))),
        "strided": (aten.mm.default, (torch.ones(4, 4), torch.ones(8, 8)[::2, ::2])),
        "doubles": (aten.mm.default, (torch.ones(10, 784).double(), torch.ones(784, 200).double())),
    }
    for name, (func, args) in left.items():
        assert not on_arrays(func, args, {}, [func(*args)]), name
    assert not on_arrays(aten.add.Tensor, (few, few), {"alpha": 2}, [few.clone()])
    monkeypatch.setattr(torch_arrays, "_reads_in_place", lambda: False)
    wide = (torch.ones(10, 784), torch.ones(784, 200))
    assert not on_arrays(aten.mm.default, wide, {}, [torch.empty(10, 200)])


def test_results_of_a_step_follow_the_memory_they_read():
    a, out = torch.tensor([1.0, -2.0]), torch.empty(2)
    (run,) = on_arrays(aten.relu.default, (a,), {}, [out])
    run()
    assert out.tolist() == [1.0, 0.0]
    a.neg_()
    run()
    assert out.tolist() == [0.0, 2.0]
    assert np.shares_memory(run.keywords["out"], out.numpy())
