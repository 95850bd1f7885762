"""How much of the server's memory the bodies of one caller's requests may take at a time."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from aiohttp import web

MAX_BODY = 64 << 20
MOST = 4 * MAX_BODY
"""Bytes of all the larger bodies of one caller that are being read or worked on; more wait for those before them."""
SMALL = 1 << 20
"""Bytes of a body that waits for no others."""


def is_large(request: web.Request) -> bool:
    """Whether its body has to wait for others."""
    return request.can_read_body and _most(request) > SMALL


def _most(request: web.Request) -> int:
    """Bytes that its body has at most; what is longer is refused."""
    return min(request.content_length if request.content_length is not None else MAX_BODY, MAX_BODY)


class Bodies:
    """What is held for each caller."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def held(self, request: web.Request, access_key: str) -> AsyncIterator[None]:
        """Read the body when there is room for it, and keep that room to the end of the block.

        Raises:
            HTTPRequestEntityTooLarge, RequestPayloadError: as `Request.read`.
        """
        size = _most(request)
        async with self._changed:
            await self._changed.wait_for(lambda: self._held[access_key] + size <= MOST)
            self._held[access_key] += size
        try:
            length = len(await request.read())
            await self._let_go(access_key, size - length)
            size = length
            yield
        finally:
            await self._let_go(access_key, size)

    async def _let_go(self, access_key: str, size: int) -> None:
        self._held[access_key] -= size
        if not self._held[access_key]:
            del self._held[access_key]
        if size:
            async with self._changed:
                self._changed.notify_all()
