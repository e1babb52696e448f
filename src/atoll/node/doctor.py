"""``atoll doctor``: what could keep a site from taking part, and what to do about it.

From the inside out: the folder and its keys, the machine, the way to the server, the datasets, and with a
job all that the job asks for. It works beside a running node and without a server: what cannot be looked
at is told as such.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from shlex import quote

from atoll.core.errors import (
    AtollError,
    DataError,
    FenceError,
    JobError,
    MissingExtra,
    NotFound,
    PutBack,
    suggest,
)
from atoll.job.deployed import dataset_name, deployable, left_out
from atoll.job.load import read_spec
from atoll.job.package import pack
from atoll.job.schema import JobSpec
from atoll.node.datasets import Dataset, Datasets
from atoll.node.home import Federation, Home
from atoll.node.journal import read_journal
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.examining import would_answer
from atoll.node.room.rehearsal import COPIES, contract, rehearse
from atoll.node.room.rooms import finding as sandbox_finding
from atoll.node.settings import GIB, Settings, read_settings
from atoll.wire.dialing import Pin
from atoll.wire.findings import (
    Finding,
    fault,
    faults_of,
    ok,
    owners,
    private_file,
    private_folder,
    room,
    size_text,
    together,
    trusted_file,
    unknown,
    user,
    warning,
    writing,
)
from atoll.wire.identity import Identity
from atoll.wire.probing import Target, probe

__all__ = ["examine"]

_NUMPY_MODELS = ("linear", "logistic", "multinomial", "function")
_LEAST_ROOM = 256 << 20
_FULL = 0.8
_OTHER_SERVER = (FenceError.code, PutBack.code)
"""Codes of a node's trouble with a server that is older than the one it saw."""
_NEEDED = re.compile(r"([A-Za-z0-9_.\-]+)(?:\[[^]]*\])?\s*>=\s*([0-9.]+)")


def examine(
    path: Path,
    *,
    job: Path | None = None,
    now: Callable[[], float] = time.time,
    timeout: float = 10.0,
) -> Iterator[Finding]:
    """Look at the node in the folder ``path``.

    Args:
        path: the folder.
        job: a job file that this site is to take part in; None for none.
        now: this machine's clock, in seconds since 1970.
        timeout: seconds for each step on the way to the server.
    """
    home = Home(path)
    known: Federation | None = None
    try:
        known = home.joined()
        yield ok("folder", f"{known.site} in {known.federation}, at {known.server}")
    except AtollError as error:
        yield from faults_of("folder", error)
    here = os.path.isdir(path)
    if here:
        yield user("user", path)
        if not _open(path):
            return
        alone = "the key is the owner's alone, and nobody else can change whom to trust"
        yield from together("files", _files(home), alone)
        yield from _ledger(home)
    settings = Settings()
    try:
        settings = read_settings(home.settings)
    except AtollError as error:
        yield from faults_of("settings", error)
    if here:
        yield from _node(home)
        yield from _disk(home, settings)
    yield _memory(settings)
    yield sandbox_finding(settings.limits)
    if known is not None:
        yield from _way(home, known, settings, now, timeout)
    datasets = _Register()
    yield from datasets.read(home)
    spec = None
    if job is not None:
        try:
            spec = read_spec(job)
        except AtollError as error:
            # Where a job has a fault its source is read too; that is not here, and need not be.
            found = [f for f in faults_of("job", error) if not f.text.startswith("data: ")]
            yield from found or faults_of("job", error)
    yield from _libraries(spec, datasets.of(spec))
    if spec is not None and job is not None:
        model = yield from _job(home, spec, job.resolve().parent, known, datasets, settings)
        if model and here:
            yield room("disk", path, COPIES * model, "by the job")


# The folder -------------------------------------------------------------------------------------


def _ledger(home: Home) -> Iterator[Finding]:
    """What must never be put back to an older state."""
    if not home.identity.exists() or not home.ledger.parent.exists():
        return
    try:
        limits = Budgets(home.budgets).all()
        key = Identity.load(home.identity).public_bytes
        count, steps = (len(read_journal(p, key).bodies) for p in (home.ledger, home.pledges))
    except AtollError as error:
        yield from faults_of("ledger", error)
        return
    yield ok(
        "ledger",
        f"{count} lines, and {steps} of masked rounds, are as they were written; "
        f"{len(limits)} limit{'s' * (len(limits) != 1)}",
    )


