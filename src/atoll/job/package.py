"""What a researcher submits: a job in canonical form and the code files of its own; never data.

Code is found from the job: files that it names as ``file.py:name``, and modules beside them that they
import. What is imported by a computed name is not seen; installed packages are not packed, the sites
have them or not. File names are relative, with ``/``, and lead nowhere outside the job's folder.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from atoll.core.errors import Fault, JobError, StorageError, raise_faults
from atoll.job.definition import definition_hash
from atoll.job.load import parse_job
from atoll.job.schema import JobSpec

__all__ = [
    "MOST_BYTES",
    "Package",
    "file_faults",
    "pack",
    "spec_digest",
    "spec_from_plain",
    "spec_to_plain",
    "unpack",
]

MOST_BYTES = 4 << 20
"""Bytes of all files together."""
_MOST_FILES = 256
# No part may begin with a dot: neither "." nor ".." nor what is hidden.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_SHORTEN = "name fewer files, or install the code as a package at the sites"


@dataclass(frozen=True, eq=False)
class Package:
    """A job and the code of its own.

    Args:
        spec: the job.
        files: content by name.
    """

    spec: JobSpec
    files: Mapping[str, bytes] = field(default_factory=dict)


def spec_to_plain(spec: JobSpec) -> dict[str, Any]:
    """The whole job, defaults included, as JSON can hold it."""
    return spec.model_dump(mode="json")


def spec_from_plain(plain: Mapping[str, Any]) -> JobSpec:
    """Read what :func:`spec_to_plain` gave; the definition's hash is the same.

    Raises:
        JobError: with every fault.
    """
    return parse_job(plain, source="the submitted job")


def spec_digest(spec: JobSpec) -> str:
    """SHA-256 of the whole job, defaults included, in hex.

    :meth:`JobSpec.hash` is of what changes a result.
    """
    return definition_hash(spec_to_plain(spec))


def pack(spec: JobSpec, folder: Path) -> Package:
    """The job with its code.

    Args:
        spec: the job.
        folder: what its file names are relative to.

    Raises:
        JobError: a file is missing, lies outside the folder, is or passes a symbolic link, or is not
            Python; there are too many; all faults are listed.
    """
    found = _Found(folder)
    for place, name in _named(spec):
        found.start(place, name)
    found.follow()
    files = dict(sorted(found.files.items()))
    sizes = {name: len(content) for name, content in files.items()}
    raise_faults(JobError, "the job's code", [*found.faults, *file_faults(sizes)])
    return Package(spec, files)


def unpack(package: Package, folder: Path) -> None:
    """Lay down the code below ``folder``, which is made if need be; files of the same name are replaced.

    Raises:
        JobError: a name leads outside, is no Python file's, or there is too much; nothing is written.
        StorageError: it cannot be written, or the folder holds symbolic links.
    """
    sizes = {name: len(content) for name, content in package.files.items()}
    raise_faults(JobError, "the job's code", file_faults(sizes))
    for name, content in package.files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if _links(folder, PurePosixPath(name)):
                raise StorageError(f"{path} is a symbolic link", remedy="unpack to an empty folder")
            part = path.with_name(f".{path.name}.part")
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                file.write(content)
            part.replace(path)  # a worker that was killed leaves no half file behind
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def file_faults(sizes: Mapping[str, int]) -> list[Fault]:
    """What is wrong with a package's files, from their names and sizes in bytes alone."""
    faults = [
        Fault(f"file {name[:120]!r}", wrong, "give it a plain relative name ending in .py")
        for name in sizes
        if (wrong := _misnamed(name))
    ]
    folded = [name.casefold() for name in sizes]
    faults += [
        Fault(f"file {name!r}", "differs from another by capital letters only", "rename one")
        for name in sizes
        if folded.count(name.casefold()) > 1
    ]
    total = sum(sizes.values())
    if total > MOST_BYTES:
        message = f"{total:,} bytes of code, at most {MOST_BYTES:,}"
        faults.append(Fault("files", message, _SHORTEN))
    if len(sizes) > _MOST_FILES:
        faults.append(Fault("files", f"{len(sizes)} of them, at most {_MOST_FILES}", _SHORTEN))
    return faults


