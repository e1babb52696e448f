"""A whole federation on one machine: a server and four hospitals, each a process of its own.

    python examples/federation/pilot.py [--home runs/federation] [--job examples/heart/job.toml]

Real TLS, real sockets (on the loopback interface), real signatures, SQLite. It does what people do at
five institutions, with the very commands they type, and ends with the model's hash beside that of the
same job run as a simulation. The two are equal to the last bit, or the script fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import atoll

ROOT = Path(__file__).resolve().parents[2]
ATOLL = [str(Path(sys.executable).with_name("atoll"))]


def say(text: str) -> None:
    """Talk to whoever watches."""
    print(text, flush=True)


def run(*words: str, quiet: bool = False) -> str:
    """One command of Atoll; its output."""
    if not quiet:
        say(f"$ atoll {' '.join(words)}")
    done = subprocess.run([*ATOLL, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\natoll {' '.join(words)}: status {done.returncode}")
    return done.stdout.strip()


def start(stack: ExitStack, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """A process that runs until the script ends."""
    say(f"$ atoll {' '.join(words)} &")
    file = stack.enter_context(log.open("wb"))
    process = subprocess.Popen([*ATOLL, *words], stdout=file, stderr=subprocess.STDOUT)
    stack.callback(stop, process)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it kindly, or else by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deal(table: Path, column: str, home: Path) -> dict[str, Path]:
    """One file per hospital, as each of them would hold it."""
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = [n for n in reader.fieldnames or () if n != column]
        rows: dict[str, list[dict[str, str]]] = {}
        for row in reader:
            rows.setdefault(row[column], []).append(row)
    files = {}
    for site, mine in sorted(rows.items()):
        folder = home / "hospitals" / site.replace(" ", "-")
        folder.mkdir(parents=True)
        files[site] = folder / table.name
        with files[site].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(mine)
    return files


def wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """The server's port answers; or it has ended and says why."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit and process.poll() is None:
        with closing(socket.socket()) as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"the server does not answer:\n{log.read_text()}")


def federation(home: Path, job_file: Path) -> tuple[Path, str]:
    """Found a federation in ``home`` and have it run the job; the result's folder and the model's hash."""
    job = atoll.load_job(job_file)
    data = job.describe()["data"]
    files = deal(job_file.parent / data["source"], data["site_column"], home)
    server, port, log = home / "server", free_port(), home / "server.log"
    with ExitStack() as stack:
        run("server", "init", str(server), "--name", "heart", "--address", f"127.0.0.1:{port}")
        wait_until_up(start(stack, log, "server", "start", str(server)), port, log)
        for site, file in files.items():
            node = file.parent / "node"
            code = run("server", "invite", site, "--home", str(server))
            run("node", "join", code, "--home", str(node))
            run("node", "data", "add", file.stem, str(file), "--home", str(node))
            start(stack, file.parent / "node.log", "node", "start", "--home", str(node))
        code = run("server", "invite", "ada", "--role", "researcher", "--home", str(server))
        me = home / "ada"
        run("job", "join", code, "--home", str(me))
        number = run("job", "submit", str(job_file), "--home", str(me)).split()[-1]
        words = ["job", "watch", number, "--home", str(me)]
        say(f"$ atoll {' '.join(words)}")
        if subprocess.run([*ATOLL, *words], check=False).returncode:
            sys.exit(f"the run failed; see {log} and {home}/hospitals/*/node.log")
        out = home / "result"
        run("job", "result", number, "--out", str(out), "--home", str(me))
    return out, str(json.loads((out / "manifest.json").read_text())["model_hash"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "federation")
    parser.add_argument("--job", type=Path, default=ROOT / "examples" / "heart" / "job.toml")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.home, ignore_errors=True)
    options.home.mkdir(parents=True)
    began = time.monotonic()
    out, deployed = federation(options.home.resolve(), options.job.resolve())
    took = time.monotonic() - began
    simulated = atoll.simulate(atoll.load_job(options.job), executor="serial").model_hash
    say(f"\nfederation  {deployed}\nsimulation  {simulated}\nreport      {out / 'report.html'}")
    say(f"{took:.1f} s with five processes and their workers")
    if deployed != simulated:
        say("THE HASHES DIFFER")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
