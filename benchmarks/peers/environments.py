"""An environment for each peer under ``.peers``; ``python -m benchmarks.peers.environments`` makes them all.

Peers pin libraries that exclude each other, so none shares ours. A peer that does not install or import here
is named with the reason and left out.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["ENVIRONMENTS", "Environment", "ensure"]

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".peers"
NUMPY = "numpy==2.4.6"


@dataclass(frozen=True)
class Environment:
    """What a peer needs.

    Args:
        packages: pinned, the peer first.
        check: a module that must import afterwards.
        torch: whether torch goes in first.
        flags: extra ones for pip.
        note: what a reader should know, for the page.
    """

    packages: tuple[str, ...]
    check: str
    torch: bool = True
    flags: tuple[str, ...] = ()
    note: str = ""

    @property
    def version(self) -> str:
        """Of the peer."""
        return self.packages[0].rpartition("==")[2]


ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        "flower": Environment(
            ("flwr[simulation]==1.41.0", "ray==2.55.1", NUMPY), "flwr.simulation"
        ),
        "pfl": Environment(("pfl==0.6.0", NUMPY), "pfl.model.pytorch"),
        "blazefl": Environment(
            ("blazefl==2.0.3", NUMPY),
            "blazefl.core",
            flags=("--no-deps", "--ignore-requires-python"),
            note="declares Python 3.12 or newer; its core runs on 3.11",
        ),
        "fedjax": Environment(
            ("fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2", "dm-haiku==0.0.17", NUMPY),
            "jax",
            torch=False,
            note="calls functions that this JAX removed; the runner puts them back",
        ),
        "nvflare": Environment(("nvflare==2.9.0", NUMPY), "nvflare.recipe.sim_env"),
    }
)
"""The peers, one line of versions each."""


def _call(*command: str) -> str:
    """Run a command; what went wrong, in one line, or nothing."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.returncode:
        return ""
    lines = [x for x in (done.stderr + done.stdout).splitlines() if x.strip()]
    errors = [x for x in lines if "error" in x.lower()]
    return (errors or lines or [f"exit code {done.returncode}"])[-1].strip()


def _make(name: str, wanted: Environment) -> str:
    """Make one environment unless it is as wanted; the reason if that fails."""
    folder = HOME / name
    python, stamp = folder / "bin" / "python", folder / ".made"
    torch = shlex.split(os.environ.get("TORCH", "torch==2.13.0")) if wanted.torch else []
    text = "\n".join([sys.version, *torch, *wanted.packages, *wanted.flags])
    if stamp.exists() and stamp.read_text() == text:
        return ""
    print(f"  installing {name} {wanted.version} in {folder}", file=sys.stderr)
    pip = (str(python), "-m", "pip", "install", "-q")
    steps = [(sys.executable, "-m", "venv", str(folder))]
    steps += [(*pip, *torch)] if torch else []
    steps += [
        (*pip, *wanted.flags, *wanted.packages),
        (str(python), "-c", f"import {wanted.check}"),
    ]
    for step in steps:
        if wrong := _call(*step):
            return wrong
    stamp.write_text(text)
    return ""


def ensure(names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters of the named peers, and of those that are left out the reason."""
    found, missing = dict[str, Path](), dict[str, str]()
    for name in names:
        if wrong := _make(name, ENVIRONMENTS[name]):
            missing[name] = wrong
        else:
            found[name] = HOME / name / "bin" / "python"
    return found, missing


if __name__ == "__main__":
    made, out = ensure(ENVIRONMENTS)
    print("\n".join(f"{name}: {path}" for name, path in made.items()))
    print("\n".join(f"{name} left out: {reason}" for name, reason in out.items()))
