"""What happens to machines at night: full disks, renewed certificates, closed terminals, a moved server."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import arrays_task, names, table_task
from federation_processes import ATOLL, Federation, Process, free_port, until

from atoll.cli.main import main
from atoll.node.home import Home
from atoll.server import admin, doctor
from atoll.server.home import ServerHome
from atoll.wire.certificates import certificate_fingerprint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own that can be filled without harm to anybody."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "atoll", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """No room on its disk for as long as the body runs."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    try:
        yield
    finally:
        ballast.unlink()


def elsewhere(federation: Federation, site: str, disk: Path) -> None:
    """Let a site's folder lie on a disk of its own; its log does not."""
    federation.homes[site] = Home(disk / "node")
    (federation.folder / "sites" / site).mkdir(parents=True)


def atoll(*words: object) -> subprocess.CompletedProcess[str]:
    """A command, in this process: many ask again and again, and one of its own takes a second to start."""
    command = [*map(str, words)]
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        status = main(command)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def status(federation: Federation, site: str) -> str:
    told = atoll("node", "status", "--home", federation.homes[site].path)
    assert told.returncode == 0, told.stderr
    return told.stdout


def trouble(federation: Federation, site: str) -> str:
    home = federation.homes[site]
    return str(home.read(home.state).get("trouble", ""))


@pytest.mark.parametrize("kind", ["table", "scaffold", "large"])
def test_full_disk_at_a_site_holds_the_run_up_and_changes_nothing(
    tmp_path: Path, kind: str
) -> None:
    if kind == "large":
        task = arrays_task(tmp_path / "job", 2, 12, features=400_000)
    else:
        algorithm = "fedavg" if kind == "table" else "scaffold"
        task = table_task(tmp_path / "job", 2, 40, algorithm=algorithm)
    site = names(2)[0]
    with small_disk(tmp_path / "small", 96) as disk, Federation(tmp_path) as federation:
        elsewhere(federation, site, disk)
        federation.admit(task.sites)
        run = federation.submit(task.job)
        for least in (2, 5):
            federation.rounds(run, least)
            with full(disk):
                if kind == "large":  # whose own files, as they go, make room again
                    time.sleep(2)
                    continue
                until(lambda: "free space" in status(federation, site), 60, "no trouble")
                told = atoll("doctor", "--home", disk / "node")
                assert "No space left on device" in told.stdout
                assert "free space on this disk" in told.stdout
                assert told.returncode == 5, told.stdout
        info = federation.wait(run)
        assert info.reason == "completed", info
        assert federation.result(run)["model_hash"] == task.simulated()
        for record in federation.records(run):
            assert sorted(record["contributed"]) == names(2), record
        until(
            lambda: "trouble" not in status(federation, site), 10, "trouble that is over"
        )  # told each second


def test_site_whose_disk_is_full_when_a_run_begins_waits_for_room(tmp_path: Path) -> None:
    """Not even a worker can be started; the site is part of the run all the same."""
    task = table_task(tmp_path / "job", 2, 4)
    site = names(2)[0]
    with small_disk(tmp_path / "small", 32) as disk, Federation(tmp_path) as federation:
        elsewhere(federation, site, disk)
        federation.admit(task.sites)
        federation.connected()
        with full(disk):
            run = federation.submit(task.job)
            until(lambda: "free space" in status(federation, site), 60, "no trouble")
            time.sleep(2)
        assert federation.wait(run).reason == "completed"
        assert federation.result(run)["model_hash"] == task.simulated()


