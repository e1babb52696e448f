"""Options of a torch trainer are checked where it is made."""

import pytest
from torch import nn

from atoll.core.errors import JobError, LayoutError
from atoll.models.torch.adapter import TorchTrainer


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("loss", None, "no loss"),
        ("loss", nn.MSELoss, "MSELoss()"),
        ("task", "regresion", "did you mean 'regression'"),
        ("classes", "2", "not a number"),
        ("classes", 0, "at least 1"),
        ("augment", 5, "no function"),
        ("exact_auc", "no", "True or False"),
        ("eval_batch_size", 0, "at least 1"),
        ("channels_last", 1, "True or False"),
        ("path", "fast", "known"),
        ("precision", "float16", "bfloat16"),
        ("arguments", 5, "no mapping"),
        ("module", 5, "no module"),
    ],
)
def test_an_option_of_another_kind_is_refused_where_the_trainer_is_made(option, value, said):
    with pytest.raises(JobError) as caught:
        TorchTrainer(**{"module": nn.Linear(4, 3), option: value})
    (fault,) = caught.value.faults
    assert fault.place == f"model.{option}"
    assert said in f"{fault.message} {fault.remedy}"


def test_patterns_that_are_a_text_are_no_patterns_of_its_letters():
    with pytest.raises(LayoutError, match="no list of patterns") as caught:
        _ = TorchTrainer(nn.Linear(4, 3), personal="*").layout
    assert "personal=[" in caught.value.remedy


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: nn.Linearr(3, 2), "AttributeError: .*Linearr.*test_torch_options.py:"),
        (nn.Linear, "TypeError: .*missing 2 required.*its arguments"),
        (lambda: 5, "a int was built"),
    ],
)
def test_a_module_that_cannot_be_built_is_told_with_its_error_and_place(build, said):
    with pytest.raises(JobError, match=said):
        _ = TorchTrainer(build).layout
