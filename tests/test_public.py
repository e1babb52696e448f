"""The house: what is public is whole, what is light stays light, who may import whom."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atoll
from atoll.core.errors import MissingExtra

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODULES = [
    "atoll",
    *sorted(
        m.name
        for m in pkgutil.walk_packages(atoll.__path__, "atoll.")
        if ".migrations." not in m.name  # scripts that Alembic runs, no modules to import
    ),
]
WORKPLACE = b"/wo" + b"rk/"


def imported(statement):
    """Names of all top-level modules that a fresh interpreter has after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()
    )


LIGHT = ["atoll", *(m for m in MODULES if m.startswith(("atoll.core", "atoll.aggregation")))]


@pytest.mark.parametrize(
    "statement",
    ["import atoll", "import " + ", ".join(LIGHT)],
    ids=["the package", "core and aggregation"],
)
def test_importing_needs_numpy_only(statement):
    extra = imported(statement) - imported("import numpy.random") - set(sys.stdlib_module_names)
    assert extra == {"atoll"}


@pytest.mark.parametrize("start", ["node.room.workplace", "node.agent", "simulation", "job.load"])
def test_a_process_imports_statistics_and_tables_when_a_job_asks_for_them(start):
    """What a process of Atoll imports before it knows its job, hundreds of which a day of work may start."""
    code = f"import sys, atoll.{start}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    libraries = {
        "dp_accounting",
        "matplotlib",
        "pandas",
        "pyarrow",
        "ray",
        "scipy",
        "tenseal",
        "torch",
    }
    assert {name.partition(".")[0] for name in modules} & libraries == set()
    methods = {name for name in MODULES if name.startswith("atoll.algorithms.statistics.")}
    kinds = {name for name in MODULES if name.startswith("atoll.job.inquiries.")}
    frame = {"analysis", "columns", "digits", "holding", "running", "together"}
    asking = {"book", "frames", "inquiry", "registry"}
    assert {name.rpartition(".")[2] for name in methods & modules} <= frame
    assert {name.rpartition(".")[2] for name in kinds & modules} <= asking


def test_a_job_made_in_python_runs_without_what_reads_job_files_and_hides_updates():
    """Half of the time to the first round of a light job would be theirs."""
    made = (
        "import sys, atoll, numpy as np\n"
        "from atoll.models.linear import LinearTrainer\n"
        "rows = {c: atoll.Examples(np.eye(2, dtype='f4'), np.array([0, 1])) for c in 'ab'}\n"
        "trainer = LinearTrainer('logistic', 2)\n"
        "job = atoll.Job(trainer, stop=atoll.Stop(rounds=1), evaluate_every=0)\n"
        "assert len(atoll.simulate(job, rows).rounds) == 1 and job.hash()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"pydantic", "email.message", "http.client", "asyncio", "ssl"} & modules == set()
    assert {
        "atoll.job.schema",
        "atoll.runtime.masked",
        "atoll.runtime.encrypted",
    } & modules == set()


def load(name):
    try:
        return importlib.import_module(name)
    except MissingExtra as missing:
        pytest.skip(str(missing))


def is_ours(thing):
    return (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith(
        "atoll"
    )


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_are_documented(name):
    module = load(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public)
    for export in public:
        thing = getattr(module, export)
        if not is_ours(thing):
            continue
        members = vars(thing).items() if inspect.isclass(thing) else ()
        for label, part in [(export, thing), *((f"{export}.{k}", v) for k, v in members)]:
            plain = getattr(part, "__func__", getattr(part, "fget", getattr(part, "func", part)))
            if not label.rpartition(".")[2].startswith("_") and is_ours(plain):
                if plain.__name__ == "<lambda>":  # a field's default; the class documents it
                    continue
                text = plain.__doc__ or ""
                assert text.strip(), f"{name}.{label} has no docstring"
                # a dataclass without one gets its signature instead
                assert not text.startswith(f"{thing.__name__}("), f"{name}.{label} has no docstring"


def test_every_public_module_says_what_it_exports():
    def silent(path):
        body = ast.parse(path.read_text()).body
        exported = any("__all__" in map(ast.unparse, getattr(n, "targets", [])) for n in body)
        defined = any(
            isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
            for n in body
        )
        return defined and not exported

    modules = [p for p in SOURCES if "migrations" not in p.parts]
    assert [str(p.relative_to(ROOT)) for p in modules if silent(p)] == []


def test_the_surface_of_the_package_is_what_it_lists():
    assert sorted(atoll.__all__) == atoll.__all__ == dir(atoll)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = atoll.nonsense


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    module = load(name)
    # Names that a package finds when they are asked for are there or not, by what ran before: its
    # examples import what they use, as their readers must.
    given = {} if hasattr(module, "__getattr__") else None
    failed, _ = doctest.testmod(module, globs=given, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_imports_only_point_down():
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed")
    got = subprocess.run(
        [tool, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert got.returncode == 0, got.stdout[-3000:]


def test_no_file_is_longer_than_500_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", node


def test_no_function_is_longer_than_80_lines():
    lengths = {name: n.end_lineno - n.lineno + 1 for p in SOURCES for name, n in functions(p)}
    assert {name: n for name, n in lengths.items() if n > 80} == {}


def test_nothing_is_checked_with_assert_or_left_unfinished():
    def faults(path):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) or (
                isinstance(node, ast.Name) and node.id == "NotImplementedError"
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}"

    assert [fault for path in SOURCES for fault in faults(path)] == []


def committed():
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run(
            [git, "ls-files", "-co", "--exclude-standard"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        ).stdout.splitlines()
        files = [ROOT / name for name in listed]
    else:
        files = [
            p
            for d in ("src", "tests", "docs", "examples", "benchmarks")
            for p in (ROOT / d).rglob("*")
        ]
    return [p for p in files if p.is_file()]


def test_no_file_names_the_place_it_was_written_at():
    assert len(committed()) > len(SOURCES)
    named = [p for p in committed() if WORKPLACE in p.read_bytes()]
    assert [str(p.relative_to(ROOT)) for p in named] == []
