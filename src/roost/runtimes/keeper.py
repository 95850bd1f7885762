"""The agent's side of the keeper's socket (docs/protocol/runner.md §5)."""

import array
import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from roost.wire.errors import AgentError, KeeperGone

START_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0

OnExit = Callable[[dict[str, Any]], None]


class KeeperClient:
    """One connection to the keeper of a data folder; starts the keeper if none answers."""

    def __init__(self, run_dir: Path, runner: Path, log_file: Path, on_exit: OnExit) -> None:
        self._run_dir = run_dir
        self._runner = runner
        self._log_file = log_file
        self._on_exit = on_exit
        self._socket: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._sending = asyncio.Lock()
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Connect, starting the keeper first where none listens.

        Returns when the keeper answers: it has done by then whatever an agent before us had asked of it.
        """
        connection = self._connect()
        if connection is None:
            await asyncio.to_thread(self._start_keeper)
            connection = self._connect()
        if connection is None:
            raise AgentError(f"the keeper did not start; see {self._log_file}")
        self._socket = connection
        self._reader = asyncio.create_task(self._read(connection), name="keeper-reader")
        await self._ask({"op": "hello"}, [])

    async def aclose(self) -> None:
        """Close the connection; the keeper and its sandboxes go on."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def is_connected(self) -> bool:
        """Whether the keeper would tell of an end now."""
        if self._socket is None or self._reader is None or self._reader.done():
            return False
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    async def hello(self) -> dict[str, Any]:
        """The keeper's version, pid and children."""
        return await self._call({"op": "hello"}, [])

    async def retire(self) -> None:
        """Let the keeper end; with its last child, so at once where it has none, and then this waits for it."""
        answer = await self.hello()
        await self._call({"op": "retire"}, [])
        if not answer["children"] and self._reader is not None:
            await asyncio.wait([self._reader], timeout=ANSWER_TIMEOUT_S)

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        fds: dict[int, int],
        uid: int | None,
        cgroups: Sequence[str],
        folder: Path,
        rlimits: dict[str, int],
    ) -> tuple[int, int]:
        """Start a program as the keeper's child; returns its pid and start time.

        Args:
            argv: program and arguments; it gets an empty environment.
            fds: the number that a descriptor gets in the child → our descriptor.
            uid: uid and gid to change to; None leaves them.
            cgroups: `cgroup.procs` files that it joins before it runs.
            folder: the sandbox's folder.
            rlimits: `RLIMIT_…` name → value.

        Raises:
            KeeperGone: it died before it answered. Its child, if there is one, is in `sandbox.json` or never runs.
            AgentError: it could not do it, or did not answer in time.
        """
        request = {
            "op": "spawn",
            "argv": list(argv),
            "fds": list(fds),
            "uid": uid,
            "gid": uid,
            "cgroups": list(cgroups),
            "dir": str(folder),
            "rlimits": rlimits,
        }
        answer = await self._call(request, list(fds.values()))
        return int(answer["pid"]), int(answer["start_time"])

    async def _call(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        async with self._opening:
            if not self.is_connected:
                await self.aclose()
                await self.open()
        return await self._ask(request, descriptors)

    async def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        assert self._socket is not None
        self._last_id += 1
        request_id = self._last_id
        future = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        body = json.dumps({**request, "id": request_id}).encode()
        try:
            async with self._sending:
                await _send(self._socket, struct.pack(">I", len(body)) + body, descriptors)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer: dict[str, Any] = await future
        except OSError as error:
            # Since Python 3.11 a time that is up is one of these too.
            kind = AgentError if isinstance(error, TimeoutError) else KeeperGone
            raise kind(f"the keeper did not answer: {error!r}") from error
        finally:
            self._waiting.pop(request_id, None)
        if "error" in answer:
            raise AgentError(f"the keeper could not do it: {answer['error']}")
        return answer

    async def _read(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        # A keeper that is killed with a request unread resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while chunk := await loop.sock_recv(connection, 65536):
                buffer += chunk
                while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
                    self._dispatch(json.loads(buffer[4 : 4 + size]))
                    buffer = buffer[4 + size :]
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(KeeperGone("the keeper is gone"))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message.get("event") == "exited":
            self._on_exit(message)
            return
        future = self._waiting.pop(message.get("id", 0), None)
        if future is not None and not future.done():
            future.set_result(message)

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(self._run_dir / "keeper.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        connection.setblocking(False)
        return connection

    def _start_keeper(self) -> None:
        """The keeper's program returns once its double-forked child listens."""
        program = [
            sys.executable,
            "-I",
            str(self._runner / "keeper_main.py"),
            str(self._run_dir),
            str(self._log_file),
        ]
        subprocess.run(program, check=True, timeout=START_TIMEOUT_S, stdin=subprocess.DEVNULL, env={}, cwd="/")


async def _send(connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
    """Send one message; its descriptors travel with the first byte."""
    ancillary = []
    if descriptors:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        sent = connection.sendmsg([message], ancillary)
    except BlockingIOError as error:
        raise AgentError("the keeper is overloaded") from error
    # Not even nothing is sent to a keeper that has heard everything: it may have answered, and ended.
    if sent < len(message):
        await asyncio.get_running_loop().sock_sendall(connection, message[sent:])
