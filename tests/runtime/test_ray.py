"""The Ray executor on a cluster of three nodes: the serial executor's bits, whoever is lost meanwhile."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import runtime_clients as rc

from atoll.algorithms import ALGORITHMS, FedAvg, Scaffold
from atoll.core.contracts import Examples
from atoll.core.errors import ClientError, JobError, MissingExtra
from atoll.core.seeds import Seed
from atoll.data.population import resampled
from atoll.job.build import Job
from atoll.runtime.dealing import Merge, Run, Take
from atoll.runtime.loop import Stop
from atoll.runtime.packed import Packed, pack
from atoll.runtime.ray import RayExecutor
from atoll.runtime.serial import SerialExecutor
from atoll.simulation import simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

import test_executors as contract

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


OURS = f"ATOLL_TEST_CLUSTER=of-{os.getpid()}"
"""In the environment of all processes of our cluster: another's may run on the same machine."""


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core each; the driver sits on the first, which is never killed."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*OURS.split("="))
        yield from three_nodes(ray, Cluster)


def three_nodes(ray, Cluster):
    # A node that is gone is noticed in a second instead of half a minute.
    quick = {"health_check_period_ms": 200, "health_check_failure_threshold": 3}
    made = Cluster()
    made.add_node(num_cpus=1, include_dashboard=False, _system_config=quick)
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


def actors():
    """Pids of all processes that hold one of our actors."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            held = (folder / "cmdline").read_bytes().startswith(b"ray::_Worker")
            if held and f"{OURS}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def cut_off(node):
    """Kill the actors of a node, which else outlive it by a moment."""
    raylet = str(node.all_processes["raylet"][0].process.pid)
    for pid in actors():
        with suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == raylet:
                os.kill(pid, signal.SIGKILL)


def gone(what, within=60.0):
    until = time.monotonic() + within
    while what() and time.monotonic() < until:
        time.sleep(0.05)
    return not what()


def nodes_of(executor):
    return [m.node for m in executor._crew.values() if m.node]


def full(executor, count):
    """Whether so many workers have started, in good time; Ray's view of free cores may lag."""
    until = time.monotonic() + 60
    while len(executor._crew) < count and time.monotonic() < until:
        executor._looked = float("-inf")
        executor._muster()
        time.sleep(0.05)
    starting = [m.starting for m in executor._crew.values()]
    executor._ray.wait(starting, num_returns=len(starting), timeout=60)
    return len(starting) == count


@pytest.fixture
def steps(monkeypatch):
    """Steps as they end, and a hook that may act on one before the executor takes note of it."""
    seen, hooks = [], []
    ended, begin = RayExecutor._ended, RayExecutor._begin

    def note(self, step, answer, watched, round_):
        ended(self, step, answer, watched, round_)
        seen.append(step)

    def begun(self, round_, step):
        ref = begin(self, round_, step)
        for hook in hooks:
            hook(self, round_, step)
        return ref

    monkeypatch.setattr(RayExecutor, "_ended", note)
    monkeypatch.setattr(RayExecutor, "_begin", begun)
    return seen, hooks


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddyn", "fedbuff"])
def test_algorithms_end_in_the_serial_executor_s_bits(cluster, name):
    moods = {"c1": rc.WILD, "c2": rc.RAISES}
    made = rc.federation(rc.SIZES, moods)
    parts = rc.parts(ALGORITHMS[name](), made, from_round=1, scale=np.nan)
    with closing(RayExecutor(parts, workers=3)) as executor:
        for how in contract.SCHEDULES.values():
            expected = contract.records_of(parts, SerialExecutor(parts), *how)
            assert contract.records_of(parts, executor, *how) == expected


@pytest.mark.parametrize(
    "check",
    [
        contract.test_neither_the_order_of_tasks_nor_of_arrivals_shows,
        contract.test_more_model_versions_than_slots_are_worked_through,
        contract.test_evaluation_uses_personal_parts_and_names_the_first_client_that_fails,
    ],
)
def test_the_contract_of_executors(cluster, check):
    check(RayExecutor)