def _misnamed(name: str) -> str:
    """Why no file of a package may be called so; empty where it may."""
    parts = name.split("/")
    if len(parts) > 16 or not all(_NAME.fullmatch(part) for part in parts):
        return "its name is not plain and relative"
    return "" if name.endswith(".py") else "is no Python file"


def _named(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Files that the job names, and where."""
    model = spec.model
    keys = ("factory", "fit", "evaluate", "initial", "loss")
    texts = {f"model.{key}": getattr(model, key) for key in keys}
    if model.kind == "function":
        texts["model.options.gradient"] = str(model.options.get("gradient", ""))
    for place, text in texts.items():
        where, _, _ = text.partition(":")
        if where.endswith(".py"):
            yield place, where


def _links(folder: Path, name: PurePosixPath) -> bool:
    """Whether the file or a folder on the way to it is a symbolic link."""
    here = folder
    for part in name.parts:
        here = here / part
        if here.is_symlink():
            return True
    return False


@dataclass(eq=False)
class _Found:
    """Code found so far.

    A module is looked for in the folders of the files that the job names: these are on the path when
    it runs.
    """

    folder: Path
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    roots: list[PurePosixPath] = field(default_factory=list)
    waiting: list[PurePosixPath] = field(default_factory=list)

    def start(self, place: str, where: str) -> None:
        """A file that the job names at ``place``."""
        name = PurePosixPath(where)
        if wrong := _misnamed(where):
            remedy = "move it into the job's folder, without '..' or '/' in front"
            self.faults.append(Fault(place, f"{where!r}: {wrong}", remedy))
            return
        if not (self.folder / name).is_file():
            message = f"no file {self.folder / name}"
            self.faults.append(Fault(place, message, "paths are relative to the job file"))
            return
        if name.parent not in self.roots:
            self.roots.append(name.parent)
        self._take(name)

    def follow(self) -> None:
        """Everything that the files import from beside them."""
        while self.waiting:
            name = self.waiting.pop()
            try:
                tree = ast.parse(self.files[str(name)])
            except (SyntaxError, ValueError) as error:
                message = f"is not Python: {error}"
                self.faults.append(Fault(f"file {str(name)!r}", message, "mend it"))
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        self._import(self.roots, alias.name)
                elif isinstance(node, ast.ImportFrom):
                    self._import_from(name, node)

    def _import_from(self, name: PurePosixPath, node: ast.ImportFrom) -> None:
        bases: Iterable[PurePosixPath] = self.roots
        if node.level:
            package = name.parent
            for _ in range(node.level - 1):
                package = package.parent
            if package in self.roots or not package.parts:
                message = f"line {node.lineno}: a relative import that leaves its package"
                remedy = "import modules beside a job's file by their plain names"
                self.faults.append(Fault(f"file {str(name)!r}", message, remedy))
                return
            bases = [package]
        module = node.module or ""
        self._import(bases, module)
        for alias in node.names:
            self._import(bases, f"{module}.{alias.name}".strip("."))

    def _import(self, bases: Iterable[PurePosixPath], dotted: str) -> None:
        """The module and the packages it lies in, where they are files beside the job's."""
        for base in bases:
            here = base
            for part in dotted.split("."):
                here = here / part
                if (self.folder / here).is_dir():
                    self._take(here / "__init__.py")
                    continue
                self._take(here.with_name(f"{part}.py"))
                break

    def _take(self, name: PurePosixPath) -> None:
        path = self.folder / name
        if str(name) in self.files or not path.is_file():
            return
        if _links(self.folder, name):
            message = "is a symbolic link, or behind one"
            self.faults.append(Fault(f"file {str(name)!r}", message, "put the file itself there"))
            return
        size = os.path.getsize(path)
        if size > MOST_BYTES:
            message = f"{size:,} bytes of code, at most {MOST_BYTES:,}"
            self.faults.append(Fault(f"file {str(name)!r}", message, _SHORTEN))
            return
        self.files[str(name)] = path.read_bytes()
        self.waiting.append(name)
