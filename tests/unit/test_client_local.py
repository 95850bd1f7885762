"""Finding and starting the local server. The program that is started stands in for the real one: it writes the two
files, and lives until it is told to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.client import local
from roost.client.local import (
    LocalServer,
    ServerNotStarted,
    default_data_dir,
    ensure_local_server,
    read_local_server,
    revive_local_server,
    stop_local_server,
)

PROGRAM = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--data-dir") + 1])
with (folder / "starts").open("a") as file:
    file.write("x")
if (folder / "broken").exists():
    sys.exit(3)
time.sleep(0.3)
ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
end = "http://127.0.0.1:1"
(folder / "admin.json").write_text(json.dumps({"endpoint": end, "access_key": "A", "secret_key": "S", "token": "T"}))
(folder / "new").write_text(json.dumps({"endpoint": end, "pid": os.getpid(), "start_time": ticks}))
os.replace(folder / "new", folder / "server.json")
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder, and an interpreter on whose path the program above is `roost.server`."""
    package = tmp_path / "path" / "roost" / "server"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    data = tmp_path / "data"
    yield data
    stop_local_server(data)


def test_two_starters_share_one_server(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found: list[LocalServer] = []
    starters = [threading.Thread(target=lambda: found.append(ensure_local_server(folder))) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len({server.pid for server in found}) == 1
    assert (folder / "starts").read_text() == "x"
    assert found[0].token == "T"
    stderr = capfd.readouterr().err
    assert stderr.count("started a server") == 1
    assert "roost down" in stderr


def test_a_stale_file_is_replaced(folder: Path) -> None:
    first = ensure_local_server(folder)
    assert stop_local_server(folder)
    assert (folder / "server.json").exists()
    assert read_local_server(folder) is None
    assert ensure_local_server(folder).pid != first.pid
    assert stop_local_server(folder)
    assert not stop_local_server(folder)


def test_a_server_that_exits_is_told_at_once(folder: Path) -> None:
    folder.mkdir()
    (folder / "broken").touch()
    with pytest.raises(ServerNotStarted, match="exited with 3") as caught:
        ensure_local_server(folder)
    assert str(folder / "server.log") in str(caught.value.hint)


def test_without_the_server_extra_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ServerNotStarted) as caught:
        ensure_local_server(tmp_path)
    assert caught.value.hint == "pip install 'roost[server]', or set an endpoint"


def test_where_the_data_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOST_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir() == Path("/x/roost")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert local.default_data_dir() == Path("/var/lib/roost")


def test_a_server_that_crashed_is_started_again_and_one_that_was_stopped_is_not(folder: Path) -> None:
    crashed = ensure_local_server(folder)
    os.kill(crashed.pid, signal.SIGKILL)
    _wait_for_end(crashed.pid)
    revived = revive_local_server(folder)
    assert revived is not None
    assert revived.pid != crashed.pid
    assert revive_local_server(folder) == revived

    stop_local_server(folder)
    (folder / "server.json").unlink()  # as the server does when it is told to stop
    assert revive_local_server(folder) is None
    assert (folder / "starts").read_text() == "xx"


def test_a_server_that_cannot_be_revived_is_none(folder: Path) -> None:
    crashed = ensure_local_server(folder)
    os.kill(crashed.pid, signal.SIGKILL)
    _wait_for_end(crashed.pid)
    (folder / "broken").touch()
    assert revive_local_server(folder) is None


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while local._start_time(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