def test_a_torch_model_and_a_lazy_population_train_to_the_same_bits(cluster):
    pytest.importorskip("torch")
    from atoll.models.networks import mlp
    from atoll.models.torch.adapter import TorchTrainer

    base = rc.rows(200, 1)
    base = Examples(base.features.astype(np.float32), base.targets)
    parts = dataclasses.replace(
        rc.parts(FedAvg(), held_out=False),
        trainer=TorchTrainer(mlp, {"inputs": 3, "classes": 2}, classes=2),
        clients=resampled(base, 12, 20, Seed(4)),
    )
    how = contract.SCHEDULES["cohort"]
    expected = contract.records_of(parts, SerialExecutor(parts), *how, rounds=2)
    with closing(RayExecutor(parts)) as executor:
        assert contract.records_of(parts, executor, *how, rounds=2) == expected


@pytest.mark.parametrize("moment", ["working", "giving", "taking", "handing over"])
def test_a_worker_killed_at_any_moment_changes_no_bit_and_counts_nobody_twice(
    cluster, steps, moment
):
    ran, hooks = steps
    clients = rc.federation({f"c{i}": 5 + i for i in range(30)}, {"c7": rc.RAISES})
    parts = rc.parts(Scaffold(), clients)
    tasks, broadcasts = contract.tasks_for(clients, 2), contract.broadcasts_of(parts, 2)
    memories = {c: {"control": np.full(3, 0.1, np.float32)} for c in list(clients)[::2]}
    expected = contract.outcome_of(parts, SerialExecutor(parts), tasks, broadcasts, memories)
    killed = []

    def kill(self, round_, step):
        victim = None
        if moment == "working" and isinstance(step, Run) and not step.fresh:
            victim = step.worker  # it holds a sum, and is at work again
        elif moment == "giving" and isinstance(step, Merge):
            victim = step.source
        elif (moment == "taking" and isinstance(step, Merge)) or (
            moment == "handing over" and isinstance(step, Take)
        ):
            victim = step.worker
        if victim is not None and not killed:
            killed.append(victim)
            self._ray.kill(self._crew[victim].handle)

    hooks.append(kill)
    with closing(RayExecutor(parts, workers=3)) as executor:
        assert full(executor, 3)
        assert contract.outcome_of(parts, executor, tasks, broadcasts, memories) == expected
        assert killed
        done = Counter(item for s in ran if isinstance(s, Run) for item in s.items)
        assert set(done) == set(range(30))
        # A sum that was given in the moment its owner fell may have arrived: then nothing is repeated.
        assert sum(done.values()) > 30 or moment in ("giving", "handing over")
        ran.clear()
        assert contract.outcome_of(parts, executor, tasks, broadcasts, memories) == expected
        assert sum(len(s.items) for s in ran if isinstance(s, Run)) == 30


def test_a_node_killed_in_the_middle_of_a_round_and_one_that_joins(cluster, steps):
    ran, hooks = steps
    clients = rc.federation(
        {f"c{i}": 5 + i for i in range(40)}, {"c7": rc.RAISES, "c9": rc.WILD, "c11": rc.SLOW}
    )
    parts = rc.parts(FedAvg(), clients, scale=np.inf)
    tasks, broadcasts = contract.tasks_for(clients), contract.broadcasts_of(parts, 1)
    expected = contract.outcome_of(parts, SerialExecutor(parts), tasks, broadcasts, {})
    assert expected["numbers"][2] == 38
    home = importlib.import_module("ray").get_runtime_context().get_node_id()
    fallen = []

    def fell(self, round_, step):
        node = self._crew[step.worker].node
        holds = isinstance(step, Run) and not step.fresh
        if holds and not fallen and node != home:
            victim = next(n for n in cluster.worker_nodes if n.node_id == node)
            cut_off(victim)
            cluster.remove_node(victim, allow_graceful=False)
            fallen.append(node)

    hooks.append(fell)
    with closing(RayExecutor(parts)) as executor:
        assert full(executor, 3)
        assert contract.outcome_of(parts, executor, tasks, broadcasts, {}) == expected
        done = Counter(item for s in ran if isinstance(s, Run) for item in s.items)
        assert fallen
        assert set(done) == set(range(40))
        assert fallen[0] not in nodes_of(executor)
        assert contract.outcome_of(parts, executor, tasks, broadcasts, {}) == expected
        assert len(executor._crew) == 2

        joined = cluster.add_node(num_cpus=1).node_id
        executor._looked = float("-inf")
        assert contract.outcome_of(parts, executor, tasks, broadcasts, {}) == expected
        assert full(executor, 3)
        ran.clear()
        assert contract.outcome_of(parts, executor, tasks, broadcasts, {}) == expected
        assert joined in nodes_of(executor)
        assert len({s.worker for s in ran if isinstance(s, Run)}) == 3


