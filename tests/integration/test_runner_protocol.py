"""The runner alone, spoken to frame by frame (docs/protocol/runner.md §2)."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import roost.runner
from roost.agent.interpreters import find_interpreters
from roost.runner.protocol import MAX_PAYLOAD, MAX_UNACKNOWLEDGED, Decoder, Frame, Kind, encode, encode_json
from roost.runtimes.base import settings_file

PROGRAM = Path(roost.runner.__file__).with_name("__main__.py")
TIMEOUT_S = 20
# The runner leaves room for one result and what is left in both pipes.
FULL = MAX_UNACKNOWLEDGED - MAX_PAYLOAD - (512 << 10)


class Connection:
    """An agent's connection to a runner."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def send(self, kind: int, message: Any, run: int = 0) -> None:
        self.socket.sendall(encode_json(kind, 0, run, message))

    def resume(self, after: int = 0, generation: int = 1) -> dict[str, Any]:
        self.send(Kind.RESUME, {"after": after, "generation": generation})
        frame = self.receive()
        assert frame is not None
        assert frame.kind == Kind.HELLO
        hello: dict[str, Any] = json.loads(frame.payload)
        return hello

    def start(self, code: str, run: int = 1) -> None:
        self.send(Kind.START, {"code": code, "mode": "query", "echo": True}, run)

    def receive(self) -> Frame | None:
        """The next frame, None after the end of the connection."""
        while not self._frames:
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    def until(self, done: Callable[[Frame], bool]) -> list[Frame]:
        frames: list[Frame] = []
        while not frames or not done(frames[-1]):
            frame = self.receive()
            assert frame is not None
            frames.append(frame)
        return frames

    def until_end(self) -> list[Frame]:
        return self.until(lambda frame: frame.kind == Kind.END)


