"""The frames between agent and runner (docs/protocol/runner.md, section 2). Used by both sides."""

from __future__ import annotations

import struct

from .codec import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
MAX_PAYLOAD = 1 << 20
"""Of a frame from the runner."""
MAX_COMMAND = 20 << 20
"""Of a frame from the agent: code of 16 MiB, escaped."""
MAX_OUTPUT = 65_536
MAX_UNACKNOWLEDGED = 4 << 20
MAX_COMPLETIONS = 500
MAX_COMPLETION = 256
STAGES = ("clean", "build", "exec")
ABILITIES = ("batch", "complete", "kill", "long-commands")
"""What a runner says in its hello that it can do beyond the first runners of this version."""

HEADER = struct.Struct(">IBQI")
LENGTH = struct.Struct(">I")
_AFTER_LENGTH = HEADER.size - LENGTH.size


class Kind:
    """What a frame says; the agent's kinds are below 64, the runner's from 64 on."""

    RESUME = 1
    ACK = 2
    START = 3
    INPUT = 4
    INTERRUPT = 5
    STOP = 6
    COMPLETE = 7
    KILL = 8

    HELLO = 64
    STDOUT = 65
    STDERR = 66
    STARTED = 67
    RESULT = 68
    DISPLAY = 69
    ERROR = 70
    PROMPT = 71
    END = 72
    COMPLETIONS = 74
    STAGE = 75


def _limit_of(kind: int) -> int:
    return MAX_COMMAND if kind < Kind.HELLO else MAX_PAYLOAD


class Frame:
    """One decoded frame. Its kind may be one that we do not know."""

    __slots__ = ("frame", "kind", "payload", "run")

    def __init__(self, kind: int, frame: int, run: int, payload: bytes) -> None:
        self.kind = kind
        self.frame = frame
        self.run = run
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow; the connection is of no more use."""


def encode(kind: int, frame: int, run: int, payload: bytes) -> bytes:
    """One frame as bytes.

    Raises:
        ProtocolError: the payload is longer than its kind allows.
    """
    if len(payload) > _limit_of(kind):
        raise ProtocolError(f"a payload of {len(payload)} bytes is longer than {_limit_of(kind)}")
    return HEADER.pack(_AFTER_LENGTH + len(payload), kind, frame, run) + payload


def encode_json(kind: int, frame: int, run: int, message: Any) -> bytes:
    """One frame with a JSON payload."""
    return encode(kind, frame, run, to_json(message))


class Decoder:
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes.

        Raises:
            ProtocolError: a length is out of range. The decoder is of no more use then.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start, size = 0, len(buffer)
        with memoryview(buffer) as view:
            while size - start >= HEADER.size:
                length, kind, frame, run = HEADER.unpack_from(view, start)
                # Checked before the rest has arrived, so that nobody makes us keep more than one frame.
                if not _AFTER_LENGTH <= length <= _AFTER_LENGTH + self._max_payload:
                    raise ProtocolError(f"a frame of {length} bytes")
                end = start + LENGTH.size + length
                if size < end:
                    break
                frames.append(Frame(kind, frame, run, bytes(view[start + HEADER.size : end])))
                start = end
        del buffer[:start]
        return frames


def utf8_boundary(data: bytes) -> int:
    """The length of the longest prefix that does not end within a UTF-8 character.

    Bytes that can be no beginning of a character count as complete: they will not become valid by waiting.
    """
    size = len(data)
    for back in range(1, min(3, size) + 1):
        byte = data[size - back]
        if byte & 0xC0 == 0x80:
            continue
        return size - back if _length_after(byte) > back else size
    return size


def _length_after(lead: int) -> int:
    if 0xC2 <= lead <= 0xDF:
        return 2
    if 0xE0 <= lead <= 0xEF:
        return 3
    if 0xF0 <= lead <= 0xF4:
        return 4
    return 1
