"""The order of the tests; and what a test imports from its own folder is forgotten with it."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# No limit of time for one example: on a busy machine it says nothing about the code.
settings.register_profile("atoll", deadline=None)
settings.load_profile("atoll")


def pytest_collection_modifyitems(items):
    """Ray leaves threads behind, beside which no process may be forked: its tests come last."""
    items.sort(key=lambda item: item.get_closest_marker("cluster") is not None)


@pytest.fixture(autouse=True)
def _forget_modules_of_the_test(tmp_path_factory):
    before, path = set(sys.modules), [*sys.path]
    yield
    sys.path[:] = path
    base = tmp_path_factory.getbasetemp().resolve()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and base in Path(file).resolve().parents:
            del sys.modules[name]
