"""Flower deployed: a SuperLink and SuperNodes on the loopback interface, as its commands start them, no TLS.

The app that they run is in ``flower_app``: its clients add a constant to the model. A round's end is when
the strategy has averaged what came back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.deploy.memory import Watch, descendants
from benchmarks.deploy.work import Given, asked, finish

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".peers" / "flower" / "bin"
PATIENCE = 300.0
DEPENDENCIES = "--disable-runtime-dependency-installation"

CONFIG = """
[superlink]
default = "here"
[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def environment(home: Path) -> dict[str, str]:
    """What its processes see."""
    own = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(home), "TMPDIR": str(home)}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **own, **one, "PATH": f"{BIN}:{os.environ['PATH']}"}


@contextlib.contextmanager
def running(home: Path, name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of its commands, until the context ends; what it started ends with it."""
    with (home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            env=environment(home),
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        time.sleep(0.05)
    sys.exit(f"nobody listens on port {port}")


def wait_for_rounds(path: Path, rounds: int) -> list[list[float]]:
    """Beginning and end of every round."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        with contextlib.suppress(OSError, ValueError):
            marks: list[list[float]] = json.loads(path.read_text())
            if sum(len(mark) == 2 for mark in marks) >= rounds:
                return marks
        time.sleep(0.1)
    sys.exit(f"not {rounds} rounds in {PATIENCE:g} s")


def measure(home: Path, given: Given) -> None:
    """Start everything in ``home`` and run the app."""
    port, *own = free_ports(1 + given.sites)
    (home / "config.toml").write_text(CONFIG.format(port=port))
    app = shutil.copytree(Path(__file__).with_name("flower_app"), home / "app")
    marks = home / "rounds.json"
    link = ("flower-superlink", "--insecure", "--port", str(port), DEPENDENCIES)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(home, "superlink", *link))
        wait_for_port(port)
        for number, mine in enumerate(own):
            node = ("--superlink", f"127.0.0.1:{port}", "--port", str(mine))
            config = f"partition-id={number} num-partitions={len(own)}"
            words = ("flower-supernode", "--insecure", *node, "--node-config", config)
            stack.enter_context(running(home, f"node{number}", *words))
        time.sleep(3.0)
        me, pid = os.getpid(), server.pid
        with Watch(lambda: descendants(pid), lambda: descendants(me), given.watch) as watch:
            config = f'num-server-rounds={given.rounds} values={given.values} out="{marks}"'
            command = [str(BIN / "flwr"), "run", str(app), "here", "--run-config", config]
            done = subprocess.run(
                command, env=environment(home), cwd=home, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{done.stdout}{done.stderr}")
            found = wait_for_rounds(marks, given.rounds)
    finish([end for _, end in found], found[0][0], watch.most)


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    if given.keep:
        shutil.rmtree(given.keep, ignore_errors=True)
        Path(given.keep).mkdir(parents=True)
        measure(Path(given.keep).resolve(), given)
        return
    scratch = ROOT / ".bench"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="flower-") as home:
        measure(Path(home), given)


if __name__ == "__main__":
    main()
