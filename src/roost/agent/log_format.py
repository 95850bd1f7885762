"""The records of a run log: a header and a payload each, one behind the other."""

import struct
import zlib
from typing import Any, NamedTuple

import msgspec

from roost.agent.runs import EVENTS, TEXT, Kind
from roost.wire.runs import Event

HEADER = struct.Struct("<IIIQQdB3x")
"""payload length, crc32 of the rest, run, seq, frame, unix time, kind"""
HEADER_START = struct.Struct("<II")
HEADER_REST = struct.Struct("<IQQdB3x")
"""the two halves of `HEADER`"""
_SUMMED_FROM = HEADER_START.size


class Record(NamedTuple):
    """One entry of the log."""

    run: int
    seq: int
    """Dense from 1 in its run; 0 for records that are no events."""
    frame: int
    """The runner's counter, 0 for the agent's own records."""
    at: float
    kind: Kind
    payload: bytes

    def encode(self) -> tuple[bytes, bytes]:
        """Header and payload as they stand in the log, one behind the other."""
        run, seq, frame, at, kind, payload = self
        rest = HEADER_REST.pack(run, seq, frame, at, kind)
        return HEADER_START.pack(len(payload), zlib.crc32(payload, zlib.crc32(rest))) + rest, payload

    def event(self) -> Event:
        """The record as readers see it."""
        kind = EVENTS[self.kind]
        if self.kind in TEXT:
            return Event(self.seq, kind, self.payload.decode("utf-8", "replace"))
        return Event(self.seq, kind, msgspec.json.decode(self.payload))


def decode(buffer: bytes, offset: int = 0) -> tuple[Record, int] | None:
    """The record at an offset and the offset behind it, or None where there is no whole and sound one."""
    if len(buffer) < offset + HEADER.size:
        return None
    length: int = HEADER_START.unpack_from(buffer, offset)[0]
    start, end = offset + HEADER.size, offset + HEADER.size + length
    if len(buffer) < end:
        return None
    record = decode_parts(buffer[offset:start], buffer[start:end])
    return (record, end) if record is not None else None


def decode_parts(header: bytes, payload: bytes) -> Record | None:
    """The record of a header and a payload, or None where they do not belong together."""
    length, crc, run, seq, frame, at, kind = HEADER.unpack(header)
    if length != len(payload) or zlib.crc32(payload, zlib.crc32(header[_SUMMED_FROM:])) != crc:
        return None
    try:
        return Record(run, seq, frame, at, Kind(kind), payload)
    except ValueError:
        return None


def encode_json(value: Any) -> bytes:
    """The payload of every record that is not text."""
    return msgspec.json.encode(value)