def _open(path: Path) -> bool:
    """Whether this user may look into the folder."""
    try:
        os.scandir(path).close()
        os.stat(path / "lock")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _files(home: Home) -> Iterator[Finding]:
    yield private_folder("files", home.path)
    yield owners("files", home.path)
    if home.identity.exists():
        found = private_file("files", home.identity)
        yield found
        if found.state == "ok":
            try:
                Identity.load(home.identity)
            except AtollError as error:
                yield from faults_of("files", error)
    for path in (home.federation, home.datasets):
        if path.exists():
            yield trusted_file("files", path)
    if home.settings.exists():
        secret = False
        with suppress(OSError):  # which reading the settings tells
            secret = "@" in home.settings.read_text("utf-8", "replace")  # a proxy's password
        yield (private_file if secret else trusted_file)("files", home.settings)


def _node(home: Home) -> Iterator[Finding]:
    """Whether a node runs here, and how it is."""
    try:
        runs, state = home.running, home.read(home.state)
    except AtollError as error:
        yield from faults_of("node", error)
        return
    if not runs:
        yield warning(
            "node", "none runs in this folder", f"atoll node start --home {quote(str(home.path))}"
        )
        return
    if state.get("settings", now := home.settings_state) != now:
        text = (
            f"{home.settings.name} was changed, and the node goes by what it said when it started"
        )
        yield warning("settings", text, "start the node again")
    text = f"runs since {state.get('since', '?')}, {state.get('state', '?')}"
    if trouble := str(state.get("trouble", "")):
        said, _, remedy = trouble.partition("\n  next: ")
        if state.get("code") in _OTHER_SERVER:
            yield fault("node", f"{text}: {said}", remedy, FenceError)
        else:
            remedy = remedy or "see its log; the lines below may say why"
            yield warning("node", f"{text}: {said}", remedy)
    else:
        yield ok("node", text)


def _disk(home: Home, settings: Settings) -> Iterator[Finding]:
    yield writing("disk", home.path)
    yield room("disk", home.path, _LEAST_ROOM, "at the least")
    free = shutil.disk_usage(home.path).free
    used = {name: _size(home.path / name) for name in ("cache", "spool")}
    growing = (settings.cache + settings.spool) * GIB - sum(used.values())
    if growing > free:
        text = f"cache and spool may grow by {size_text(growing)}, and {size_text(free)} are free"
        yield warning("disk", text, "set cache and spool in node.toml (GiB), or free space")
    share = used["spool"] / (settings.spool * GIB)
    text = f"{size_text(used['spool'])} of {size_text(settings.spool * GIB)}"
    remedy = "raise spool in node.toml; runs that are over are cleared once the server is reached"
    if share >= 1:
        yield fault("spool", f"{text}: no more work is taken on", remedy)
    elif share >= _FULL:
        yield warning("spool", text, remedy)
    else:
        yield ok("spool", text)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:
                continue  # gone while we looked
    return total


def _memory(settings: Settings) -> Finding:
    """What a worker may use against what the machine has."""
    allowed, free, whole = settings.limits.memory * GIB, _available(), _physical()
    text = (
        f"a worker may use {size_text(allowed)}; {size_text(free)} of {size_text(whole)} are free"
    )
    remedy = "set memory under [limits] in node.toml (GiB) to what can be spared"
    if allowed > whole:
        return warning("memory", text, remedy)
    if free < _LEAST_ROOM:
        return warning("memory", text, "end other programs, or give the machine more memory")
    return ok("memory", text)


def _physical() -> int:
    """Bytes of memory that this process can have at most, a container's limit counted."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


# The server -------------------------------------------------------------------------------------


def _way(
    home: Home, known: Federation, settings: Settings, now: Callable[[], float], timeout: float
) -> Iterator[Finding]:
    try:
        identity = Identity.load(home.identity)
        pin = Pin(bytes.fromhex(known.pin), bytes.fromhex(known.server_key))
    except AtollError as error:
        yield from faults_of("key", error)
        return
    except ValueError:
        yield fault("key", f"{home.federation} is damaged", "restore it, or join again", NotFound)
        return
    proxy = settings.proxy or None
    yield from probe(
        Target(known.server, pin, identity, known.federation, known.site, proxy),
        now=now,
        timeout=timeout,
    )


# Datasets and libraries -------------------------------------------------------------------------


class _Register:
    """The site's datasets, as far as they can be read."""

    def __init__(self) -> None:
        self.all: dict[str, Dataset] = {}

    def read(self, home: Home) -> Iterator[Finding]:
        """Look at each file, without reading it."""
        try:
            self.all = Datasets(home.datasets).all()
        except AtollError as error:
            yield from faults_of("datasets", error)
            return
        if not self.all:
            yield warning("datasets", "none is registered", "atoll node data add NAME PATH")
            return
        found = (_file(d) for d in self.all.values())
        yield from together("datasets", found, f"{', '.join(self.all)}: the files can be read")

    def of(self, spec: JobSpec | None) -> Dataset | None:
        """The one that a job asks for."""
        return None if spec is None else self.all.get(dataset_name(spec.data))