class Runner:
    """A runner that nothing isolates, and every connection to it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        self.connections.append(Connection(self.folder / "socket"))
        return self.connections[-1]


@pytest.fixture
def runner() -> Iterator[Runner]:
    folder = Path(tempfile.mkdtemp(prefix="roost-test-", dir="/tmp"))
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        settings = {"socket_fd": listener.fileno(), "ready_fd": writer, "home": str(folder), "environ": {"A": "b"}}
        with settings_file(settings) as descriptor:
            process = subprocess.Popen(
                [find_interpreters()[0].path, "-I", "-S", str(PROGRAM), str(descriptor)],
                pass_fds=(listener.fileno(), writer, descriptor),
                env={},
            )
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.close(reader)
    runner = Runner(folder, process)
    yield runner
    for connection in runner.connections:
        connection.socket.close()
    last = runner.connect()
    with contextlib.suppress(BrokenPipeError):
        last.resume(generation=1 << 40)
        last.send(Kind.STOP, {})
    last.socket.close()
    assert process.wait(TIMEOUT_S) == 0
    shutil.rmtree(folder)


def text(frames: list[Frame], kind: int = Kind.STDOUT) -> str:
    return b"".join(frame.payload for frame in frames if frame.kind == kind).decode()


def end(frames: list[Frame]) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(frames[-1].payload)
    return message


def test_a_run_is_told_in_dense_frames(runner: Runner) -> None:
    agent = runner.connect()

    hello = agent.resume()
    agent.start("import os; os.write(1, os.environ['A'].encode()); 6 * 7")
    frames = agent.until_end()

    assert (hello["protocol"], hello["last"], hello["seen"], hello["generation"]) == (1, 0, 0, 1)
    assert [frame.kind for frame in frames] == [Kind.STARTED, Kind.STDOUT, Kind.RESULT, Kind.END]
    assert [frame.frame for frame in frames] == [1, 2, 3, 4]
    assert {frame.run for frame in frames} == {1}
    assert (text(frames), end(frames)["status"]) == ("b", "ok")


def test_a_number_that_was_seen_is_not_run_again(runner: Runner) -> None:
    agent = runner.connect()
    agent.resume()

    agent.start("print(1)")
    agent.start("print(1)")
    agent.start("print(2)", run=2)
    frames = agent.until(lambda frame: (frame.kind, frame.run) == (Kind.END, 2))

    assert text(frames) == "1\n2\n"


def test_what_was_acknowledged_is_forgotten_and_the_rest_comes_again(runner: Runner) -> None:
    first = runner.connect()
    first.resume()
    first.start("print(1)\nimport sys\nprint(2, file=sys.stderr)\nprint(3)")
    frames = first.until_end()

    first.send(Kind.ACK, {"frame": 2})
    second = runner.connect()
    hello = second.resume(after=1)
    again = second.until_end()
    third = runner.connect()
    third.resume(after=4)
    rest = third.until_end()

    assert (hello["last"], hello["seen"]) == (len(frames), 1)
    # The acknowledgement may come behind the second connection's resume.
    assert again in (frames[1:], frames[2:])
    assert rest == frames[4:]
    assert first.receive() is None


def test_the_newest_connection_wins_and_an_older_generation_does_not(runner: Runner) -> None:
    first, second, old = runner.connect(), runner.connect(), runner.connect()
    first.resume(generation=2)
    second.resume(generation=3)

    old.send(Kind.RESUME, {"after": 0, "generation": 2})

    assert first.receive() is None
    assert old.receive() is None
    second.start("print('served')")
    assert text(second.until_end()) == "served\n"


@pytest.mark.parametrize(
    "first",
    [
        encode_json(Kind.START, 0, 1, {"code": "print(1)"}),
        encode(Kind.RESUME, 0, 0, b"{"),
        encode(Kind.RESUME, 0, 0, b"[]"),
        encode(Kind.RESUME, 0, 0, b"[" * 100_000),
        encode(Kind.RESUME, 0, 0, b"{}"),
        encode(Kind.RESUME, 0, 0, b'{"after": "x", "generation": 1}'),
        encode(200, 0, 0, b"{}"),
        b"\xff" * 17,
        bytes(17),
    ],
    ids=["no resume", "no json", "no object", "deep", "no fields", "wrong field", "unknown", "too long", "too short"],
)
def test_a_connection_that_breaks_the_protocol_is_closed_and_hinders_nobody(runner: Runner, first: bytes) -> None:
    agent, hostile = runner.connect(), runner.connect()
    agent.resume()

    hostile.socket.sendall(first)

    assert hostile.receive() is None
    agent.start("print('served')")
    assert text(agent.until_end()) == "served\n"


def test_a_full_buffer_blocks_the_kernel_and_a_reconnection_loses_nothing(runner: Runner) -> None:
    """1. a run prints 12 MiB, nothing is acknowledged; 2. another agent comes; 3. that one acknowledges."""
    lines = [f"{i:0127}\n" for i in range(12 << 13)]
    first = runner.connect()
    first.resume()
    first.start(f"for i in range({len(lines)}): print(f'{{i:0127}}')")
    held = 0
    while held < FULL:
        frame = first.receive()
        assert frame is not None
        held += len(frame.payload) + 17

    second = runner.connect()
    hello = second.resume()
    kept = second.until(lambda frame: frame.frame == hello["last"])
    third = runner.connect()
    still = third.resume()["last"]
    again = third.until(lambda frame: frame.frame == still)
    frames = list(again)
    while frames[-1].kind != Kind.END:
        third.send(Kind.ACK, {"frame": frames[-1].frame})
        frames += third.until(lambda frame: True)

    assert sum(len(frame.payload) + 17 for frame in again) <= MAX_UNACKNOWLEDGED
    assert (kept, hello["last"]) == (again, still)
    assert [frame.frame for frame in frames] == list(range(1, len(frames) + 1))
    assert text(frames) == "".join(lines)


def test_it_goes_on_without_an_agent(runner: Runner) -> None:
    first = runner.connect()
    first.resume()
    first.start("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('alone')")
    first.until(lambda frame: frame.kind == Kind.STARTED)
    first.socket.close()

    (runner.folder / "go").touch()
    second = runner.connect()
    second.resume(after=1, generation=2)

    assert text(second.until_end()) == "alone\n"
