"""The agent's connection to one runner (docs/protocol/runner.md §2)."""

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from roost.runner.protocol import Decoder, Frame, ProtocolError, encode

OnFrames = Callable[[Sequence[Frame]], None]
OnLost = Callable[[Exception | None], None]


class RunnerLink(asyncio.Protocol):
    """Frames in, frames out. It decides nothing; what a frame means is the sandbox's business."""

    def __init__(self, on_frames: OnFrames, on_lost: OnLost) -> None:
        self._decoder = Decoder()
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, path: Path, on_frames: OnFrames, on_lost: OnLost) -> "RunnerLink":
        """Connect to a runner that listens.

        Raises:
            OSError: nobody listens there.
        """
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(on_frames, on_lost), str(path))
        return link

    def peer(self) -> tuple[int, int]:
        """Pid and uid of whoever called `listen()`, in our own namespaces."""
        assert self._transport is not None
        connection: socket.socket = self._transport.get_extra_info("socket")
        pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid

    def send(self, kind: int, run: int, payload: bytes) -> None:
        """Send one frame; on a lost connection nothing happens, the next connection sends it again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, 0, run, payload))

    def pause(self) -> None:
        """Read no more until `resume`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except ProtocolError as error:
            self._fail(error)
            return
        if frames:
            self._on_frames(frames)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(exc)

    def _fail(self, error: Exception) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._on_lost(error)


def payload_of(message: dict[str, Any]) -> bytes:
    """A message as it goes over the link; at most `MAX_COMMAND` bytes fit."""
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:  # Python's strings may hold surrogates, and so may its JSON
        return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
