"""Adaptive optimisers in one pass: the bits of torch.optim, client by client, without its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from atoll.core.local import Optimizer
from atoll.models.torch.adaptive import single_pass
from atoll.models.torch.flat import Bench, layout_of

CASES = [
    (Optimizer("adam", betas=(0.8, 0.95), weight_decay=0.01), torch.optim.Adam),
    (Optimizer("adamw", eps=1e-6, weight_decay=0.1), torch.optim.AdamW),
    (Optimizer("adagrad", eps=1e-10, weight_decay=0.01), torch.optim.Adagrad),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("optimizer", "kind"), CASES, ids=lambda case: getattr(case, "name", None))
def test_steps_have_the_bits_of_torch_optim_for_one_client_after_the_other(optimizer, kind, dtype):
    module = nn.Linear(37, 5).to(dtype)
    bench = Bench(module, layout_of(module, ()), channels_last=False)
    fields = {"eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    if optimizer.name != "adagrad":
        fields["betas"] = optimizer.betas
    for client in range(3):
        draw = torch.Generator().manual_seed(client)
        bench.weights.normal_(generator=draw)
        theirs = nn.Parameter(bench.weights.clone())
        other = kind([theirs], fused=True, **fields)
        move = single_pass(optimizer, bench)
        for lr in (0.1, 0.05, 0.05, 0.2):
            bench.gradient.normal_(generator=draw)
            theirs.grad = bench.gradient.clone()
            other.param_groups[0]["lr"] = lr
            move(lr)
            other.step()
            assert torch.equal(bench.weights, theirs)


def test_others_have_no_such_kernel():
    module = nn.Linear(2, 1)
    bench = Bench(module, layout_of(module, ()), channels_last=False)
    assert single_pass(Optimizer("rmsprop"), bench) is None


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_training_does_not_import_the_compiler(name):
    """It is 200 MB and most of a second of a first round."""
    code = f"""
import sys, numpy as np
from atoll.core.contracts import Examples
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import TorchTrainer
from torch import nn
trainer = TorchTrainer(nn.Linear, {{"in_features": 3, "out_features": 2}})
data = Examples(np.zeros((4, 3), "float32"), np.zeros(4, "int64"))
work = LocalWork(1, batch_size=2, optimizer=Optimizer({name!r}))
trainer.fit(trainer.initial(Seed(0)), data, work=work, rule=LocalRule(), seed=Seed(0), round=0)
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
