"""The engine of one machine: this one. Its agent lives in this process."""

import os
from collections.abc import Sequence

import psutil

from roost.agent.supervisor import LocalAgent
from roost.engines.base import Bundle, Engine, EngineConfig, Node, Reservation
from roost.wire.agent import Agent
from roost.wire.errors import NoCapacity, NotFound

NODE_ID = "local"


class LocalEngine(Engine):
    """One node with this machine's cores and memory, times the overcommit factors.

    Reservations live in memory: the server makes them anew for its live sessions when it starts.
    """

    def __init__(self) -> None:
        self._agent: LocalAgent | None = None
        self._capacity: dict[str, float] = {}
        self._reserved: dict[str, Reservation] = {}

    async def open(self, config: EngineConfig) -> None:
        self._capacity = {
            "cpu": (os.cpu_count() or 1) * config.overcommit_cpu,
            "mem": psutil.virtual_memory().total * config.overcommit_mem,
        }
        self._agent = LocalAgent(config.data_dir)
        await self._agent.open()

    async def aclose(self) -> None:
        if self._agent is not None:
            await self._agent.aclose()
            self._agent = None

    async def nodes(self) -> Sequence[Node]:
        return [Node(node_id=NODE_ID, capacity=dict(self._capacity), available=self._available())]

    async def reserve(self, key: str, bundles: Sequence[Bundle]) -> Reservation:
        if key in self._reserved:
            return self._reserved[key]
        rest = self._available()
        for bundle in bundles:
            if bundle.node_id != NODE_ID:
                raise NoCapacity(f"there is no node {bundle.node_id}")
            for slot, need in bundle.slots.items():
                if need > rest.get(slot, 0.0):
                    raise NoCapacity(f"{slot}: {need:g} needed, {rest.get(slot, 0.0):g} left")
                rest[slot] -= need
        self._reserved[key] = Reservation(key=key, bundles=tuple(bundles))
        return self._reserved[key]

    async def reservations(self) -> Sequence[Reservation]:
        return list(self._reserved.values())

    async def release(self, key: str) -> None:
        self._reserved.pop(key, None)

    async def agent(self, node_id: str) -> Agent:
        if node_id != NODE_ID or self._agent is None:
            raise NotFound(f"there is no node {node_id}")
        return self._agent

    def _available(self) -> dict[str, float]:
        rest = dict(self._capacity)
        for reservation in self._reserved.values():
            for bundle in reservation.bundles:
                for slot, need in bundle.slots.items():
                    rest[slot] -= need
        return rest
