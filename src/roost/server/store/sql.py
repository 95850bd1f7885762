"""The store over SQLAlchemy Core: one thread writes, in groups; another reads."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from roost.server.store.base import Store, T
from roost.server.store.tables import REVISION
from roost.wire.errors import RoostError

_Job = tuple[Callable[[sa.Connection], Any], "Future[Any]"]
_GROUP = 128


class SqlStore(Store):
    """A store in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(1, "roost-store-read")
        self._writer: threading.Thread | None = None

    async def open(self) -> None:
        self._engine = _engine(self._path)
        await asyncio.to_thread(_migrate, self._engine, self._path)
        self._writer = threading.Thread(target=self._write_groups, name="roost-store-write", daemon=True)
        self._writer.start()

    async def aclose(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._jobs.put(None)
        await asyncio.to_thread(writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._engine.dispose()

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        def run() -> T:
            with self._engine.connect().execution_options(roost_reads=True) as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        if self._writer is None:
            raise RuntimeError("the store is closed")
        future: Future[T] = Future()
        self._jobs.put((work, future))
        return await asyncio.wrap_future(future)

    def _write_groups(self) -> None:
        while (first := self._jobs.get()) is not None:
            group, closing = [first], False
            while len(group) < _GROUP and not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    closing = True
                    break
                group.append(job)
            self._commit([job for job in group if job[1].set_running_or_notify_cancel()])
            if closing:
                return

    def _commit(self, group: list[_Job]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._engine.begin() as connection:
                for work, future in group:
                    answers.append((future, *_attempt(connection, work)))
        except Exception as error:  # noqa: BLE001 - the commit failed, so every caller must hear of it
            answers = [(future, None, error) for _, future in group]
        for future, result, failure in answers:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)


def _attempt(connection: sa.Connection, work: Callable[[sa.Connection], Any]) -> tuple[Any, BaseException | None]:
    try:
        with connection.begin_nested():
            return work(connection), None
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, and only its own savepoint is undone
        return None, error


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _on_connect(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # the driver's own BEGIN comes too late for savepoints
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            raw.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # IMMEDIATE waits for another process's writer; a lock taken later would fail at once.
        reads = connection.get_execution_options().get("roost_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


class DatabaseTooNew(RoostError):
    """The database was written by a newer version of roost."""

    code = "database-too-new"
    hint = "install that version again, or use another data folder"


def _migrate(engine: sa.Engine, path: Path) -> None:
    revision = _revision(engine)
    if revision == REVISION:
        return
    if revision is not None:
        if revision > REVISION:
            raise DatabaseTooNew(f"{path} has schema {revision}, this version knows {REVISION}")
        _copy(path, path.with_name(f"{path.name}.before-{REVISION}"))
    # Only here, since most starts have nothing to migrate and would wait for its import all the same.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _copy(path: Path, target: Path) -> None:
    """Migrations go forward only; this is the way back. The copy holds what is still in the write-ahead log too."""
    with contextlib.closing(sqlite3.connect(path)) as database, contextlib.closing(sqlite3.connect(target)) as copy:
        database.backup(copy)
    target.chmod(0o600)


def _revision(engine: sa.Engine) -> str | None:
    """The migration that the database is at; None where it is empty."""
    with engine.connect().execution_options(roost_reads=True) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return revision
