"""Worker processes that die, hang or cannot start: named, quickly, and with nothing left behind."""

import dataclasses
import functools
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
from atoll.runtime import processes
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.packed import pack
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.serial import SerialExecutor
from atoll.runtime.shared import SharedArray

METHODS = ("fork", "forkserver")
FAST = 30.0
"""Seconds in which all below is over: less than the patience that close() has with a worker here."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 2 * FAST)


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


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (3, "fork"), (2, "forkserver")])
def test_a_worker_killed_in_the_middle_is_an_error_that_names_its_client(workers, method):
    clients = rc.federation(rc.SIZES, {"c4": rc.DIES})
    parts = rc.parts(FedAvg(), clients, from_round=2)
    rows = []
    executor = executor_of(parts, workers=workers, method=method)
    pids = [p.pid for p, _ in executor._workers]
    began = time.monotonic()
    with (
        closing(executor),
        pytest.raises(ClientError, match=r"exit code -9 while it ran: c4\n") as caught,
    ):
        Loop(parts, executor, stop=Stop(9), observers=[rows.append]).run()
    assert time.monotonic() - began < FAST
    assert "--resume" in caught.value.remedy
    assert [r["round"] for r in rows] == [1, 2]
    assert gone(pids)
    assert not multiprocessing.active_children()


def test_a_worker_killed_between_rounds_is_an_error_that_says_so():
    parts = rc.parts(FedAvg())
    executor = executor_of(parts, workers=2)
    process = executor._workers[0][0]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    model = FedAvg().broadcast(Loop(parts, executor).start().state)
    with closing(executor):
        with pytest.raises(ClientError, match=r"exit code -9 while it waited for work"):
            executor.run([Task(c, 0) for c in parts.clients], {0: model}, {})
        pids = [p.pid for p, _ in executor._workers]
    assert gone(pids)


def test_closing_twice_and_closing_while_workers_work_leaves_nothing_behind():
    clients = rc.federation(rc.SIZES, dict.fromkeys(rc.SIZES, rc.SLOW))
    opened = []
    for method in [*METHODS, *METHODS]:
        parts = rc.parts(FedAvg(), clients)
        executor = executor_of(parts, workers=2, method=method)
        pids = [p.pid for p, _ in executor._workers]
        executor._board.pin(0, FedAvg().broadcast(Loop(parts, executor).start().state))
        items = [((Task(c, 0),), 0, {}, {}) for c in clients]
        executor._turns.deal(len(items))
        for _, connection in executor._workers:
            connection.send(("tasks", (len(items), items, True)))
        until = time.monotonic() + FAST
        while max(executor._turns.at(n) for n in range(2)) < 0:  # nobody has begun
            assert time.monotonic() < until
        began = time.monotonic()
        executor.close()
        executor.close()
        assert time.monotonic() - began < FAST
        assert gone(pids)
        del executor
        gc.collect()
        opened.append(len(os.listdir("/proc/self/fd")))
    # The first pools leave the fork server's own pipes; the later ones nothing.
    assert opened[-1] <= opened[len(METHODS) - 1]


def test_copies_of_a_process_without_other_threads():
    """In a process of its own: a test runner that runs in parallel has threads, and is never copied."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
         str(Path(__file__).parent / "alone_copies.py")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_native_thread_nobody_knows_prevents_a_copy():
    code = """
        import ctypes, threading, time
        from atoll.runtime.starting import copyable
        import numpy as np
        np.ones((300, 300)) @ np.ones((300, 300))  # OpenBLAS has threads of its own
        print(copyable())
        libc = ctypes.CDLL(None)
        sleep = ctypes.cast(libc.pause, ctypes.c_void_p)
        libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, sleep, None)
        time.sleep(0.1)
        print(copyable())
    """
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"]


def test_timings_add_up():
    clients = rc.federation(rc.SIZES, {"c0": rc.SLOW})
    parts = rc.parts(FedAvg(), clients)
    tasks = [Task(c, 0) for c in clients]
    with closing(executor_of(parts, workers=2)) as executor:
        model = FedAvg().broadcast(Loop(parts, executor).start().state)
        began = time.perf_counter()
        _, outcomes, _ = executor.run(tasks, {0: model}, {})
        spent = time.perf_counter() - began
        told = executor.timings
    busy = told["worker/0"], told["worker/1"]
    assert told["train"] == pytest.approx(sum(o.seconds for o in outcomes))
    assert told["train"] <= sum(busy)
    assert max(busy) >= 0.05
    assert told["wait"] == pytest.approx(max(busy) - sum(busy) / 2)
    assert max(told["broadcast"], max(busy)) + told["fold"] <= spent
    serial = SerialExecutor(parts)
    serial.run(tasks, {0: model}, {})
    assert serial.timings["train"] >= 0.05
    assert serial.timings["fold"] >= 0


def test_a_signal_to_the_whole_group_does_not_reach_the_workers():
    parts = rc.parts(FedAvg())
    with closing(executor_of(parts, workers=2)) as executor:
        for process, _ in executor._workers:
            os.kill(process.pid, signal.SIGTERM)
            os.kill(process.pid, signal.SIGINT)
        end = Loop(parts, executor, stop=Stop(2)).run()
    assert end.status == "completed"