def _file(dataset: Dataset) -> Finding:
    path = Path(dataset.path)
    remedy = f"put it back, or: atoll node data add {dataset.name} PATH"
    if not path.is_file():
        return fault("datasets", f"{dataset.name}: {path} is not there", remedy, DataError)
    if not os.access(path, os.R_OK):
        text = f"{dataset.name}: {path} may not be read by this user"
        return fault("datasets", text, "let the node's user read it", DataError)
    return ok("datasets", dataset.name)


def _libraries(spec: JobSpec | None, dataset: Dataset | None) -> Iterator[Finding]:
    """Versions of what is needed against what Atoll was made for."""
    least = _least_versions()
    wanted = {"numpy": "", "pydantic": "", "safetensors": "", "cryptography": "node"}
    if spec is not None and spec.model.kind not in _NUMPY_MODELS:
        wanted["torch"] = "torch"
    if dataset is not None and dataset.path.endswith(".parquet"):
        wanted |= {"pandas": "tables", "pyarrow": "tables"}
    seen = [f"Python {sys.version.split()[0]}", f"atoll {version('atoll')}"]
    bad = False
    for name, extra in wanted.items():
        remedy = f"pip install 'atoll[{extra}]'" if extra else "pip install --upgrade atoll"
        try:
            here = version(name)
        except PackageNotFoundError:
            bad = True
            yield fault("libraries", f"{name} is not installed", remedy, MissingExtra)
            continue
        seen.append(f"{name} {here}")
        if _number(here) < _number(least.get(name, "0")):
            bad = True
            text = f"{name} {here} is older than {least[name]}"
            yield fault("libraries", text, f"pip install '{name}>={least[name]}'", MissingExtra)
    if not bad:
        yield ok("libraries", ", ".join(seen))


def _least_versions() -> dict[str, str]:
    """As Atoll's own package says."""
    found = (_NEEDED.match(line) for line in requires("atoll") or ())
    return {m[1].lower(): m[2] for m in found if m is not None}


def _number(text: str) -> tuple[int, ...]:
    """A version to compare by.

    >>> _number("2.13.0+cpu") > _number("2.4")
    True
    """
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


# The job ----------------------------------------------------------------------------------------


def _job(
    home: Home,
    spec: JobSpec,
    folder: Path,
    known: Federation | None,
    datasets: _Register,
    settings: Settings,
) -> Generator[Finding, None, int]:
    """Everything the job asks of this site; returns bytes of its model, 0 where they are not known."""
    faults = deployable(spec)
    for one in faults:
        yield fault("job", f"{one.place}: {one.message}", one.remedy, JobError)
    if faults:
        return 0
    notes = "".join(f"; {note}" for note in left_out(spec))
    yield ok("job", f"{spec.name} ({spec.hash()[:12]}) can run where sites are apart{notes}")
    dataset = datasets.of(spec)
    if dataset is None:
        name = dataset_name(spec.data)
        also = suggest(name, datasets.all) if datasets.all else ""
        remedy = f"atoll node data add {name} PATH{f' ({also})' if also else ''}"
        yield fault("data", f"no dataset {name!r} is registered here", remedy, NotFound)
        return 0
    if spec.statistics is not None:
        yield from would_answer(spec, known.site if known is not None else "this-site", dataset)
        return 0
    broken = False
    for finding in contract(spec, dataset):
        broken |= finding.state == "fault"
        yield finding
    if broken:
        yield unknown("rehearsal", "not tried: the data come first")
        return 0
    try:
        package = pack(spec, folder)
    except AtollError as error:
        yield from faults_of("job", error)
        return 0
    site = known.site if known is not None else "this-site"
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as scratch:
        return (yield from rehearse(package, site, dataset, settings, Path(scratch), home))
