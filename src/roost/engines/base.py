"""The seam between the control plane and whatever provides nodes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from roost.wire.agent import Agent

Slots = Mapping[str, float]
"""Amounts by slot name: `cpu` in cores, `mem` in bytes."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that can run sandboxes."""

    node_id: str
    capacity: dict[str, float]
    """After overcommit."""
    available: dict[str, float]


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox needs, on the node that it is pinned to."""

    node_id: str
    slots: dict[str, float]


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Resources held under a key until they are released."""

    key: str
    bundles: tuple[Bundle, ...]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What every engine is opened with."""

    data_dir: Path
    overcommit_cpu: float = 1000.0
    overcommit_mem: float = 100.0
    log_cap_bytes: int = 1 << 30
    log_keep_s: float = 30 * 86400.0


class Engine(ABC):
    """Knows the nodes, holds reservations, and finds the agent of a node. It knows nothing of sessions."""

    @abstractmethod
    async def open(self, config: EngineConfig) -> None:
        """Connect, and start or find the agents. Existing reservations and sandboxes are left as they are."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of everything that `open` took; sandboxes and runs go on. May be called twice."""

    @abstractmethod
    async def nodes(self) -> Sequence[Node]:
        """The nodes that are up now."""

    @abstractmethod
    async def reserve(self, key: str, bundles: Sequence[Bundle]) -> Reservation:
        """Reserve all bundles or none. The same key again answers the first reservation.

        Raises:
            NoCapacity: a node has not enough left, or is not up; the message names slot, need and rest.
        """

    @abstractmethod
    async def reservations(self) -> Sequence[Reservation]:
        """Everything reserved now."""

    @abstractmethod
    async def release(self, key: str) -> None:
        """Give a reservation back. Unknown keys are fine."""

    @abstractmethod
    async def agent(self, node_id: str) -> Agent:
        """The agent of a node, started if need be.

        Raises:
            NotFound: no such node.
        """
