"""The error tree: drawn completely, stable codes, every field across a process boundary."""

import copy
import pickle
import re
from multiprocessing.reduction import ForkingPickler

import pytest

from atoll.core import errors
from atoll.core.errors import AtollError, DataError, Fault, JobConflict, raise_faults, suggest

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, AtollError)]
EXIT = {
    1: {"AtollError"},
    2: {"JobError", "JobConflict"},
    3: {"DataError", "LayoutError"},
    4: {"UpdateRefused", "QuorumError", "ClientError"},
    5: {"CheckpointError", "StorageError", "FenceError"},
    6: {"MissingExtra"},
    7: {"WireError", "Unreachable", "PutBack", "Busy", "TooLarge"},
    8: {"AuthError", "Forbidden", "PolicyError"},
    9: {"StateError", "NotFound", "Equivocation"},
}


def test_the_picture_shows_every_error_below_its_parent_with_its_exit_status():
    drawn, above = {}, {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"^(    [│ ├└─]*)(\w+)(?:  .*exit (\d))?$", line)
        if match:
            depth = len(match[1])
            parent = max((d for d in above if d < depth), default=None)
            drawn[match[2]] = (above.get(parent), int(match[3] or 1))
            above = {d: n for d, n in above.items() if d < depth} | {depth: match[2]}
    real = {
        k.__name__: (None if k is AtollError else k.__base__.__name__, k.exit_status) for k in KINDS
    }
    assert drawn == real


def test_each_exit_status_has_one_meaning():
    groups = {}
    for kind in KINDS:
        groups.setdefault(kind.exit_status, set()).add(kind.__name__)
    assert groups == EXIT


def test_codes_are_unique_and_of_one_form():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(\.[a-z]+)?", code) for code in codes)


def test_every_error_is_exported_and_documented():
    assert {k.__name__ for k in KINDS} < set(errors.__all__)
    assert all(kind.__doc__ for kind in KINDS)


def whole(kind):
    return kind("bad", remedy="fix it", site="bern", faults=[Fault("age", "is 300", "use years")])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dumps", [pickle.dumps, ForkingPickler.dumps])
def test_an_error_keeps_its_fields_across_a_process_boundary(kind, dumps):
    sent = whole(kind)
    got = pickle.loads(bytes(dumps(sent)))
    assert type(got) is kind
    assert vars(got) == vars(sent)
    assert str(got) == str(sent)
    assert got.args == sent.args


def test_a_copied_error_is_whole():
    assert vars(copy.copy(whole(DataError))) == vars(whole(DataError))


def test_the_text_names_site_faults_and_next_step():
    assert str(whole(DataError)) == "at bern: bad\n  - age: is 300 (use years)\n  next: fix it"
    assert str(AtollError("bad")) == "bad"


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault("age", "is 300"), "age: is 300"),
        (Fault("", "no rows"), "no rows"),
        (Fault("age", "is 300", "use years"), "age: is 300 (use years)"),
    ],
)
def test_a_fault_is_one_line(fault, line):
    assert str(fault) == line


def test_faults_are_raised_together_and_counted():
    faults = [Fault("a", "1"), Fault("b", "2")]
    with pytest.raises(JobConflict, match=r"job\.toml: 2 faults") as caught:
        raise_faults(JobConflict, "job.toml", faults, remedy="edit it", site="bern")
    assert caught.value.faults == tuple(faults)
    assert (caught.value.remedy, caught.value.site) == ("edit it", "bern")
    with pytest.raises(DataError, match=r"^x: 1 fault\n  - a: 1$"):
        raise_faults(DataError, "x", faults[:1])


def test_no_faults_raise_nothing():
    assert raise_faults(DataError, "x", []) is None


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("fedavgg", "did you mean 'FedAvg'?"),
        ("FEDPROX", "did you mean 'FedProx'?"),
        ("krum", "known: FedAvg, FedProx"),
        ("", "known: FedAvg, FedProx"),
    ],
)
def test_an_unknown_word_gets_its_nearest_neighbour_or_the_list(word, remedy):
    assert suggest(word, iter(["FedProx", "FedAvg"])) == remedy


def test_a_suggestion_without_choices_says_so():
    assert suggest("x", []) == "none is known"