@pytest.mark.parametrize("large", [False, True], ids=["table", "large"])
def test_full_disk_at_the_server_holds_runs_up_and_changes_nothing(
    tmp_path: Path, large: bool
) -> None:
    if large:
        task = arrays_task(tmp_path / "job", 2, 12, features=400_000)
    else:
        task = table_task(tmp_path / "job", 2, 40, algorithm="scaffold")
    with small_disk(tmp_path / "server", 128) as disk, Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        for least in (2, 5):
            federation.rounds(run, least)
            with full(disk):
                stands = federation.committed(run)
                time.sleep(2)
                assert federation.committed(run) <= stands + 1
                found = {f.check: f for f in doctor.examine(disk) if f.state == "fault"}
                assert "free space" in found["disk"].remedy
                assert "free space" in found["blobs"].remedy
        info = federation.wait(run)
        assert info.reason == "completed", info
        assert federation.result(run)["model_hash"] == task.simulated()
        assert "Traceback" not in federation.server.said()


def test_renewed_certificate_is_taken_over_by_each_site_and_the_run_goes_on(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", 2, 30)
    first, second = names(2)
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        federation.researcher.close()
        run = federation.submit(task.job)
        federation.rounds(run, 2)
        changed = atoll("server", "change", federation.home, "--renew")
        assert changed.returncode == 0, changed.stderr
        charter = ServerHome(federation.home).charter()
        pin = certificate_fingerprint(ServerHome(federation.home).certificate(charter)).hex()
        assert "certificate" in changed.stdout
        assert federation.server.stop() == 0
        federation.server.start()
        federation.trouble(first, "showed another certificate")
        assert "atoll node server --certificate" in trouble(federation, first)
        told = atoll("doctor", "--home", federation.homes[first].path)
        assert (told.returncode, "FAULT    tls" in told.stdout) == (8, True), told.stdout
        running = atoll(
            "node", "server", "--certificate", pin, "--home", federation.homes[first].path
        )
        assert (running.returncode, "another node runs" in running.stderr) == (5, True)
        for site in (first, second):
            assert federation.nodes[site].stop() == 0
            home = federation.homes[site].path
            wrong = atoll("node", "server", "--certificate", "0" * 64, "--home", home)
            assert wrong.returncode == 8, wrong.stderr
            right = atoll("node", "server", "--certificate", pin, "--home", home)
            assert right.returncode == 0, right.stderr
            federation.nodes[site].start()
        info = until_ended(federation, run)
        assert info == "completed"
        assert model_at_the_server(federation, run) == task.simulated()


def until_ended(federation: Federation, run: str) -> str:
    """How a run ended, from the server's own rows: the researcher has the old certificate pinned."""

    def ended() -> str:
        [(status,)] = federation.rows("SELECT status FROM runs WHERE id = ?", run)
        return str(status) if status in ("completed", "failed", "cancelled") else ""

    return str(until(ended, 240, f"{run} has not ended", check=federation.check, every=0.1))


def model_at_the_server(federation: Federation, run: str) -> str:
    rows = federation.rows(
        "SELECT model_hash FROM rounds WHERE run = ? ORDER BY number DESC LIMIT 1", run
    )
    return str(rows[0][0])


def test_server_that_moves_to_another_address_is_found_again(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", 2, 30)
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 2)
        assert federation.server.stop() == 0
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(federation.home, elsewhere)
        shutil.rmtree(federation.home)
        address = f"127.0.0.1:{free_port()}"
        assert atoll("server", "change", elsewhere, "--address", address).returncode == 0
        federation.home = elsewhere
        federation.server = Process(
            "the server", [ATOLL, "server", "start", str(elsewhere)], tmp_path / "elsewhere.log"
        )
        federation.server.start()
        for site in names(2):
            federation.nodes[site].stop()
            home = federation.homes[site].path
            moved = atoll("node", "server", "--address", address, "--home", home)
            assert moved.returncode == 0, moved.stderr
            federation.nodes[site].start()
        assert until_ended(federation, run) == "completed"
        assert model_at_the_server(federation, run) == task.simulated()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signal_in_the_middle_of_a_round_ends_both_sides_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    task = table_task(tmp_path / "job", 2, 200)
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 3)
        site = names(2)[0]
        worker = federation.worker(site)
        for process in (federation.nodes[site], federation.server):
            process.signal(number)
            until(lambda p=process: p.status is not None, 60, f"{process.name} goes on")
            expected = 130 if number == signal.SIGINT and process is federation.server else 0
            assert process.status == expected, process.said()
            assert "stopped" in process.said()
        until(lambda: not Path(f"/proc/{worker}").exists(), 60, "its worker goes on")
        federation.server.start()
        federation.nodes[site].start()
        assert federation.wait(run).reason == "completed"
        assert federation.result(run)["model_hash"] == task.simulated()


