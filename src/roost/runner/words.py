"""A worker's side of its conversation with the runner: a u32 big-endian length and a JSON object, both ways."""

from __future__ import annotations

import os
import select
from _thread import RLock

from .codec import from_json, to_ascii_json
from .protocol import LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Words:
    """What the runner says, and what it is told."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.sending = RLock()
        self.heard = 0
        self.said = 0
        self._inbox = bytearray()

    def have_begun(self) -> bool:
        """Whether a part of the next word is here already."""
        return len(self._inbox) > 0

    def have_come(self) -> bool:
        """Whether there is something to receive now."""
        return self.have_begun() or bool(select.select([self.descriptor], [], [], 0)[0])

    def receive(self) -> dict[str, Any] | None:
        """The next word, waited for; None when the runner has closed the conversation."""
        while True:
            if len(self._inbox) >= LENGTH.size:
                end = LENGTH.size + LENGTH.unpack_from(self._inbox)[0]
                if len(self._inbox) >= end:
                    word: dict[str, Any] = from_json(bytes(self._inbox[LENGTH.size : end]))
                    del self._inbox[:end]
                    return word
            data = os.read(self.descriptor, 65_536)
            if not data:
                return None
            self.heard += len(data)
            self._inbox += data

    def send(self, *words: dict[str, Any]) -> None:
        encoded = [to_ascii_json(word) for word in words]
        data = b"".join(LENGTH.pack(len(word)) + word for word in encoded)
        with self.sending:
            write_all(self.descriptor, data)
            self.said += len(data)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write to the end, also where somebody has made the descriptor non-blocking."""
    view = memoryview(data)
    while len(view):
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
