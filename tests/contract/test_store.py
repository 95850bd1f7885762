import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from roost.server.store import sql
from roost.server.store.sql import SqlStore
from roost.server.store.tables import REVISION, domains, groups, keypairs, metadata, sessions, users

ROW = {
    "access_key": "AK",
    "name": "main",
    "image": "python",
    "state": "PENDING",
    "spec": {},
    "created_at": 1.0,
    "group_id": "g",
}
RACER = """
import asyncio, sys
from pathlib import Path
from roost.server.store.sql import SqlStore
from roost.server.store.tables import sessions
async def main():
    store = SqlStore(Path(sys.argv[1])); await store.open()
    row = dict(id=sys.argv[2], access_key="AK", name="main", image="p", state="PENDING", spec={}, created_at=1.0)
    row["group_id"] = "g"
    try:
        await store.write(lambda c: c.execute(sessions.insert().values(row)) and None); print("won")
    except Exception as error: print(type(error).__name__)
    await store.aclose()
asyncio.run(main())
"""


def seed(connection: sa.Connection) -> None:
    connection.execute(domains.insert().values(name="d"))
    connection.execute(groups.insert().values(id="g", domain="d", name="main"))
    connection.execute(users.insert().values(id="u", email="a@b", role="user", domain="d"))
    connection.execute(keypairs.insert().values(access_key="AK", user_id="u", secret=b""))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "roost.db")
    await store.open()
    await store.write(seed)
    yield store
    await store.aclose()


def insert(connection: sa.Connection, id_: str, state: str = "PENDING") -> None:
    connection.execute(sessions.insert().values(ROW | {"id": id_, "state": state}))


async def test_a_live_name_is_held_once_and_free_again_after_death(store: SqlStore) -> None:
    await store.write(lambda c: insert(c, "1", "TERMINATED"))
    await store.write(lambda c: insert(c, "2"))

    with pytest.raises(sa.exc.IntegrityError):
        await store.write(lambda c: insert(c, "3"))

    assert await store.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(sessions)).scalar()) == 2


async def test_two_processes_race_for_one_name_and_one_wins(store: SqlStore, tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", RACER, str(tmp_path / "roost.db"), id_], stdout=subprocess.PIPE, text=True
        )
        for id_ in "ab"
    ]

    assert sorted(racer.communicate(timeout=20)[0].strip() for racer in racers) == ["IntegrityError", "won"]


async def test_migrations_lead_to_the_tables_that_the_code_uses(store: SqlStore) -> None:
    differences = await store.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    revision = await store.read(lambda connection: MigrationContext.configure(connection).get_current_revision())

    assert differences == []
    assert revision == REVISION  # at which a start does not even look for migrations


async def test_a_database_is_copied_before_it_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roost.db"
    await fill(path)
    monkeypatch.setattr(sql, "REVISION", "0009")

    await fill(path, id_="2")

    copied = sa.create_engine(f"sqlite:///{path}.before-0009")
    with copied.connect() as connection:
        assert [row.id for row in connection.execute(sa.select(sessions.c.id))] == ["1"]
    copied.dispose()
    assert Path(f"{path}.before-0009").stat().st_mode & 0o777 == 0o600


async def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(tmp_path / "roost.db")
    written_by = REVISION
    monkeypatch.setattr(sql, "REVISION", "0000")

    with pytest.raises(sql.DatabaseTooNew, match=written_by):
        await SqlStore(tmp_path / "roost.db").open()


async def fill(path: Path, id_: str = "1") -> None:
    store = SqlStore(path)
    await store.open()
    if id_ == "1":
        await store.write(seed)
    await store.write(lambda c: insert(c, id_, "TERMINATED"))
    await store.aclose()