@pytest.mark.parametrize("method", [*METHODS, "spawn"])
def test_ctrl_c_while_workers_begin_disturbs_none_of_them(method, monkeypatch, capfd):
    parts = rc.parts(FedAvg())

    def begun(self, context, parts, number, start=ProcessExecutor._start):
        start(self, context, parts, number)
        os.kill(self._workers[-1][0].pid, signal.SIGINT)  # it has hardly begun

    monkeypatch.setattr(ProcessExecutor, "_start", begun)
    with closing(executor_of(parts, workers=2, method=method)) as executor:
        assert Loop(parts, executor, stop=Stop(2)).run().status == "completed"
    assert capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_other_children_of_the_fork_server_hear_of_ctrl_c_during_a_run_and_after_it(tmp_path):
    script = tmp_path / "others.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, signal, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import runtime_clients as rc
            from atoll.algorithms import FedAvg
            from atoll.runtime.loop import Loop
            from atoll.runtime.processes import ProcessExecutor
            from atoll.runtime.serial import SerialExecutor

            def waits():
                return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

            def other():
                with multiprocessing.get_context("forkserver").Pool(1) as pool:
                    print(pool.apply(waits))

            if __name__ == "__main__":
                parts = rc.parts(FedAvg())
                like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
                executor = ProcessExecutor(parts, like, workers=2, method="forkserver")
                other()
                executor.close()
                other()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("method", [*METHODS, "spawn"])
def test_a_run_that_is_ended_while_workers_begin_leaves_none(method, monkeypatch, capfd):
    def ended(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessExecutor, "_meet", ended)
    with pytest.raises(KeyboardInterrupt):
        executor_of(rc.parts(FedAvg()), workers=2, method=method)
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the system has no such class")
@pytest.mark.parametrize("method", METHODS)
def test_workers_do_not_take_the_processor_from_who_wakes_them(method):
    before = os.sched_getscheduler(0)
    with closing(executor_of(rc.parts(FedAvg()), workers=2, method=method)) as executor:
        found = [os.sched_getscheduler(process.pid) for process, _ in executor._workers]
        assert found == [os.SCHED_BATCH if before == os.SCHED_OTHER else before] * 2
    assert os.sched_getscheduler(0) == before


def test_what_cannot_be_sent_is_refused_with_the_way_out():
    parts = rc.parts(FedAvg())

    def fit(parameters, data, context):
        return parameters, None

    local = FunctionTrainer({"w": np.zeros(3, np.float32)}, fit, fit)
    for bad in (local, rc.Unsendable(parts.trainer)):
        with pytest.raises(JobError, match="cannot be sent to worker processes") as caught:
            executor_of(dataclasses.replace(parts, trainer=bad), workers=2, method="forkserver")
        assert "top level of a module" in caught.value.remedy
        assert "serial" in caught.value.remedy
    assert not multiprocessing.active_children()


def test_a_process_of_a_pool_is_told_why_it_can_start_no_workers(monkeypatch):
    """It was an AssertionError in the middle of multiprocessing."""
    parts = rc.parts(FedAvg())
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(JobError, match=r"multiprocessing\.Pool") as refused:
        executor_of(parts, workers=1)
    assert "ProcessPoolExecutor" in refused.value.remedy


@pytest.mark.parametrize("again", ["forkserver", "fork"])
def test_a_script_without_a_main_guard_is_told_so(tmp_path, again):
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
            # In the first process by the fork server; a worker that imports this could make copies.
            method = "forkserver" if __name__ == "__main__" else {again!r}
            ProcessExecutor(parts, like, workers=2, method=method)
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
    lay = functools.partial(SharedArray.laid, context)
    shared = pack(clients, lay)
    assert list(shared) == list(clients)
    assert len(shared) == len(clients)
    for name, examples in clients.items():
        assert shared[name].features.tobytes() == examples.features.tobytes()
        assert shared[name].targets.dtype == examples.targets.dtype
        assert shared[name].features.base is not None
    odd = {**clients, "wide": type(clients["c0"])(np.zeros((2, 9)), np.zeros(2, np.int64))}
    assert pack(odd, lay) is odd
    assert pack({}, lay) == {}


def test_a_federation_of_unlike_rows_still_runs():
    parts = rc.parts(FedAvg())
    odd = {**parts.clients}
    odd["c2"] = type(odd["c2"])(odd["c2"].features.astype(np.float32), odd["c2"].targets)
    parts = dataclasses.replace(parts, clients=odd)
    with closing(executor_of(parts, workers=2)) as executor:
        ours = Loop(parts, executor, stop=Stop(2), evaluation=Evaluation(0)).run()
    theirs = Loop(parts, SerialExecutor(parts), stop=Stop(2), evaluation=Evaluation(0)).run()
    assert ours.progress.state.parameters.tobytes() == theirs.progress.state.parameters.tobytes()


def test_no_more_workers_start_than_there_are_clients():
    parts = rc.parts(FedAvg(), rc.federation({"a": 3, "b": 4}))
    with closing(executor_of(parts, workers=5000)) as executor:
        assert len(executor._workers) == 2
