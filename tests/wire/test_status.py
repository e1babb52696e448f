"""Errors and HTTP: every class has its row, and comes back as itself."""

import pytest

from atoll.core import errors
from atoll.core.errors import AtollError, AuthError, Fault, Unreachable, WireError
from atoll.wire.messages import ProblemBody
from atoll.wire.status import EPOCH, error_class, http_status

CLASSES = [
    kind
    for name in errors.__all__
    if isinstance(kind := getattr(errors, name), type) and issubclass(kind, AtollError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_status_and_comes_back_as_itself(kind):
    status = http_status(kind.code)
    assert 400 <= status < 600
    assert (status == 500) == (kind in (AtollError, errors.CheckpointError))
    assert error_class(kind.code, status) is kind
    given = kind("what", remedy="do", site="a", faults=[Fault("p", "m", "r"), Fault("q", "n")])
    back = ProblemBody.model_validate_json(ProblemBody.of(given).model_dump_json()).error(status)
    assert type(back) is kind
    assert str(back) == str(given)
    assert back.faults == given.faults


def test_an_unknown_code_is_told_by_its_status():
    assert error_class("newer.code", 401) is AuthError
    assert error_class("newer.code", 429) is Unreachable
    assert error_class("newer.code", 418) is WireError
    assert http_status("newer.code") == 500
    assert http_status(EPOCH) == 409


def test_a_problem_longer_than_the_limits_is_cut_and_not_lost():
    long = WireError("x" * 50_000, site="s" * 500, faults=[Fault("", "y" * 50_000)] * 500)
    body = ProblemBody.of(long)
    assert len(body.message) == 20_000
    assert len(body.faults) == 200
