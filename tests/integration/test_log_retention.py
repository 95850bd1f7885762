"""Logs that are kept for so long and are so long: what an operator set, as readers meet it."""

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

import pytest

from roost.agent import recovery
from roost.agent.log_writer import LogWriter
from roost.agent.run_logs import GOING
from roost.agent.sandboxes import Sandboxes
from roost.agent.supervisor import LocalAgent
from roost.server.services.runs import LOG_CHARACTERS
from roost.wire.errors import SessionNotFound
from tests.agents import end
from tests.integration.test_agent_logs import make_log, said
from tests.servers import a_server

DAY = 86400.0
CAP = 1 << 20


async def logs_are(data_dir: Path, names: set[str]) -> None:
    async with asyncio.timeout(30):
        while {path.name for path in (data_dir / "logs").iterdir()} != names:
            await asyncio.sleep(0.01)


async def log_is_trimmed(data_dir: Path) -> None:
    """Readers may see a run's end before the log has let go of what is too much with it; its last segment stays."""

    def is_trimmed() -> bool:
        with contextlib.suppress(FileNotFoundError):  # one goes just now
            sizes = [path.stat().st_size for path in (data_dir / "logs").glob("*/*.seg")]
            return len(sizes) == 1 or sum(sizes) <= CAP
        return False

    async with asyncio.timeout(30):
        while not is_trimmed():
            await asyncio.sleep(0.01)


async def test_logs_of_sessions_that_ended_long_ago_go(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter()
    for name in ("old", "young", "alive", f"{GOING}half"):
        await make_log(data_dir, name, writer)
    writer.close()
    (data_dir / "sandboxes" / "alive").mkdir(parents=True)
    (data_dir / "sandboxes" / "alive" / "sandbox.json").write_text("{")
    for name, days in (("old", 31), ("young", 29), ("alive", 31)):
        then = time.time() - days * DAY
        for path in (*(data_dir / "logs" / name).iterdir(), data_dir / "logs" / name):
            os.utime(path, (then, then))
    agent = LocalAgent(data_dir)
    monkeypatch.setattr(recovery, "_recover", _leave)

    await agent.open()
    await logs_are(data_dir, {"young", "alive"})

    assert await said(agent, "young") == "young"
    with pytest.raises(SessionNotFound):
        await agent.runs("old")
    (data_dir / "sandboxes" / "alive" / "sandbox.json").unlink()
    (data_dir / "sandboxes" / "alive").rmdir()
    await end(agent)


async def _leave(sandboxes: Sandboxes, session_id: str) -> None:
    """Stands for a sandbox that lives."""


async def test_logs_are_swept_again_and_again(data_dir: Path) -> None:
    agent = LocalAgent(data_dir, log_keep_s=0.2)
    await agent.open()
    writer = LogWriter()
    await make_log(data_dir, "ended", writer)
    writer.close()
    assert await said(agent, "ended") == "ended"

    await logs_are(data_dir, set())

    assert agent._logs.open_names == []
    await end(agent)


async def test_every_view_tells_of_the_gap(data_dir: Path) -> None:
    """A run writes four times what its log may hold."""
    async with a_server(data_dir, log_cap_bytes=CAP) as server:
        await server("POST", "/session", {"name": "class-7", "image": "python"})
        code = "import os\nfor i in range(4096): os.write(1, b'%07d\\n' % i * 128)"
        await server("POST", "/session/class-7/runs", {"run_id": "r1", "code": code})
        async with asyncio.timeout(60):
            while (await server("GET", "/session/class-7/runs/r1")).body["state"] != "ended":
                await asyncio.sleep(0.01)
        await log_is_trimmed(data_dir)

        events = await server.events("class-7", "r1")
        poll = await server.execute("class-7", mode="continue", run_id="r1")
        logs = (await server("GET", "/session/class-7/logs")).body["result"]["logs"]
        size = sum(path.stat().st_size for path in (data_dir / "logs").glob("*/*"))
        await server("DELETE", "/session/class-7")

    gaps = [json.loads(one.data) for one in events if one.event == "gap"]
    text = "".join(json.loads(one.data) for one in events if one.event == "stdout")
    assert [one.event for one in events[:2]] + [events[-1].event] == ["started", "gap", "end"]
    assert len(gaps) == 1
    assert (int(str(events[1].id)), int(str(events[2].id))) == (gaps[0]["last"], gaps[0]["last"] + 1)
    assert gaps[0]["bytes"] + len(text) == 4096 * 128 * 8
    assert size < 2 * CAP
    told = f"[events {gaps[0]['first']} to {gaps[0]['last']} are gone from the log]\n"
    assert ["stderr", told] in poll["console"]
    # What is left may be more than the logs show, where much of it was written at once.
    assert told in logs or len(logs) == LOG_CHARACTERS
