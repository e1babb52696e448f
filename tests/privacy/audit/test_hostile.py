"""What a malicious client sends differs from the honest update in the one way its name says."""

import numpy as np
import pytest

from atoll.core.errors import JobError
from atoll.core.values import Update
from atoll.privacy.audit.hostile import MALFORMED, POISON, TAMPERINGS, tampering

HONEST = Update({"delta": np.array([1.0, -2.0, 3.0], np.float32)}, 10.0, 10)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_the_honest_update_is_left_alone_and_something_is_changed(name):
    sent = tampering(name)(HONEST)
    assert HONEST.vectors["delta"].tolist() == [1.0, -2.0, 3.0]
    same = (
        sent.vectors.keys() == HONEST.vectors.keys()
        and all(
            v.dtype == HONEST.vectors[n].dtype and v.tobytes() == HONEST.vectors[n].tobytes()
            for n, v in sent.vectors.items()
        )
        and (sent.weight, sent.examples) == (10.0, 10)
    )
    assert not same


def test_poison_by_hand():
    assert tampering("sign_flip")(HONEST).vectors["delta"].tolist() == [-1.0, 2.0, -3.0]
    assert tampering("scaled")(HONEST).vectors["delta"].tolist() == [100.0, -200.0, 300.0]
    assert set(MALFORMED).isdisjoint(POISON)


def test_unknown_attack_names_the_nearest():
    with pytest.raises(JobError, match="sign_flip"):
        tampering("sign_flop")


def test_integers_are_tampered_with_as_integers():
    whole = Update({"delta": np.array([1, -2, 3], np.int32)}, 1.0, 0)
    assert tampering("scaled")(whole).vectors["delta"].tolist() == [100, -200, 300]
    huge = tampering("huge")(whole).vectors["delta"]
    assert (huge.dtype, huge.tolist()) == (np.int32, [1, 2**31 - 1, 3])
    assert np.isnan(tampering("nan")(whole).vectors["delta"][1])
    wide = Update({"delta": np.array([2**62], np.int64)}, 1.0, 0)
    assert tampering("scaled_flip")(wide).vectors["delta"].tolist() == [-(2**63)]
