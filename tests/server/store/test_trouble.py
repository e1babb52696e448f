"""Databases that are damaged, full, locked away or from another version: refused in words."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres_cluster import Cluster
from store_rows import answer, round_row, started

from atoll.core.errors import FenceError, MissingExtra, StorageError
from atoll.server.store.looking import look_at
from atoll.server.store.memory import MemoryStore
from atoll.server.store.migrations import HEAD
from atoll.server.store.opening import open_store
from atoll.server.store.sql import SqlStore
from atoll.server.store.tables import METADATA


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


class TestVersions:
    def test_migrations_make_the_tables_that_are_used(self, url: str) -> None:
        store = SqlStore(url)
        with store.database.reading() as db:
            assert compare_metadata(MigrationContext.configure(db), METADATA) == []
        store.close()

    def test_newer_database_is_refused_and_left_alone(self, url: str) -> None:
        store = SqlStore(url)
        started(store)
        with store.database.writing() as db:
            db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        store.close()
        with pytest.raises(StorageError, match=f"'9999'.*'{HEAD}'.*newer") as caught:
            SqlStore(url)
        assert "newer version" in caught.value.remedy

    def test_opening_again_needs_no_migration(self, url: str) -> None:
        SqlStore(url).close()
        code = """
            import sys
            from atoll.server.store.opening import open_store
            open_store(sys.argv[1]).close()
            print("alembic" in sys.modules)
        """
        assert python(code, url).stdout == "False\n"

    def test_many_may_open_a_new_database_at_once(self, url: str) -> None:
        code = (
            "import sys; from atoll.server.store.opening import open_store; open_store(sys.argv[1])"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        assert [p.communicate(timeout=60)[1] for p in processes] == [b""] * 3


class TestUrls:
    def test_path_url_and_memory(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "new" / "store.db"))
        started(store)
        store.close()
        again = open_store(f"sqlite:///{tmp_path}/new/store.db")
        assert len(again.runs()) == 1
        again.close()
        assert isinstance(open_store("memory:"), MemoryStore)

    @pytest.mark.parametrize("url", ["mysql://u@h/d", "sqlite://", "sqlite:///:memory:"])
    def test_other_kinds_are_refused(self, url: str) -> None:
        with pytest.raises(StorageError, match="no kind of store"):
            open_store(url)

    def test_unreadable_url_does_not_show_its_password(self) -> None:
        with pytest.raises(StorageError) as caught:
            open_store("postgresql://u:geheim@h:port/d")
        assert "geheim" not in str(caught.value)

    def test_database_out_of_reach_is_named_without_its_password(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="cannot be used") as caught:
            open_store(f"postgresql://ada:geheim@/atoll?host={tmp_path}")
        assert "geheim" not in str(caught.value)
        assert "ada:***" in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://ada:ge@heim@h/d",
            "postgresql://ada@h:1/d?password=geheim&connect_timeout=1",
        ],
    )
    def test_password_is_not_shown_wherever_it_stands(self, url: str) -> None:
        with pytest.raises(StorageError) as caught:
            open_store(url)
        assert "heim" not in str(caught.value)
        with pytest.raises(StorageError) as caught:
            look_at(url, ())
        assert "heim" not in str(caught.value)

    @pytest.mark.parametrize(
        ("module", "url", "extra"),
        [("sqlalchemy", "x.db", "server"), ("psycopg", "postgresql://u@h/d", "postgres")],
    )
    def test_missing_library_names_the_extra(
        self, monkeypatch: pytest.MonkeyPatch, module: str, url: str, extra: str
    ) -> None:
        for name in [n for n in sys.modules if n.startswith("atoll.server.store.sql")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtra, match=f"atoll\\[{extra}\\]"):
            open_store(url)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with some rows, which every test has a copy of."""
    made = tmp_path_factory.mktemp("filled") / "store.db"
    store = SqlStore(str(made))
    started(store)
    for n in range(300):
        store.add_event("filler", "x" * 400, "", "", float(n))
    store.close()
    return made


