"""Names of asyncio functions that the original client had before asyncio did."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ("all_tasks", "asyncio_run", "asyncio_run_forever", "current_loop")

T = TypeVar("T")

current_loop = asyncio.get_running_loop
all_tasks = asyncio.all_tasks
asyncio_run = asyncio.run


def asyncio_run_forever(
    setup_coro: Coroutine[Any, Any, Any],
    shutdown_coro: Callable[[], Coroutine[Any, Any, Any]] | Coroutine[Any, Any, Any],
    *,
    stop_signals: Any = (),
) -> None:
    """Run `setup_coro`, wait for one of the signals, run `shutdown_coro`."""

    async def whole_life() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in stop_signals:
            loop.add_signal_handler(number, stop.set)
        await setup_coro
        await stop.wait()
        await (shutdown_coro() if callable(shutdown_coro) else shutdown_coro)

    asyncio.run(whole_life())
