"""Worker processes that die, hang or cannot start: named, quickly, and with nothing left behind."""

import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import runtime_clients as rc

from atoll.algorithms import FedAvg
from atoll.core.contracts import Task
from atoll.core.errors import ClientError, JobError
from atoll.models.function import FunctionTrainer
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.serial import SerialExecutor
from atoll.runtime.shared import share_clients

FAST = 4.0
"""Seconds in which all below is over: less than the patience that close() has with a worker."""


def executor_of(parts, **options):
    like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    return ProcessExecutor(parts, like, **options)


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def gone(pids, within=FAST):
    """Whether all processes have ended and been waited for (none is a zombie)."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if all(state_of(pid) == "gone" for pid in pids):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_killed_in_the_middle_is_an_error_that_names_its_clients(workers):
    clients = rc.federation(rc.SIZES, {"c4": rc.DIES})
    parts = rc.parts(FedAvg(), clients, from_round=2)
    rows = []
    executor = executor_of(parts, workers=workers)
    pids = [p.pid for p, _ in executor._workers]
    began = time.monotonic()
    with closing(executor), pytest.raises(ClientError, match=r"exit code -9.*c4") as caught:
        Loop(parts, executor, stop=Stop(9), observers=[rows.append]).run()
    assert time.monotonic() - began < FAST
    assert "--resume" in caught.value.remedy
    assert [r["round"] for r in rows] == [1, 2]
    assert gone(pids)
    assert not multiprocessing.active_children()


def test_a_worker_killed_between_rounds_is_an_error_that_says_what_it_was_given():
    parts = rc.parts(FedAvg())
    executor = executor_of(parts, workers=2)
    process = executor._workers[0][0]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    model = FedAvg().broadcast(Loop(parts, executor).start().state)
    with closing(executor):
        with pytest.raises(ClientError, match=r"exit code -9 while it ran: c0, c4"):
            executor.run([Task(c, 0) for c in parts.clients], {0: model}, {})
        pids = [p.pid for p, _ in executor._workers]
    assert gone(pids)


def test_closing_twice_and_closing_while_workers_work_leaves_nothing_behind():
    descriptors = len(os.listdir("/proc/self/fd"))
    clients = rc.federation(rc.SIZES, dict.fromkeys(rc.SIZES, rc.SLOW))
    for _ in range(2):
        parts = rc.parts(FedAvg(), clients)
        executor = executor_of(parts, workers=2)
        pids = [p.pid for p, _ in executor._workers]
        model = FedAvg().broadcast(Loop(parts, executor).start().state)
        executor._board.pin(0, model)
        answers = executor._deal("tasks", [((Task(c, 0),), 0, {}) for c in clients], len(clients))
        next(answers)  # the other worker is in the middle of its chunk
        began = time.monotonic()
        executor.close()
        executor.close()
        assert time.monotonic() - began < FAST
        assert gone(pids)
        del executor, answers
        gc.collect()
    # Two pools later not more than the fork server's own pipes stay open.
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8


def test_a_signal_to_the_whole_group_does_not_reach_the_workers():
    parts = rc.parts(FedAvg())
    with closing(executor_of(parts, workers=2)) as executor:
        for process, _ in executor._workers:
            os.kill(process.pid, signal.SIGTERM)
            os.kill(process.pid, signal.SIGINT)
        end = Loop(parts, executor, stop=Stop(2)).run()
    assert end.status == "completed"


def test_what_cannot_be_sent_is_refused_with_the_way_out():
    parts = rc.parts(FedAvg())

    def fit(parameters, data, context):
        return parameters, None

    local = FunctionTrainer({"w": np.zeros(3, np.float32)}, fit, fit)
    for bad in (local, rc.Unsendable(parts.trainer)):
        with pytest.raises(JobError, match="cannot be sent to worker processes") as caught:
            executor_of(dataclasses.replace(parts, trainer=bad), workers=2)
        assert "top level of a module" in caught.value.remedy
        assert "serial" in caught.value.remedy
    assert not multiprocessing.active_children()


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import runtime_clients as rc
            from atoll.algorithms import FedAvg
            from atoll.runtime.loop import Loop
            from atoll.runtime.processes import ProcessExecutor
            from atoll.runtime.serial import SerialExecutor
            parts = rc.parts(FedAvg())
            like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
            ProcessExecutor(parts, like, workers=2)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "before it could start" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_data_that_are_alike_are_mapped_and_others_are_sent_as_they_are():
    context = multiprocessing.get_context("forkserver")
    clients = rc.federation(rc.SIZES)
    shared = share_clients(context, clients)
    assert list(shared) == list(clients)
    assert len(shared) == len(clients)
    for name, examples in clients.items():
        assert shared[name].features.tobytes() == examples.features.tobytes()
        assert shared[name].targets.dtype == examples.targets.dtype
        assert shared[name].features.base is not None
    odd = {**clients, "wide": type(clients["c0"])(np.zeros((2, 9)), np.zeros(2, np.int64))}
    assert share_clients(context, odd) is odd
    assert share_clients(context, {}) == {}


def test_a_federation_of_unlike_rows_still_runs():
    parts = rc.parts(FedAvg())
    odd = {**parts.clients}
    odd["c2"] = type(odd["c2"])(odd["c2"].features.astype(np.float32), odd["c2"].targets)
    parts = dataclasses.replace(parts, clients=odd)
    with closing(executor_of(parts, workers=2)) as executor:
        ours = Loop(parts, executor, stop=Stop(2), evaluation=Evaluation(0)).run()
    theirs = Loop(parts, SerialExecutor(parts), stop=Stop(2), evaluation=Evaluation(0)).run()
    assert ours.progress.state.parameters.tobytes() == theirs.progress.state.parameters.tobytes()
