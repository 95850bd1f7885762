"""The runner's side of the connection to the agent: frames kept until acknowledged, the newest connection wins."""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found]  # C: the package around it takes as long as we do
from _socket import socket

from .codec import from_json
from .poller import READ, WRITE, Poller
from .protocol import (
    ABILITIES,
    MAX_COMMAND,
    MAX_PAYLOAD,
    MAX_UNACKNOWLEDGED,
    VERSION,
    Decoder,
    Frame,
    Kind,
    ProtocolError,
    encode,
    encode_json,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# Room for one result, for what is left in both pipes, and for what a round takes in: whoever saw room may add these.
_HIGH = MAX_UNACKNOWLEDGED - MAX_PAYLOAD - (768 << 10)
_MAX_CONNECTIONS = 8
_AT_ONCE = 64


class Link:
    """Numbers and keeps frames, and sends them to whichever agent is there."""

    def __init__(
        self,
        listener: socket,
        selector: Poller,
        on_command: Callable[[Frame, dict[str, Any]], None],
        highest_run: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._on_command = on_command
        self._highest_run = highest_run
        self._last = 0
        self._kept: deque[bytes] = deque()
        self._held = 0
        self._generation = -1
        self._current: _Connection | None = None
        self._connections: list[_Connection] = []
        listener.setblocking(False)
        selector.register(listener, READ, self._accept)

    @property
    def has_room(self) -> bool:
        """Whether the runner may go on reading what the kernel says."""
        return self._held < _HIGH

    def emit(self, kind: int, run: int, payload: bytes) -> None:
        """Keep one numbered frame and queue it for the agent; `flush` sends."""
        frame = encode(kind, self._last + 1, run, payload)
        self._last += 1
        self._kept.append(frame)
        self._held += len(frame)
        if self._current is not None:
            self._current.outbox.append(frame)

    @property
    def peer(self) -> object:
        """Whoever is connected now; for `answer`."""
        return self._current

    def answer(self, peer: object, kind: int, payload: bytes) -> None:
        """Queue one frame that is not numbered, if this peer is still the one; it is not kept for another."""
        if self._current is not None and self._current is peer:
            self._current.outbox.append(encode(kind, 0, 0, payload))

    def flush(self) -> None:
        """Send what the socket takes now; the rest goes when it has room."""
        connection = self._current
        if connection is None or not connection.outbox:
            return
        try:
            connection.send()
        except OSError:
            self._drop(connection)
            return
        writing = bool(connection.outbox)
        if writing != connection.writing:
            connection.writing = writing
            events = READ | (WRITE if writing else 0)
            self._selector.modify(connection.socket, events, connection.on_ready)

    def _accept(self, _events: int) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        accepted = socket(fileno=descriptor)
        accepted.setblocking(False)
        connection = _Connection(accepted)
        connection.on_ready = lambda events: self._on_ready(connection, events)
        self._connections.append(connection)
        self._selector.register(accepted, READ, connection.on_ready)
        waiting = [other for other in self._connections if other is not self._current]
        if len(waiting) > _MAX_CONNECTIONS:
            self._drop(waiting[0])

    def _on_ready(self, connection: _Connection, events: int) -> None:
        # Writing needs nothing here: the loop flushes after every round.
        if connection.closed or not events & READ:
            return
        try:
            data = connection.socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        try:
            for frame in connection.decoder.feed(data):
                self._on_frame(connection, frame)
                if connection.closed:
                    return
        except (ProtocolError, ValueError, KeyError, TypeError, RecursionError):
            self._drop(connection)

    def _on_frame(self, connection: _Connection, frame: Frame) -> None:
        message = from_json(frame.payload)
        if not isinstance(message, dict):
            raise ProtocolError("a payload that is no object")
        if frame.kind == Kind.RESUME:
            self._resume(connection, int(message["after"]), int(message["generation"]))
        elif connection is not self._current:
            raise ProtocolError("the first frame is no resume")
        elif frame.kind == Kind.ACK:
            self._forget(int(message["frame"]))
        else:
            self._on_command(frame, message)

    def _resume(self, connection: _Connection, after: int, generation: int) -> None:
        if generation < self._generation:
            self._drop(connection)
            return
        self._generation = generation
        self._forget(after)
        old, self._current = self._current, connection
        if old is not None and old is not connection:
            self._drop(old)
        hello = {
            "protocol": VERSION,
            "pid": os.getpid(),
            "last": self._last,
            "seen": self._highest_run(),
            "generation": generation,
            "abilities": list(ABILITIES),
        }
        connection.outbox.append(encode_json(Kind.HELLO, 0, 0, hello))
        connection.outbox.extend(self._kept)

    def _forget(self, frame: int) -> None:
        # The frames are dense, so the first one kept has the number last - len + 1.
        for _ in range(min(len(self._kept), frame - (self._last - len(self._kept)))):
            self._held -= len(self._kept.popleft())

    def _drop(self, connection: _Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        if connection is self._current:
            self._current = None
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()


class _Connection:
    """One accepted socket, and what has not been sent on it yet."""

    def __init__(self, accepted: socket) -> None:
        self.socket = accepted
        self.decoder = Decoder(MAX_COMMAND)
        self.outbox: deque[bytes] = deque()
        self.sent_of_first = 0
        self.writing = False
        self.closed = False
        self.on_ready: Callable[[int], None] = lambda _events: None

    def send(self) -> None:
        outbox = self.outbox
        while outbox:
            first = memoryview(outbox[0])[self.sent_of_first :]
            rest = [outbox[index] for index in range(1, min(len(outbox), _AT_ONCE))]
            try:
                sent = self.sent_of_first + self.socket.sendmsg([first, *rest])
            except BlockingIOError:
                return
            while outbox and sent >= len(outbox[0]):
                sent -= len(outbox.popleft())
            self.sent_of_first = sent
