"""What a site allows on its machine: limits on job code, on disk and on time, from ``node.toml``.

The file is the site's own. Nothing a server sends can change it.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atoll.core.errors import Fault, JobError, StorageError, raise_faults, suggest
from atoll.node.home import write_text

__all__ = ["Limits", "Masking", "Policy", "Settings", "keep_proxy", "read_settings"]

GIB = 1 << 30
_Size = Annotated[float, Field(gt=0, le=1 << 20)]


def _most_memory() -> float:
    """Three quarters of the machine, in GiB: the rest is for the node and whoever else is there."""
    return 0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Limits(_Table):
    """``[limits]``: what one worker process, the one that runs job code, may use.

    Args:
        memory: GiB it may write to, and may hold with all that it has started.
        cpu: seconds of processor time a task.
        seconds: seconds a task may take by the clock; then its worker is ended.
        files: files it may have open.
        file_size: GiB of the largest file it may write.
        disk: GiB of all that it may have in its own folder at once, with or without a name.
        processes: processes and threads that it may have at once.
        threads: threads of linear algebra it is given. Results do not depend on it.
        sandbox: whether it runs in a room of its own, with no network and without the node's files and other
            datasets, and without calls of the kernel that it does not need: where the machine can make one
            (``auto``), always (``on``: else no job runs), or ``off``.
        reads: further files and folders that it may read there.
    """

    memory: _Size = Field(default_factory=_most_memory)
    cpu: Annotated[int, Field(ge=1)] = 24 * 3600
    seconds: Annotated[float, Field(gt=0)] = 6 * 3600.0
    files: Annotated[int, Field(ge=32)] = 1024
    file_size: _Size = 16.0
    disk: _Size = 32.0
    processes: Annotated[int, Field(ge=16)] = 1024
    threads: Annotated[int, Field(ge=1)] = 1
    sandbox: Literal["auto", "on", "off"] = "auto"
    reads: tuple[str, ...] = ()


class Policy(_Table):
    """``[policy]``: which jobs this site takes part in, whatever the server says.

    Args:
        unmasked: whether an update may reach the server in clear, not as part of a masked sum alone.
        private: which datasets are for jobs with differential privacy only: those ``limited`` by
            ``atoll node ledger limit``, ``all``, or ``none``.
        server_noise: whether noise that the server adds after it has seen the sum counts.
        open_figures: whether column sums and metrics of such a dataset may leave without noise. They are
            not counted.
        starts: whether a job may begin at a model that comes with it, not at one of its seed.
        approval: which jobs the steward has to approve first, each by itself (``atoll node jobs``): ``none``,
            those that bring ``code`` of their own, or ``all``.
        researchers: whose jobs: those of researchers whose keys are ``pinned`` (``atoll node peers --pin``), or
            also of those whose key was the first that was ``seen`` under their name.
    """

    unmasked: bool = True
    private: Literal["limited", "all", "none"] = "limited"
    server_noise: bool = False
    open_figures: bool = False
    starts: bool = True
    approval: Literal["none", "code", "all"] = "none"
    researchers: Literal["seen", "pinned"] = "seen"


class Masking(_Table):
    """``[masking]``: the masked rounds that this site takes part in.

    Args:
        smallest: fewest sites in a round.
        share: more than this part of a round's sites are needed to open its sum.
        apart: sums on one model whose sites differ in fewer than these are refused, and buffers of asynchronous
            runs in which fewer than these started from one version.
        neighbours: fewest neighbours that share a site's masks, in rounds with a sparse graph.
        first_use: whether jobs that leave masks to the default may do with keys that nobody has pinned,
            the first that were seen.
    """

    smallest: Annotated[int, Field(ge=3)] = 5
    share: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    apart: Annotated[int, Field(ge=1)] = 3
    neighbours: Annotated[int, Field(ge=1)] = 20
    first_use: bool = True


class Settings(_Table):
    """``node.toml``.

    Args:
        limits: of job code.
        policy: which jobs it takes part in.
        masking: which masked rounds.
        cache: GiB of downloaded models kept for another use.
        spool: GiB of finished results and memories; no more work is taken on beyond it.
        log: MiB of what the job code of one run prints.
        runs: most runs that it works on at once, each with a worker of its own; further ones are refused.
        pass_on: names of environment variables that job code may see, such as ``CUDA_VISIBLE_DEVICES``.
        proxy: ``http://user:password@host:port`` of a CONNECT proxy; empty: as ``HTTPS_PROXY`` says.
    """

    limits: Limits = Field(default_factory=Limits)
    policy: Policy = Field(default_factory=Policy)
    masking: Masking = Field(default_factory=Masking)
    cache: _Size = 8.0
    spool: _Size = 16.0
    log: _Size = 4.0
    runs: Annotated[int, Field(ge=1)] = 16
    pass_on: tuple[str, ...] = ()
    proxy: str = ""


def read_settings(path: Path) -> Settings:
    """The settings in ``path``; the defaults where there is no such file.

    Raises:
        JobError: with every fault of the file.
        StorageError: it cannot be read.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}", remedy="check its owner and mode"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not valid TOML: {error}", remedy="mend that line") from error
    for table, key in ((raw, "pass_on"), (raw.get("limits"), "reads")):
        if isinstance(table, dict) and isinstance(table.get(key), list):
            table[key] = tuple(table[key])
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(".".join(map(str, e["loc"])), e["type"], e["msg"]) for e in error.errors()]
        raise_faults(JobError, str(path), faults)
        raise


def _fault(place: str, kind: str, message: str) -> Fault:
    if kind != "extra_forbidden":
        return Fault(place, message)
    table, _, key = place.rpartition(".")
    tables: dict[str, type[_Table]] = {"limits": Limits, "masking": Masking, "policy": Policy}
    return Fault(place, "unknown key", suggest(key, tables.get(table, Settings).model_fields))


def keep_proxy(path: Path, proxy: str) -> None:
    """Write a proxy into a file of settings that says nothing of one.

    Raises:
        StorageError: the folder cannot be written.
    """
    if read_settings(path).proxy:
        return
    text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    write_text(path, f"proxy = {json.dumps(proxy)}\n{text}")
