"""The seam to the database."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

T = TypeVar("T")


class Store(ABC):
    """One database. Work is a synchronous function of a connection, run on threads of the store's own."""

    @abstractmethod
    async def open(self) -> None:
        """Migrate to the newest schema and start. Forward only."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted and let go. May be called twice."""

    @abstractmethod
    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a function that only reads."""

    @abstractmethod
    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a function that writes, in a savepoint of its own; answers after the commit.

        The function has no other side effects. What it raises is raised here, and undoes only its own writes.
        If the caller is cancelled, the write may still happen.
        """
