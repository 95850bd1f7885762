"""A runner alone, spoken to frame by frame (docs/protocol/runner.md §2)."""

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

import roost.runner
from roost.agent.interpreters import find_interpreters
from roost.runner.protocol import Decoder, Frame, Kind, encode_json
from roost.runtimes.base import settings_file

PROGRAM = Path(roost.runner.__file__).with_name("__main__.py")
TIMEOUT_S = 20


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

    def batch(
        self, *, clean: str | None = None, build: str | None = None, exec: str | None = None, run: int = 1
    ) -> None:
        stages = [clean, build, exec]
        self.send(Kind.START, {"code": "", "mode": "batch", "echo": True, "stages": stages}, run)

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
        self.home = folder / "home"
        self.process = process
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        self.connections.append(Connection(self.folder / "socket"))
        return self.connections[-1]


@contextlib.contextmanager
def a_runner(**more: Any) -> Iterator[Runner]:
    """Start one with these settings beyond the usual ones."""
    folder = Path(tempfile.mkdtemp(prefix="roost-test-", dir="/tmp"))
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        home = folder / "home"
        home.mkdir()
        settings = {"socket_fd": listener.fileno(), "ready_fd": writer, "home": str(home), "environ": {"A": "b"}}
        with settings_file(settings | more) as descriptor:
            process = subprocess.Popen(
                [find_interpreters()[0].path, "-I", "-S", str(PROGRAM), str(descriptor)],
                pass_fds=(listener.fileno(), writer, descriptor),
                env={},
            )
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.close(reader)
    runner = Runner(folder, process)
    try:
        yield runner
    finally:
        for connection in runner.connections:
            connection.socket.close()
        last = runner.connect()
        with contextlib.suppress(BrokenPipeError):
            last.resume(generation=1 << 40)
            last.send(Kind.STOP, {})
            # Closed with something unread it would be reset, and the word lost.
            while last.receive() is not None:
                pass
        last.socket.close()
        assert process.wait(TIMEOUT_S) == 0
        shutil.rmtree(folder)


def text(frames: list[Frame], kind: int = Kind.STDOUT) -> str:
    return b"".join(frame.payload for frame in frames if frame.kind == kind).decode()


def end(frames: list[Frame]) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(frames[-1].payload)
    return message
