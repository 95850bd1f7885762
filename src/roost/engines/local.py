"""The engine of one machine: this one. Its agent lives in this process."""

import os

import psutil

from roost.agent.supervisor import LocalAgent
from roost.engines.base import EngineConfig
from roost.engines.reservations import AccountingEngine, Reservations
from roost.wire.agent import Agent
from roost.wire.errors import NotFound

NODE_ID = "local"


class LocalEngine(AccountingEngine):
    """One node with this machine's cores and memory, times the overcommit factors.

    Reservations live in memory: the server makes them anew for its live sessions when it starts.
    """

    def __init__(self) -> None:
        super().__init__({})
        self._agent: LocalAgent | None = None

    async def open(self, config: EngineConfig) -> None:
        capacity = {
            "cpu": (os.cpu_count() or 1) * config.overcommit_cpu,
            "mem": psutil.virtual_memory().total * config.overcommit_mem,
        }
        self._reservations = Reservations({NODE_ID: capacity})
        self._agent = LocalAgent(config.data_dir, log_cap_bytes=config.log_cap_bytes, log_keep_s=config.log_keep_s)
        await self._agent.open()

    async def aclose(self) -> None:
        if self._agent is not None:
            await self._agent.aclose()
            self._agent = None

    async def agent(self, node_id: str) -> Agent:
        if node_id != NODE_ID or self._agent is None:
            raise NotFound(f"there is no node {node_id}")
        return self._agent
