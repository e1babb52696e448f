"""NVFlare deployed: its "proof of concept", a server and clients in processes of their own with TLS.

The job that they run is in ``nvflare_app``: its clients add a constant to the model. NVFlare has no call at the
end of a round, so the clock is read where the first client has a model in its hands: that of round r + 1 is
there when round r is done. One round more is run for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.deploy.memory import Watch, descendants
from benchmarks.deploy.work import Given, asked, finish

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".peers" / "nvflare" / "bin"
JOB = Path(__file__).with_name("nvflare_app") / "job.py"
PATIENCE = 550.0


def environment(home: Path) -> dict[str, str]:
    """What its processes see; they are found by it, as some leave the family of who started them."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    own = {"NVFLARE_POC_WORKSPACE": str(home / "poc"), "TMPDIR": str(home), "HOME": str(home)}
    paths = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(JOB.parent)}
    return {**os.environ, **one, **own, **paths}


def processes(home: Path, word: str = "") -> list[int]:
    """Those that were started for ``home``; of them the ones whose command holds ``word``."""
    mark, found = f"NVFLARE_POC_WORKSPACE={home / 'poc'}\0".encode(), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                if word in command:
                    found.append(int(folder.name))
    return found


def servers(home: Path) -> list[int]:
    """The server, and the process of its job."""
    return descendants(*processes(home, f"{os.sep}server{os.sep}startup"))


def measure(home: Path, given: Given) -> None:
    """Start everything in ``home`` and run the job."""
    notes = home / "arrivals.json"
    words = [given.values, given.rounds + 1, given.sites, notes]
    command = [str(BIN / "python"), str(JOB), *map(str, words)]
    with Watch(lambda: servers(home), lambda: processes(home), given.watch) as watch:
        try:
            done = subprocess.run(
                command,
                env=environment(home),
                cwd=home,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        finally:
            for pid in processes(home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
    arrivals = json.loads(notes.read_text()) if notes.exists() else []
    if len(arrivals) != given.rounds + 1:
        sys.exit(f"{done.stdout}{done.stderr}{len(arrivals)} models of {given.rounds + 1} arrived")
    finish(arrivals[1:], arrivals[0], watch.most)


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
    with tempfile.TemporaryDirectory(
        dir=scratch, prefix="nvflare-", ignore_cleanup_errors=True
    ) as home:
        measure(Path(home).resolve(), given)


if __name__ == "__main__":
    main()