class TestSqliteFile:
    @pytest.fixture
    def path(self, filled: Path, tmp_path: Path) -> Path:
        return Path(shutil.copy(filled, tmp_path / "store.db"))

    def test_only_its_owner_can_read_it(self, filled: Path) -> None:
        assert stat.S_IMODE(filled.stat().st_mode) == 0o600

    def test_it_is_synced_at_every_commit(self, path: Path) -> None:
        store = SqlStore(str(path))
        with store.database.reading() as db:
            found = [
                db.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous")
            ]
        store.close()
        assert found == ["wal", 2]

    @pytest.mark.parametrize("what", ["text", "middle", "tail", "cut", "schema"])
    def test_damage_is_found_when_it_is_opened(self, path: Path, what: str) -> None:
        raw = bytearray(path.read_bytes())
        assert len(raw) > 20 * 4096
        if what == "text":
            raw[:] = b"this is no database at all " * 400
        elif what == "middle":
            raw[4096 * 2 :] = Random(1).randbytes(len(raw) - 4096 * 2)
        elif what == "tail":
            raw[-4096 * 5 :] = bytes(4096 * 5)
        elif what == "schema":  # SQLite quotes what it found there, which is no text
            assert raw.count(b"CREATE TABLE events") == 1
            raw = raw.replace(b"CREATE TABLE events", b"CREATE \xff\xfeBLE events")
        else:
            del raw[len(raw) // 2 :]
        path.write_bytes(raw)
        with pytest.raises(StorageError, match=r"store\.db is damaged") as caught:
            SqlStore(str(path))
        assert "restore it from a backup" in caught.value.remedy
        with pytest.raises(StorageError, match=r"store\.db is damaged") as caught:
            look_at(str(path), ())
        assert "restore it from a backup" in caught.value.remedy

    def test_a_length_that_cannot_be_is_damage(self, path: Path) -> None:
        store = SqlStore(str(path))
        with (
            pytest.raises(StorageError, match=r"store\.db is damaged"),
            store.database.reading(),
        ):
            raise sqlite3.DataError("string or blob too big")
        store.close()

    def test_torn_end_of_the_log_loses_only_what_was_not_acknowledged(self, path: Path) -> None:
        store = SqlStore(str(path))
        epoch = store.acquire("second", 1.0)
        store.contribute(epoch, answer("r1.train.0.Ulm"))
        wal = Path(f"{path}-wal")
        acknowledged = wal.stat().st_size
        store.contribute(epoch, answer("r1.train.0.Bern"))
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        # The power fails while the second one is written: its frames are there in part.
        torn = wal.read_bytes()[: acknowledged + 1500]
        Path(f"{copy}-wal").write_bytes(torn)
        store.close()
        after = SqlStore(str(copy))
        assert [c.client for c in after.contributions("r1")] == ["Ulm"]
        after.close()

    def test_full_disk_is_said_and_leaves_the_store_whole(self, path: Path) -> None:
        code = """
            import resource, sys
            from pathlib import Path
            sys.path.insert(0, sys.argv[2])
            from store_rows import answer, round_row
            from atoll.core.errors import StorageError
            from atoll.server.store.opening import open_store
            store = open_store(sys.argv[1])
            epoch = store.acquire("second", 1.0)
            most = Path(sys.argv[1]).stat().st_size + 100_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            done = 0
            try:
                while True:
                    store.contribute(epoch, answer(f"r1.train.{done}.Ulm"))
                    done += 1
                    store.commit_round(epoch, round_row(done, (f"r1.train.{done - 1}.Ulm",)))
                    store.add_event("filler", "x" * 9000, "", "", 0.0)
            except StorageError as error:
                print(done, error.remedy, sep="|")
        """
        ran = python(code, path, Path(__file__).parent)
        done, _, remedy = ran.stdout.partition("|")
        assert "free space" in remedy, ran.stdout + ran.stderr
        store = SqlStore(str(path))
        last = store.last_round("r1")
        assert last is not None
        assert int(done) - 1 <= last.number <= int(done)
        epoch = store.acquire("third", 2.0)
        store.commit_round(epoch, round_row(last.number + 1))
        store.close()

    def test_database_that_another_program_holds_is_said(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("atoll.server.store.database._BUSY_MILLISECONDS", 100)
        store, other = SqlStore(str(path)), SqlStore(str(path))
        with (
            other.database.writing(),
            pytest.raises(StorageError, match=r"locked.*\n.*another program"),
        ):
            store.add_event("x", "", "", "", 0.0)
        store.close()
        other.close()


class TestReadOnly:
    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        """A folder that an unprivileged user can reach and not write to, with a store in it."""
        made = Path(tempfile.mkdtemp(prefix="atoll-ro-", dir="/tmp"))
        SqlStore(str(made / "store.db")).close()
        made.chmod(0o555)
        (made / "store.db").chmod(0o444)
        yield made
        made.chmod(0o755)
        shutil.rmtree(made)

    @pytest.mark.parametrize("name", ["store.db", "other.db"])
    def test_folder_that_cannot_be_written_is_said(
        self, folder: Path, name: str, tmp_path: Path
    ) -> None:
        code = """
            import sys
            from atoll.core.errors import StorageError
            from atoll.server.store.opening import open_store
            import os
            # All that is imported is imported while it can be read.
            open_store(sys.argv[2]).close()
            if os.getuid() == 0:
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            try:
                open_store(sys.argv[1]).acquire("x", 0.0)
            except StorageError as error:
                print(error)
        """
        ran = python(code, folder / name, tmp_path / "any.db")
        assert "let the user that runs the server write there" in ran.stdout, ran.stderr


class TestPostgresql:
    def test_commits_are_synced_even_where_the_database_would_not(self, postgres: Cluster) -> None:
        url = postgres.new_database()
        name = url.split("/")[3].partition("?")[0]
        postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        store = SqlStore(url)
        with store.database.reading() as db:
            assert db.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        store.close()

    def test_connections_that_broke_are_made_anew(self, postgres: Cluster) -> None:
        store = SqlStore(postgres.new_database())
        started(store)
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname <> 'postgres' AND pid <> pg_backend_pid()"
        )
        assert len(store.runs()) == 1
        store.contribute(1, answer("r1.train.0.Ulm"))
        store.close()

    def test_database_that_is_away_is_the_store_s_trouble_and_passes(
        self, postgres: Cluster
    ) -> None:
        """What the toolkit lets through of the driver's own errors would end a run, not pause it."""
        store = SqlStore(postgres.new_database())
        started(store)
        postgres.stop()
        try:
            for ask in (
                store.lease,
                store.runs,
                lambda: store.contribute(1, answer("r1.train.0.Ulm")),
                lambda: store.commit_round(1, round_row(1)),
            ):
                with pytest.raises(StorageError) as caught:
                    ask()
                assert "database runs and can be reached" in caught.value.remedy
        finally:
            postgres.start()
        assert store.contribute(1, answer("r1.train.0.Ulm")) == "new"
        store.close()

    def test_lock_that_went_with_its_connection_is_taken_again(self, postgres: Cluster) -> None:
        url = postgres.new_database()
        store, other = SqlStore(url), SqlStore(url)
        store.acquire("first", 1.0)
        postgres.stop()
        try:
            with pytest.raises(StorageError):
                store.keep_lock()
        finally:
            postgres.start()
        store.keep_lock()
        with pytest.raises(FenceError, match="first"):
            other.acquire("second", 2.0)
        store.close()
        other.close()

    def test_lock_that_another_has_taken_meanwhile_stays_theirs(self, postgres: Cluster) -> None:
        url = postgres.new_database()
        store, other = SqlStore(url), SqlStore(url)
        epoch = store.acquire("first", 1.0)
        postgres.stop()
        postgres.start()
        other.acquire("second", 2.0)
        store.keep_lock()
        with pytest.raises(FenceError, match="took over"):
            store.contribute(epoch, answer("r1.train.0.Ulm"))
        other.keep_lock()
        store.close()
        other.close()

    def test_role_that_may_not_make_tables_is_told_what_it_lacks(self, postgres: Cluster) -> None:
        url = postgres.new_database()
        name = url.split("/")[3].partition("?")[0]
        postgres.execute("DROP ROLE IF EXISTS clerk")
        postgres.execute("CREATE ROLE clerk LOGIN")
        postgres.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
        with pytest.raises(StorageError, match="permission denied") as caught:
            SqlStore(url.replace("atoll@", "clerk@"))
        assert "ALTER DATABASE" in caught.value.remedy

    def test_standby_is_told_from_a_folder_that_cannot_be_written(self, postgres: Cluster) -> None:
        url = postgres.new_database()
        SqlStore(url).close()
        name = url.split("/")[3].partition("?")[0]
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store = SqlStore(url)
        with pytest.raises(StorageError, match="read-only transaction") as caught:
            started(store)
        store.close()
        assert "primary" in caught.value.remedy

    def test_options_of_the_url_are_kept_beside_ours(self, postgres: Cluster) -> None:
        store = SqlStore(f"{postgres.new_database()}&options=-c%20application_name%3Dlagoon")
        with store.database.reading() as db:
            assert db.exec_driver_sql("SHOW application_name").scalar() == "lagoon"
            assert db.exec_driver_sql("SHOW tcp_keepalives_idle").scalar() is not None
        store.close()
