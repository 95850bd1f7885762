"""Official clients work against our server, and our SDK says the same as they do."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.official_clients.environments import PINS, python_of
from tests.servers import Caller

PROGRAM = Path(__file__).with_name("program.py")


def environment(server: Caller, endpoint: str, home: Path) -> dict[str, str]:
    """All that a client is told."""
    return {
        "BACKEND_ENDPOINT": endpoint,
        "BACKEND_ACCESS_KEY": server.target.access_key,
        "BACKEND_SECRET_KEY": server.target.secret_key,
        "HOME": str(home),
        "PYTHONUTF8": "1",
    }


async def run_program(python: Path, server: Caller, endpoint: str, output: Path) -> str:
    """Run the program to its end; what it wrote to stderr, empty where it succeeded."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(PROGRAM),
        str(output),
        env=environment(server, endpoint, output.parent),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
    return said.decode() or str(process.returncode) if process.returncode else ""


_seen_by_ours: list[dict[str, Any]] = []


@pytest.fixture
async def ours(server: Caller, tmp_path: Path) -> dict[str, Any]:
    """What our SDK sees, which is the same for every server."""
    if not _seen_by_ours:
        output = tmp_path / "ours.json"
        assert await run_program(Path(sys.executable), server, server.target.endpoint, output) == ""
        _seen_by_ours.append(json.loads(output.read_text()))
    return dict(_seen_by_ours[0])


@pytest.mark.parametrize("version", PINS)
async def test_an_official_client_sees_what_ours_sees(server: Caller, ours: Any, tmp_path: Path, version: str) -> None:
    output = tmp_path / "theirs.json"

    said = await run_program(python_of(version), server, server.target.endpoint, output)

    assert said == ""
    theirs = json.loads(output.read_text())
    assert theirs | {"version": None} == ours | {"version": None}


@pytest.mark.parametrize("version", PINS)
async def test_the_official_command_runs_code_and_passes_input_on(server: Caller, tmp_path: Path, version: str) -> None:
    command = str(python_of(version).with_name("backend.ai"))
    arguments = ("run", "--rm", "-c", "print('hi', input('who? '))", "python")

    process = await asyncio.create_subprocess_exec(
        command,
        *arguments,
        env=environment(server, server.target.endpoint, tmp_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(b"Ann\n"), 60)

    assert process.returncode == 0, said.decode()
    assert "who? hi Ann" in said.decode()
    assert "Cleaned up the session" in said.decode()
    assert (await server("GET", "/session")).body == []


@pytest.mark.parametrize("field", ["sessionId", "console", "files", "type"])
async def test_a_renamed_field_is_noticed(server: Caller, ours: Any, tmp_path: Path, field: str) -> None:
    output = tmp_path / "renamed.json"
    async with renaming(server, field) as endpoint:
        said = await run_program(python_of("21.9.5"), server, endpoint, output)

    assert said or json.loads(output.read_text()) != ours


@asynccontextmanager
async def renaming(server: Caller, field: str) -> AsyncIterator[str]:
    """A proxy before the server that gives one field of every JSON answer another name."""

    async def forward(request: web.Request) -> web.Response:
        url = server.target.endpoint + request.raw_path
        async with server.http.request(
            request.method, url, data=await request.read(), headers=request.headers, skip_auto_headers=["Content-Type"]
        ) as raw:
            body = await raw.read()
            if raw.content_type.endswith("json"):
                body = body.replace(f'"{field}":'.encode(), f'"{field}X":'.encode())
            kept = {"Content-Type": raw.headers["Content-Type"]} if "Content-Type" in raw.headers else {}
            return web.Response(status=raw.status, body=body, headers=kept)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        [(host, port)] = [address[:2] for address in runner.addresses]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
