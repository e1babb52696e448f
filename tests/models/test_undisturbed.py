"""Torch is imported without the collector, and nothing of that remains."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from atoll.models.undisturbed import undisturbed


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.unfreeze()  # a server or a node of another test may have run in this process
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_and_is_back_afterwards() -> None:
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_it_is_back_after_an_error() -> None:
    with pytest.raises(ImportError), undisturbed():
        raise ImportError("missing")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with undisturbed():
        pass
    assert not gc.isenabled()


def test_what_was_frozen_stays_frozen() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with undisturbed():
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count() > before / 2


def test_what_was_made_inside_is_old_and_still_collected() -> None:
    class Circle:
        own: object

    with undisturbed():
        circle = Circle()
        circle.own = circle
    assert not any(found is circle for found in gc.get_objects(generation=0))
    assert any(found is circle for found in gc.get_objects())
    number = id(circle)
    del circle
    gc.collect()
    assert not any(id(found) == number and isinstance(found, Circle) for found in gc.get_objects())


WATCHED = """
import gc, json, sys
begun = []
def look(phase, info):
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if phase == "start" and getattr(spec, "_initializing", False):  # its import has begun and not ended
        begun.append(info["generation"])
gc.callbacks.append(look)
{line}
print(json.dumps({{
    "collections": len(begun), "on": gc.isenabled(), "frozen": gc.get_freeze_count(),
    "young": sum(len(gc.get_objects(generation)) for generation in (0, 1)),
    "torch": "torch" in sys.modules,
}}))
"""


@pytest.mark.parametrize(
    "line",
    [
        "from atoll.models.torch.adapter import TorchTrainer",
        "from atoll.models.torch import LanesTrainer",
        "from atoll.models.networks import mlp",
    ],
)
def test_torch_is_imported_without_a_single_collection(line: str) -> None:
    pytest.importorskip("torch")
    program = WATCHED.format(line=line)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["torch"]
    assert found["on"]
    assert found["frozen"] == 0
    assert found["collections"] == 0
    assert found["young"] < 50_000  # of some 150,000
