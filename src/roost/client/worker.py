"""A thread with an event loop of its own, on which blocking callers run coroutines."""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

TIDY_S = 5.0
"""How long a task that was interrupted may take to undo what it began."""


class Worker(threading.Thread):
    """Runs coroutines for other threads. A daemon: one that nobody stops does not keep the interpreter alive."""

    def __init__(self) -> None:
        super().__init__(name="roost-client", daemon=True)
        self.loop = asyncio.new_event_loop()
        self.start()

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    def is_here(self) -> bool:
        """Whether the caller runs on this worker's loop."""
        return threading.get_ident() == self.ident

    def submit(
        self, coro: Coroutine[Any, Any, T], context: contextvars.Context | None = None
    ) -> "concurrent.futures.Future[T]":
        """Start a coroutine in a copy of the caller's context, or in `context`; cancelling the future cancels it.

        Whatever it raises, `SystemExit` too, is in the future and never ends the worker.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._begin(coro, future, context)
        return future

    def _begin(
        self, coro: Coroutine[Any, Any, T], future: "concurrent.futures.Future[T]", context: contextvars.Context | None
    ) -> None:
        if self.loop.is_closed() or not self.is_alive():
            coro.close()
            raise RuntimeError("this session is closed")
        future_context = context or contextvars.copy_context()

        def begin() -> None:
            if future.cancelled():
                coro.close()
                return
            task = self.loop.create_task(_settle(coro, future), context=future_context)
            task.add_done_callback(lambda _: coro.close())  # one that was cancelled before it began
            future.add_done_callback(lambda done: self._cancel(task) if done.cancelled() else None)

        self.loop.call_soon_threadsafe(begin)

    def call(self, coro: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> T:
        """Run a coroutine and wait for its end; an interrupt of the caller cancels it."""
        if self.is_here():
            coro.close()
            raise RuntimeError("a blocking call on the worker's own loop would wait for itself")
        # Made before anything is begun: wherever the interrupt comes, there is something to cancel.
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            self._begin(coro, future, context)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Pull an asynchronous generator, one item for each that the caller takes."""
        context = contextvars.copy_context()
        end, turn = object(), asyncio.Lock()
        try:
            while (item := self.call(_next(items, end, turn), context)) is not end:
                yield item
        finally:
            if not self.loop.is_closed():
                self.call(_close(items, turn), context)

    def stop(self) -> None:
        """End the loop and the thread; may be called twice."""
        if self.is_alive() and not self.loop.is_closed():
            self.call(_cancel_all())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.join()

    def _cancel(self, task: "asyncio.Task[None]") -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(task.cancel)


async def _settle(coro: Coroutine[Any, Any, T], future: "concurrent.futures.Future[T]") -> None:
    try:
        result = await coro
    except BaseException as error:  # noqa: BLE001 (the caller's thread raises it)
        if not future.cancelled():
            future.set_exception(error)
    else:
        if not future.cancelled():
            future.set_result(result)


async def _next(items: AsyncGenerator[T, None], end: Any, turn: asyncio.Lock) -> Any:
    async with turn:
        return await anext(items, end)


async def _close(items: AsyncGenerator[T, None], turn: asyncio.Lock) -> None:
    """Close a generator, once the step of it that an interrupt cancelled has come to its end."""
    try:
        async with asyncio.timeout(TIDY_S), turn:
            await items.aclose()
    except TimeoutError:
        raise TimeoutError("what was read from the server could not be closed in time") from None


async def _cancel_all() -> None:
    """End every task; those that are being cancelled already are given time to tidy up."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        if not task.cancelling():
            task.cancel()
    if others:
        _, busy = await asyncio.wait(others, timeout=TIDY_S)
        for task in busy:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
