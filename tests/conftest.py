"""The order of the tests; and what a test imports from its own folder is forgotten with it."""

import functools
import os
import signal
import sys
from pathlib import Path

import pytest
import typer.main
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "machine"))

# Under nohup hang-ups are ignored, by all that is started here too; our programs leave it at that, and should.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What its user has set for other work is no test's: servers of tests are on this machine, behind no proxy.
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "RAY_ADDRESS"):
    for spelled in (name, name.upper()):
        os.environ.pop(spelled, None)
for name in [name for name in os.environ if name.startswith(("ATOLL_", "AWS_"))]:
    del os.environ[name]

# A command is put together when it is called, which takes longer than many of them work.
typer.main.get_command = functools.cache(typer.main.get_command)

# Nothing that depends on how busy the machine is, and the same examples in every run: a failure is then of the
# change that it came with. `pytest --hypothesis-profile=search` looks for other examples.
settings.register_profile(
    "atoll", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("atoll"), derandomize=False)
settings.load_profile("atoll")


def pytest_ignore_collect(collection_path, config):
    """A run of the tests of the cluster alone reads no other files."""
    if config.option.markexpr != "cluster" or collection_path.suffix != ".py":
        return None
    return b"mark.cluster" not in collection_path.read_bytes() or None


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
