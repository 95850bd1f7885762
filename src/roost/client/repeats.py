"""What is sent again to servers of ours, where its connection breaks."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import aiohttp

from roost.client.active import current_session
from roost.client.exceptions import BackendClientError
from roost.client.utils import ProgressBar

T = TypeVar("T")

POLL_AGAIN_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""The pauses after which what may be sent again is, when its connection broke."""


async def again(
    work: Callable[[ProgressBar], Awaitable[T]], bar: ProgressBar, *, if_files: Iterable[tuple[Path, str]] = ()
) -> T:
    """Do what servers of ours may be asked twice, again where its connection breaks.

    Args:
        if_files: what it reads; a pipe or a device gives nothing twice.
    """
    may_repeat = current_session().is_roost and all(path.is_file() for path, _ in if_files)
    for pause_s in POLL_AGAIN_S if may_repeat else ():
        attempt = _Attempt(bar)
        try:
            return await work(attempt)
        except (aiohttp.ClientError, BackendClientError) as error:
            if not is_broken(error):
                raise
        attempt.take_back()
        await asyncio.sleep(pause_s)
    return await work(bar)


def is_broken(error: Exception) -> bool:
    """Whether a call failed because of its connection."""
    return isinstance(error, aiohttp.ClientError) or isinstance(error.__cause__, aiohttp.ClientConnectionError)


class _Attempt:
    """What one attempt tells a bar of, to be taken back."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._told = 0

    def update(self, n: int) -> None:
        self._told += n
        self._bar.update(n)

    def take_back(self) -> None:
        self._bar.update(-self._told)
