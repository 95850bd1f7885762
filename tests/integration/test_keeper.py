"""The keeper alone: what it starts, what it reports, and what cannot stop it."""

import array
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import roost.runner

PROGRAM = Path(roost.runner.__file__).with_name("keeper_main.py")
TIMEOUT_S = 20


class Connection:
    """An agent's connection to a keeper, one message after the other."""

    def __init__(self, run_dir: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(str(run_dir / "keeper.sock"))
        except OSError:
            self.socket.close()
            raise

    def send(self, body: bytes, descriptors: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        message = len(body).to_bytes(4, "big") + body
        if rest := message[self.socket.sendmsg([message], rights) :]:
            self.socket.sendall(rest)

    def receive(self) -> dict[str, Any] | None:
        """The next message, None after the end of the connection."""
        length = self._read(4)
        if length is None or (body := self._read(int.from_bytes(length, "big"))) is None:
            return None
        message: dict[str, Any] = json.loads(body)
        return message

    def _read(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                chunk = self.socket.recv(count - len(data))
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            data += chunk
        return data

    def ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
        self.send(json.dumps({"id": 1, **request}).encode(), descriptors)
        answer = self.receive()
        assert answer is not None
        return answer


class Keeper:
    """A keeper of a folder of its own, and every connection to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        self.connections.append(Connection(self.folder))
        return self.connections[-1]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    folder = Path(tempfile.mkdtemp(prefix="roost-test-", dir="/tmp"))
    start_in(folder)
    keeper = Keeper(folder)
    pid = keeper.connect().ask({"op": "hello"})["pid"]
    yield keeper
    with contextlib.suppress(OSError):
        for child in keeper.connect().ask({"op": "hello"})["children"]:
            os.kill(child, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    for connection in keeper.connections:
        connection.socket.close()
    shutil.rmtree(folder)


def start_in(folder: Path) -> None:
    subprocess.run([sys.executable, "-I", str(PROGRAM), str(folder), str(folder / "log")], check=True, timeout=20)


def a_sandbox(keeper: Keeper) -> Path:
    folder = keeper.folder / "sandbox"
    folder.mkdir()
    (folder / "sandbox.json").write_text('{"spec": "kept"}')
    return folder


def a_spawn(folder: Path, script: str, **changes: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "op": "spawn",
        "argv": ["/bin/sh", "-c", script],
        "fds": [],
        "uid": None,
        "gid": None,
        "cgroups": [],
        "dir": str(folder),
        "rlimits": {},
    }
    return {**request, **changes}


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([descriptor], [], [], TIMEOUT_S)
    os.close(descriptor)
    assert ended


def test_a_child_gets_its_descriptors_and_its_end_is_reported(keeper: Keeper) -> None:
    folder, agent = a_sandbox(keeper), keeper.connect()
    reader, writer = os.pipe()

    answer = agent.ask(a_spawn(folder, "ls /proc/$$/fd >&7; env >&7; exit 3", fds=[7]), [writer])
    os.close(writer)
    event = agent.receive()
    with open(reader) as file:
        said = file.read().split()

    ended = {"pid": answer["pid"], "exit_code": 3, "signal": None}
    assert event == {**ended, "event": "exited", "dir": str(folder)}
    assert json.loads((folder / "exit.json").read_text()) == ended
    record = json.loads((folder / "sandbox.json").read_text())
    assert (record["spec"], record["pid"], record["start_time"]) == ("kept", answer["pid"], answer["start_time"])
    assert set(said) - {"0", "1", "2", "7", "10", "PWD=/", "OLDPWD=/", "SHLVL=0", "_=/usr/bin/env"} == set()


def test_a_death_by_signal_is_told_to_every_agent(keeper: Keeper) -> None:
    folder, first, second = a_sandbox(keeper), keeper.connect(), keeper.connect()
    second.ask({"op": "hello"})

    first.ask(a_spawn(folder, "kill -9 $$"))

    for agent in (first, second):
        event = agent.receive()
        assert event is not None
        assert (event["exit_code"], event["signal"]) == (None, 9)


def test_a_launch_that_fails_half_way_never_runs_its_program(keeper: Keeper) -> None:
    """The gate's end-of-file means exit."""
    folder, agent = a_sandbox(keeper), keeper.connect()

    answer = agent.ask(a_spawn(folder, f"touch {folder}/ran", cgroups=[str(keeper.folder / "no" / "cgroup.procs")]))
    event = agent.receive()

    assert "FileNotFoundError" in answer["error"]
    assert event is not None
    assert event["exit_code"] == 127
    assert not (folder / "ran").exists()
    assert agent.ask({"op": "hello"})["children"] == []


def test_a_retired_keeper_starts_nothing_and_ends_with_its_last_child(keeper: Keeper) -> None:
    folder, agent = a_sandbox(keeper), keeper.connect()
    pid = agent.ask({"op": "hello"})["pid"]
    reader, writer = os.pipe()
    agent.ask(a_spawn(folder, "read line <&7", fds=[7]), [reader])

    agent.ask({"op": "retire"})
    again = agent.ask({"op": "retire"})
    refused = agent.ask(a_spawn(folder, "true"))
    os.close(writer)
    event = agent.receive()
    os.close(reader)
    wait_for_end(pid)

    assert again == {"id": 1}
    assert "retired" in refused["error"]
    assert event is not None
    assert event["event"] == "exited"
    assert not (keeper.folder / "keeper.sock").exists()


def test_the_next_keeper_starts_while_a_retired_ones_child_lives(keeper: Keeper) -> None:
    old = keeper.connect()
    child = old.ask(a_spawn(a_sandbox(keeper), "exec sleep 600"))["pid"]
    old.ask({"op": "retire"})

    start_in(keeper.folder)
    new = keeper.connect()
    first = new.ask({"op": "hello"})
    os.kill(child, signal.SIGKILL)
    told = old.receive()
    gone = old.receive()

    assert first["children"] == []
    assert told is not None
    assert (told["event"], told["pid"], gone) == ("exited", child, None)
    assert new.ask({"op": "hello"})["pid"] == first["pid"]
    new.ask({"op": "retire"})
    assert new.receive() is None


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"7",
        b'"hello"',
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"op": "spawn", "fds": 5}',
        b'{"op": "spawn", "fds": [1, 2, 3]}',
        b'{"op": "spawn"}',
        b'{"op": ["hello"]}',
        b'{"op": "hello", "fds": {"a": 1}}',
        b"{}",
    ],
)
def test_no_message_ends_the_keeper(keeper: Keeper, body: bytes) -> None:
    hostile, agent = keeper.connect(), keeper.connect()

    hostile.send(body)
    answer = hostile.receive()

    assert answer is None or "error" in answer or answer["children"] == []
    assert agent.ask({"op": "hello"})["children"] == []


