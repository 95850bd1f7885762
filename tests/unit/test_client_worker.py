"""The thread that runs coroutines for blocking callers."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from typing import Any

import pytest

from roost.client.worker import Worker


def test_an_interrupt_closes_a_generator_that_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. the caller waits for an item; 2. Ctrl-C; 3. it asks to close; 4. the step that was cancelled ends only now."""
    story: list[str] = []
    waiting, asked_to_close = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        try:
            yield 1
            waiting.set()
            await asyncio.Event().wait()
        finally:
            await asked_to_close.wait()
            story.append("closed")

    async def set_when_begun() -> None:
        for _ in range(3):  # the close that was asked for before this has begun by then
            await asyncio.sleep(0)
        asked_to_close.set()

    worker, result, calls = Worker(), Future.result, 0

    def wait(self: Any, timeout: float | None = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            result(worker.submit(waiting.wait()), 10)
            raise KeyboardInterrupt
        worker.submit(set_when_begun())
        return result(self, timeout)

    try:
        given = worker.iterate(items())
        assert next(given) == 1
        monkeypatch.setattr(Future, "result", wait)
        with pytest.raises(KeyboardInterrupt):
            next(given)
        monkeypatch.undo()
        assert story == ["closed"]
    finally:
        worker.stop()


def test_an_interrupt_right_after_the_beginning_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async def going_on() -> int:
        return sum(not task.cancelling() for task in asyncio.all_tasks() - {asyncio.current_task()})

    worker = Worker()
    schedule = worker.loop.call_soon_threadsafe

    def interrupted(*arguments: Any, **more: Any) -> Any:
        schedule(*arguments, **more)
        monkeypatch.undo()
        raise KeyboardInterrupt

    try:
        monkeypatch.setattr(worker.loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.call(wait_for_ever())
        assert worker.call(going_on()) == 0
    finally:
        worker.stop()
