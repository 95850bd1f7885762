"""The frames between agent and runner (docs/protocol/runner.md, section 2). Used by both sides."""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

VERSION = 1
MAX_PAYLOAD = 1 << 20
MAX_OUTPUT = 65_536
MAX_UNACKNOWLEDGED = 4 << 20

HEADER = struct.Struct(">IBQI")
_LENGTH = struct.Struct(">I")
_AFTER_LENGTH = HEADER.size - _LENGTH.size


class Kind(IntEnum):
    """What a frame says; the agent's kinds are below 64, the runner's from 64 on."""

    RESUME = 1
    ACK = 2
    START = 3
    INPUT = 4
    INTERRUPT = 5
    STOP = 6

    HELLO = 64
    STDOUT = 65
    STDERR = 66
    STARTED = 67
    RESULT = 68
    DISPLAY = 69
    ERROR = 70
    PROMPT = 71
    END = 72


class Frame(NamedTuple):
    """One decoded frame. `kind` is a plain int, since a peer may send one that we do not know."""

    kind: int
    frame: int
    run: int
    payload: bytes


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow; the connection is of no more use."""


def encode(kind: int, frame: int, run: int, payload: bytes) -> bytes:
    """One frame as bytes.

    Raises:
        ProtocolError: the payload is longer than `MAX_PAYLOAD`.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a payload of {len(payload)} bytes is longer than {MAX_PAYLOAD}")
    return HEADER.pack(_AFTER_LENGTH + len(payload), kind, frame, run) + payload


def encode_json(kind: int, frame: int, run: int, message: Any) -> bytes:
    """One frame with a JSON payload."""
    return encode(kind, frame, run, to_json(message))


def to_json(message: Any) -> bytes:
    """Compact UTF-8. What UTF-8 cannot carry (lone surrogates) becomes a question mark."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Decoder:
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes.

        Raises:
            ProtocolError: a length is out of range. The decoder is of no more use then.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            # Checked before the rest has arrived, so that nobody makes us keep more than one frame.
            if not _AFTER_LENGTH <= length <= _AFTER_LENGTH + MAX_PAYLOAD:
                raise ProtocolError(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            _, kind, frame, run = HEADER.unpack_from(buffer, start)
            frames.append(Frame(kind, frame, run, bytes(buffer[start + HEADER.size : end])))
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