def test_a_message_that_is_too_long_or_carries_too_much_ends_its_connection(keeper: Keeper) -> None:
    long, laden, agent = keeper.connect(), keeper.connect(), keeper.connect()

    long.socket.sendall(b"\xff" * 8)
    laden.send(b'{"op": "hello"}', [0] * 200)

    assert (long.receive(), laden.receive()) == (None, None)
    assert agent.ask({"op": "hello"})["children"] == []


def test_an_agent_that_reads_nothing_is_let_go_and_hinders_nobody(keeper: Keeper) -> None:
    stopped, agent = keeper.connect(), keeper.connect()
    request = json.dumps({"op": "hello", "id": "x" * 1000}).encode()

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(10_000):
            stopped.send(request)
    folder = a_sandbox(keeper)
    started = agent.ask(a_spawn(folder, "exit 0"))
    event = agent.receive()

    assert event is not None
    assert event["pid"] == started["pid"]
    while stopped.receive() is not None:
        pass


def test_what_an_agent_reads_late_is_still_whole(keeper: Keeper) -> None:
    slow = keeper.connect()
    count = 2_000

    for _ in range(count):
        slow.send(json.dumps({"op": "hello", "id": "x" * 400}).encode())

    for _ in range(count):
        answer = slow.receive()
        assert answer is not None
        assert answer["id"] == "x" * 400