def test_nohup_is_respected(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", 1, 1)
    with Federation(tmp_path) as federation:
        federation.join(names(1)[0], task.sites[names(1)[0]])
        federation.node(names(1)[0], before=["nohup"]).start()
        federation.connected()
        federation.nodes[names(1)[0]].signal(signal.SIGHUP)
        time.sleep(2)
        assert federation.nodes[names(1)[0]].alive


def test_names_as_people_write_them_and_none_almost_alike(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", 2, 3)
    called = dict(zip(names(2), ["Klinikum Nürnberg Süd", "Hôpital d'Été (nº 2)"], strict=True))
    with Federation(tmp_path) as federation:
        federation.admit({called[site]: data for site, data in task.sites.items()})
        federation.connected()
        run = federation.submit(task.job)
        assert federation.wait(run).reason == "completed"
        for record in federation.records(run):
            assert sorted(record["contributed"]) == sorted(called.values())
        alike = atoll("server", "invite", "klinikum nürnberg süd", "--home", federation.home)
        assert (alike.returncode, "written almost as" in alike.stderr) == (9, True)


def test_second_init_on_the_database_of_a_federation_is_refused(tmp_path: Path) -> None:
    with Federation(tmp_path) as federation:
        federation.invite("north")
        store = str(federation.home / "atoll.db")
        asked = admin.Founding("other", f"127.0.0.1:{free_port()}", "", store)
        with pytest.raises(Exception, match="holds a federation already"):
            admin.found(tmp_path / "other", replace(asked), time.time())


def test_node_whose_folder_is_moved_away_ends_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    """What it would make anew under the old name had neither the ledger nor the queries of the site."""
    task = table_task(tmp_path / "job", 2, 30)
    site = names(2)[0]
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 3)
        home, node = federation.homes[site].path, federation.nodes[site]
        home.rename(tmp_path / "elsewhere")
        until(lambda: node.status is not None, 60, "the node goes on")
        assert (node.status, "was moved or removed" in node.said()) == (5, True), node.said()
        assert not (home / "ledger").exists()
        shutil.rmtree(home, ignore_errors=True)
        (tmp_path / "elsewhere").rename(home)
        node.start()
        assert federation.wait(run).reason == "completed"
        assert federation.result(run)["model_hash"] == task.simulated()


def test_start_on_a_disk_that_is_read_only_is_refused_in_words(tmp_path: Path) -> None:
    """As after a restart of a machine whose disk has errors."""
    task = table_task(tmp_path / "job", 2, 30, algorithm="scaffold")
    site = names(2)[0]
    with (
        small_disk(tmp_path / "small", 64) as disk,
        small_disk(tmp_path / "server", 128) as server,
        Federation(tmp_path) as federation,
    ):
        elsewhere(federation, site, disk)
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 3)
        both = ((federation.nodes[site], disk), (federation.server, server))
        for process, place in both:
            process.stop()
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            process.start()
            until(lambda p=process: p.status is not None, 60, f"{process.name} has started")
            assert process.status == 5, process.said()
            assert "mounted read-only" in process.said()
            assert "Traceback" not in process.said()
        for words in (("--home", disk / "node"), ("--server", server)):
            told = atoll("doctor", *words)
            assert "mounted read-only" in told.stdout, told.stdout
            assert (told.returncode, "Traceback" in told.stderr) == (5, False), told.stderr
        for process, place in both:
            subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
            process.start()
        assert federation.wait(run).reason == "completed"
        assert federation.result(run)["model_hash"] == task.simulated()
