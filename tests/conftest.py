"""What every ring of tests shares."""

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from roost.agent.install import install_runner
from roost.agent.interpreters import remembering_interpreters
from roost.agent.layout import FIRST_UID, UIDS_PER_DATA_DIR, run_dir, session_uids
from roost.agent.supervisor import LocalAgent
from tests.agents import end
from tests.servers import Caller, a_server

# How long an example takes tells how busy the machine is.
hypothesis.settings.register_profile(
    "untimed",
    parent=hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that every session uid can traverse; pytest's own `tmp_path` is closed to them."""
    folder = _make_folder()
    folder.chmod(0o711)
    yield folder
    _end_everything_of(folder)
    shutil.rmtree(folder, ignore_errors=os.getuid() != 0)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every agent makes in an empty data folder, and always in the same way: tests of processes look at that."""
    folder = tmp_path_factory.mktemp("made-once")
    (folder / "images").mkdir()
    install_runner(folder)
    remembering_interpreters(folder / "images" / "programs.json")
    return folder


@pytest.fixture
def used_data_dir(data_dir: Path, made_once: Path) -> Path:
    """A data folder in which an agent has been before; that saves each of hundreds of them a tenth of a second."""
    shutil.copytree(made_once, data_dir, dirs_exist_ok=True)
    data_dir.chmod(0o711)
    return data_dir


@pytest.fixture
async def agent(used_data_dir: Path) -> AsyncIterator[LocalAgent]:
    agent = LocalAgent(used_data_dir)
    await agent.open()
    yield agent
    await end(agent)


@pytest.fixture
async def server(used_data_dir: Path) -> AsyncIterator[Caller]:
    """A real server, as its administrator; what runs on it when the test ends is ended."""
    async with a_server(used_data_dir) as caller:
        yield caller
        for session in (await caller("GET", "/session")).body:
            await caller("DELETE", f"/session/{session['id']}", params={"forced": "true"})


def _make_folder() -> Path:
    """A new folder. Test processes that run at once have no block of session uids in common (ADR 3)."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        folder = Path(tempfile.mkdtemp(prefix="roost-test-", dir="/tmp"))
        if (session_uids(folder).start - FIRST_UID) // UIDS_PER_DATA_DIR % count == number % count:
            return folder
        folder.rmdir()


def _end_everything_of(data_dir: Path) -> None:
    """A test that failed half-way must not leave a sandbox or a keeper behind; those are killed by their pids."""
    pids = []
    for path in data_dir.glob("sandboxes/*/sandbox.json"):
        record = json.loads(path.read_text())
        if pid := record["init_pid"] or record["pid"]:  # 0 would be this process and its group
            pids.append(pid)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as keeper:
        keeper.settimeout(5)
        keeper.connect(str(run_dir(data_dir) / "keeper.sock"))
        body = b'{"op": "hello", "id": 1}'
        keeper.sendall(len(body).to_bytes(4, "big") + body)
        pids.append(json.loads(keeper.recv(65536)[4:])["pid"])
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(run_dir(data_dir), ignore_errors=True)
