"""As much of `selectors` as we need, without what it imports."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Protocol

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


READ = 1
WRITE = 4


class Poller:
    """Descriptors, and what to call with the events that came."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wanted: dict[int, tuple[int, Callable[[int], object]]] = {}

    def register(self, file: int | HasFileno, events: int, callback: Callable[[int], object]) -> None:
        number = _number(file)
        self._epoll.register(number, events)
        self._wanted[number] = (events, callback)

    def modify(self, file: int | HasFileno, events: int, callback: Callable[[int], object]) -> None:
        number = _number(file)
        self._epoll.modify(number, events)
        self._wanted[number] = (events, callback)

    def unregister(self, file: int | HasFileno) -> None:
        """Call it before the file is closed."""
        number = _number(file)
        del self._wanted[number]
        self._epoll.unregister(number)

    def wait(self, timeout_s: float | None = None) -> list[tuple[Callable[[int], object], int]]:
        """Whom to call now; nobody if nothing happened in time. A peer that is gone can be read, and written to."""
        ready = []
        for number, came in self._epoll.poll(timeout_s, max(len(self._wanted), 1)):
            wanted, callback = self._wanted[number]
            events = (READ if came & ~WRITE else 0) | (WRITE if came & ~READ else 0)
            ready.append((callback, events & wanted))
        return ready


def _number(file: int | HasFileno) -> int:
    return file if isinstance(file, int) else file.fileno()
