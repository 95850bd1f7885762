"""What is written down of runs, behind their logs."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import Caller, a_server


async def runs_of(server: Caller) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await server("GET", "/session/class-7/runs")).body
    return found


async def run(server: Caller, code: str, run_id: str) -> None:
    await server("POST", "/session/class-7/runs", {"run_id": run_id, "code": code})
    await server.events("class-7", run_id)


async def test_runs_are_known_after_their_log_is_gone(data_dir: Path) -> None:
    async with a_server(data_dir) as server:
        session_id = (await server("POST", "/session", {"name": "class-7", "image": "python"})).body["sessionId"]
        for number in range(3):
            await run(server, f"print({number})", f"r{number}")
        await run(server, "import os; os._exit(3)", "dies")
        await server("DELETE", "/session/class-7")
        by_log = await runs_of(server)

    shutil.rmtree(data_dir / "logs" / session_id)
    async with a_server(data_dir) as server:
        by_rows = await runs_of(server)

    assert by_rows == by_log
    assert [one["run_id"] for one in by_rows] == ["r0", "r1", "r2", "dies"]
    assert by_rows[-1]["reason"]["code"] == "kernel-exited"
    assert by_rows[0]["cost"]["wall_s"] > 0


async def test_what_a_killed_server_could_not_write_is_written_by_the_next(data_dir: Path) -> None:
    """1. a server accepts a run and is killed; 2. the run ends; 3. the next server writes it down."""
    command = [sys.executable, "-m", "roost.server", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        assert process.stderr is not None
        while not (data_dir / "server.json").exists():
            assert await asyncio.to_thread(process.stderr.readline)
        admin = json.loads((data_dir / "admin.json").read_text())
        program = f"""
import asyncio
from roost.client.api import Target
from roost.client.handle import async_session
async def main():
    target = Target(endpoint={admin["endpoint"]!r}, token={admin["token"]!r})
    async with async_session("class-7", keep=True, target=target) as session:
        await session.start("print(1)", run_id="r1")
asyncio.run(main())
"""
        started = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        assert await asyncio.wait_for(started.wait(), 60) == 0
        process.kill()

    async with a_server(data_dir) as server:
        [session] = (await server("GET", "/session")).body
        await server.events("class-7", "r1")
        await server("DELETE", "/session/class-7")
    shutil.rmtree(data_dir / "logs" / session["id"])
    async with a_server(data_dir) as server:
        [written] = await runs_of(server)

    assert (written["run_id"], written["status"]) == ("r1", "ok")
