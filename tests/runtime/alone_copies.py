"""Copies of a process without other threads; run by test_processes.py in a process of its own."""

import mmap
import os
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import runtime_clients as rc

from atoll.algorithms import FedAvg
from atoll.models.function import FunctionTrainer
from atoll.runtime.client import Parts
from atoll.runtime.loop import Loop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.serial import SerialExecutor
from atoll.runtime.starting import copyable, method_for

FAST = 30.0


def executor_of(parts, **options):
    like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    return ProcessExecutor(parts, like, **options)


def test_what_cannot_be_sent_is_there_already():
    parts = rc.parts(FedAvg())

    def fit(parameters, data, context):
        return parameters, None

    local = FunctionTrainer({"w": np.zeros(3, np.float32)}, fit, fit)
    with closing(executor_of(Parts(parts.algorithm, local, parts.clients, parts.seed), workers=1)):
        assert method_for("auto") == "fork"


def test_a_copied_worker_holds_no_file_of_its_parent(tmp_path):
    """A lock on the run's folder, or the end of another worker's pipe, must end with the parent."""
    parts = rc.parts(FedAvg())
    with (tmp_path / "held").open("w"), closing(executor_of(parts, workers=2)) as executor:
        assert copyable()
        for process, _ in executor._workers:
            targets = []
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # a file that was closed meanwhile
                    targets.append(os.readlink(link))
            assert not any("held" in target for target in targets)
            assert sum(target.startswith("socket:") for target in targets) <= 1


def test_a_process_with_another_thread_is_not_copied():
    assert copyable()
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        assert not copyable()
        assert method_for("auto") == "forkserver"
        with closing(executor_of(rc.parts(FedAvg()), workers=1)) as executor:
            assert not executor._workers[0][0]._popen.__class__.__module__.endswith("popen_fork")
    finally:
        ended.set()
        other.join()
    until = time.monotonic() + FAST  # a thread that has been joined may not be gone yet
    while not copyable():
        assert time.monotonic() < until
    assert method_for("auto") == "fork"


def test_a_process_that_has_loaded_a_cuda_driver_is_not_copied(tmp_path):
    stand_in = tmp_path / "libcuda.so.1"
    stand_in.write_bytes(b"x")
    with stand_in.open("rb") as file, mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ):
        assert not copyable()
    assert copyable()
