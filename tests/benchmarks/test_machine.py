"""What a benchmark says of the machine it ran on."""

import subprocess
import sys

import pytest

ORPHAN = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        while time.process_time() < 0.6:
            pass
    os._exit(0)
os.wait()
"""
"""A process that leaves one at work behind when it ends, as other systems' daemons do."""


@pytest.mark.skipif(
    sys.platform != "linux", reason="a process adopts others' children on Linux alone"
)
def test_what_loses_its_parent_counts_for_those_who_started_it():
    code = (
        "import resource, subprocess, sys, time\n"
        "from benchmarks.machine import Background\n"
        "def used():\n"
        "    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])\n"
        "others = Background()\n"
        f"subprocess.run([sys.executable, '-c', {ORPHAN!r}], check=True)\n"
        "until = time.monotonic() + 20\n"
        "while used() < 0.5 and time.monotonic() < until:\n"
        "    time.sleep(0.1)\n"
        "    others.share()\n"
        "print(used())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) >= 0.5