def test_a_core_is_not_left_idle_for_a_worker_that_has_started_unheard(cluster, monkeypatch):
    ray = importlib.import_module("ray")
    idle = ray.available_resources
    assert gone(lambda: idle().get("CPU", 0) < 3)
    monkeypatch.setattr(ray, "available_resources", lambda: idle() | {"CPU": 2.0})
    with closing(RayExecutor(rc.parts(FedAvg()))) as executor:
        assert len(executor._crew) == 2
        monkeypatch.undo()
        ray.wait([m.starting for m in executor._crew.values()], num_returns=2, timeout=60)
        assert sum(not m.node for m in executor._crew.values()) == 1  # nobody has listened to it
        assert full(executor, 3)


def test_clients_that_take_their_workers_down_are_named(cluster):
    clients = rc.federation(rc.SIZES, {"c4": rc.DIES})
    parts = rc.parts(FedAvg(), clients)
    tasks, broadcasts = contract.tasks_for(clients), contract.broadcasts_of(parts, 1)
    with closing(RayExecutor(parts)) as executor:
        with pytest.raises(ClientError, match=r"3 Ray workers were lost while they ran: c4;") as e:
            executor.run(tasks, broadcasts, {})
        assert "--resume" in e.value.remedy
        rest = [t for t in tasks if t.client != "c4"]
        assert executor.run(rest, broadcasts, {})[0].count == len(rest)


def test_what_cannot_be_sent_or_started_is_refused_with_the_way_out(cluster):
    parts = rc.parts(FedAvg())
    locked = rc.Unsendable(parts.trainer, threading.Lock())
    with pytest.raises(JobError, match="cannot be sent to Ray workers") as caught:
        RayExecutor(dataclasses.replace(parts, trainer=locked))
    assert "serial" in caught.value.remedy
    with pytest.raises(JobError, match="none was given a place within 1 s") as caught:
        RayExecutor(parts, gpus=1, workers=2, patience=1)
    assert "ray status" in caught.value.remedy
    assert gone(actors)


