"""How much of the server's memory one caller may take at a time, whatever for.

Request bodies, forms, messages of WebSockets that are not whole yet, lines that wait for prompts, and answers that
nobody reads: what is large of them is counted together.
"""

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from roost.wire.errors import TooMuchHeld

MAX_BODY = 64 << 20
MOST = 4 * MAX_BODY
"""Bytes that all requests and connections of one caller may hold together."""
FREE = 1 << 18
"""Bytes that each of them may hold without being counted, so that what is small waits for nothing."""
PAGE = 1 << 16
"""Bytes of a run's log that are sent at a time, unless a single event has more."""
WAIT_S = 60.0
"""How long somebody waits for room."""
NO_ROOM = contextlib.nullcontext()
"""In the place of a room, for what is not counted."""


def bytes_of_body(request: web.Request) -> int:
    """What its body has at most; what is longer is refused."""
    return min(request.content_length if request.content_length is not None else MAX_BODY, MAX_BODY)


def is_large(request: web.Request) -> bool:
    """Whether its body is counted."""
    return request.can_read_body and bytes_of_body(request) > FREE


def is_large_answer(response: web.StreamResponse) -> bool:
    """Whether an answer that is made as a whole is counted."""
    return bytes_of_answer(response.content_length or 0) > FREE


def bytes_of_answer(size: int) -> int:
    """What an answer of so many bytes holds while it is sent: what its reader does not take is copied once more."""
    return 2 * size


class Memory:
    """What is held for each caller."""

    def __init__(self) -> None:
        self._accounts: weakref.WeakValueDictionary[str, _Account] = weakref.WeakValueDictionary()

    def room(self, access_key: str) -> "Room":
        """Room for one request or connection of a caller; nothing yet."""
        account = self._accounts.get(access_key)
        if account is None:
            account = self._accounts[access_key] = _Account()
        return Room(account)


class Room:
    """What one request or connection holds. It is given back at the end of a `with` block."""

    def __init__(self, account: "_Account") -> None:
        self._account = account
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.take(0)

    def take(self, size: int, then: Callable[[], None] | None = None) -> bool:
        """Hold `size` bytes instead of those that it holds now, if there is room for them.

        Args:
            size: in bytes.
            then: is called as soon as they are held, where they are not at once. Another call of `take` forgets it.
        """
        self._account.waiting.pop(self, None)
        counted = size if size > FREE else 0
        if self._account.has_room(counted - self._size):
            self._resize(counted)
            return True
        if then is not None:
            self._account.waiting[self] = (counted, then)
        return False

    async def wait(self, size: int) -> None:
        """Hold `size` bytes as soon as there is room for them.

        Raises:
            TooMuchHeld: there was none for `WAIT_S`.
        """
        held = asyncio.Event()
        if self.take(size, held.set):
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await held.wait()
        except TimeoutError:
            raise TooMuchHeld from None

    def _resize(self, counted: int) -> None:
        grown, self._size = counted - self._size, counted
        self._account.held += grown
        if grown < 0:
            for room, (wanted, then) in list(self._account.waiting.items()):
                if self._account.has_room(wanted - room._size):
                    del self._account.waiting[room]
                    room._resize(wanted)
                    then()


class _Account:
    """Bytes that one caller holds, and who waits for more of them, the first one first."""

    def __init__(self) -> None:
        self.held = 0
        self.waiting: dict[Room, tuple[int, Callable[[], None]]] = {}

    def has_room(self, grown: int) -> bool:
        return grown <= 0 or self.held + grown <= MOST
