"""The tasks of one owner."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from roost.wire.errors import Conflict

log = structlog.get_logger(__name__)


class Tasks:
    """Tasks that end with their owner, and whose failures are logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def aclose(self) -> None:
        """Cancel those that have not ended, and wait for them."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Do work until it ends, or its owner does."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Conflict):  # somebody was quicker, as those who wait for it are told
            log.info("task.overtaken", task=task.get_name(), reason=error.message)
        else:
            log.error("task.failed", task=task.get_name(), error=repr(error))