def test_workers_that_cannot_read_the_job_say_why(cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class Rule:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rule = importlib.import_module("only_here").Rule()
    monkeypatch.undo()  # known here, and on no other node
    parts = dataclasses.replace(rc.parts(FedAvg()), algorithm=rule)
    with pytest.raises(JobError, match="No module named 'only_here'") as caught:
        RayExecutor(parts, workers=2)
    assert "on every node" in caught.value.remedy
    assert gone(actors)


def test_closing_ends_our_actors_and_leaves_a_cluster_that_is_not_ours(cluster):
    parts = rc.parts(FedAvg())
    executor = RayExecutor(parts, workers=2)
    assert full(executor, 2)
    assert len(actors()) == 2
    executor.close()
    executor.close()
    assert gone(actors)
    made = Job(trainer=parts.trainer, local=parts.local, stop=Stop(rounds=2), seed=3)
    runs = [
        simulate(made, parts.clients, executor=name, workers=2, profile=name == "ray")
        for name in ("serial", "ray")
    ]
    assert len({run.model_hash for run in runs}) == 1
    assert runs[1].manifest["executor"] == "ray"
    assert len(runs[1].profile.workers) == 2
    assert gone(actors)
    assert importlib.import_module("ray").is_initialized()


def test_a_cluster_of_its_own_is_quiet_reachable_from_here_only_and_ends(tmp_path):
    pytest.importorskip("ray")
    script = tmp_path / "alone.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, pathlib, sys, time
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import runtime_clients as rc
            from atoll.algorithms import FedAvg
            from atoll.core.contracts import Task
            from atoll.runtime.loop import Loop, Stop
            from atoll.runtime.ray import RayExecutor

            def tree():
                found = []
                for folder in pathlib.Path("/proc").glob("[0-9]*"):
                    try:
                        ours = b"{tmp_path}-mark" in (folder / "environ").read_bytes()
                    except OSError:
                        continue
                    if ours and int(folder.name) != os.getpid():
                        found.append(int(folder.name))
                return found

            parts = rc.parts(FedAvg())
            executor = RayExecutor(parts, workers=2)
            Loop(parts, executor, stop=Stop(2)).run()
            from ray._private.utils import publish_error_to_driver
            from ray._private.worker import global_worker
            publish_error_to_driver("news", "of a node", gcs_client=global_worker.gcs_client)
            time.sleep(0.5)
            pids = tree()
            assert len(pids) > 4, pids
            inodes = set()
            for pid in (*pids, os.getpid()):
                for fd in pathlib.Path(f"/proc/{{pid}}/fd").iterdir():
                    try:
                        inodes.add(os.readlink(fd))
                    except OSError:
                        pass
            for table in ("tcp", "tcp6"):
                for line in pathlib.Path(f"/proc/net/{{table}}").read_text().splitlines()[1:]:
                    words = line.split()
                    if words[3] == "0A" and f"socket:[{{words[9]}}]" in inodes:
                        print("listens", words[1].partition(":")[0])
            executor.close()
            until = time.monotonic() + 60
            while tree() and time.monotonic() < until:
                time.sleep(0.05)
            print("left", tree())
            """
        )
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environment, "ATOLL_MARK": f"{tmp_path}-mark"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    *listening, left = done.stdout.splitlines()
    assert left == "left []"
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert {line.split()[1] for line in listening} <= loopback
    assert listening


@pytest.mark.parametrize("address", ["10.1.2", "127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_told_at_once(address):
    pytest.importorskip("ray")
    source = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import runtime_clients as rc
from atoll.algorithms import FedAvg
from atoll.core.errors import JobError
from atoll.runtime.ray import RayExecutor
try:
    RayExecutor(rc.parts(FedAvg()), address={address!r})
except JobError as error:
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment,
    )
    assert f"no Ray cluster answers at {address!r}" in done.stdout
    assert "ray start --head" in done.stdout


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra) as caught:
        RayExecutor(rc.parts(FedAvg()))
    assert "pip install 'atoll[ray]'" in caught.value.remedy


def test_rows_that_are_alike_travel_as_two_blocks():
    clients = rc.federation(rc.SIZES)
    packed = pack(clients)
    assert isinstance(packed, Packed)
    assert list(packed) == list(clients)
    for name, examples in clients.items():
        assert packed[name].features.tobytes() == examples.features.tobytes()
        assert packed[name].targets.tobytes() == examples.targets.tobytes()
        assert np.shares_memory(packed[name].features, packed.features)
    odd = {**clients, "wide": Examples(np.zeros((2, 9)), np.zeros(2, np.int64))}
    assert pack(odd) is odd
    assert pack({}) == {}
    crowd = resampled(clients["c0"], 10, 3, Seed(0))
    assert isinstance(pack(crowd).source, Packed)
    assert pack(crowd).fingerprint() == crowd.fingerprint()
