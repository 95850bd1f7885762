"""Uploads and downloads, beside a handler of aiohttp's that does nothing but write or read the file."""

import asyncio
import contextlib
import http.client
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from aiohttp import web

from benchmarks.figures import Results, moving
from benchmarks.server import BenchServer
from roost.client.api import Target, build_headers, build_url

PIECE = 1 << 20
TIMEOUT_S = 60.0
NAME = "bench.bin"


async def measure_transfers(server: BenchServer, folder: Path, results: Results, size: int, rounds: int) -> None:
    """A file up and down again, by a client that costs next to nothing.

    Args:
        folder: on the file system of the sessions' homes.
        size: of the file, in bytes.
        rounds: how often; the two servers take turns.
    """
    session = await server.create()
    async with _bare_server(folder) as bare:
        for _ in range(rounds):
            for who, target, path in (
                ("", server.api.target, f"{session.path}/files/{NAME}"),
                ("bare: ", Target(endpoint=bare), f"/{NAME}"),
            ):
                with moving(results, f"{who}upload", size):
                    await asyncio.to_thread(_put, target, path, size)
                with moving(results, f"{who}download", size):
                    await asyncio.to_thread(_get, target, path, size)
    await session.destroy()


def _put(target: Target, path: str, size: int) -> None:
    with _connected(target) as connection:
        headers = _headers(target, "PUT", path, "application/octet-stream") | {"Content-Length": str(size)}
        connection.request("PUT", path, body=(bytes(PIECE) for _ in range(size // PIECE)), headers=headers)
        assert connection.getresponse().status in (201, 204)


def _get(target: Target, path: str, size: int) -> None:
    with _connected(target) as connection:
        connection.request("GET", path, headers=_headers(target, "GET", path, "text/plain"))
        answer = connection.getresponse()
        buffer, received = bytearray(PIECE), 0
        while count := answer.readinto(buffer):
            received += count
        assert (answer.status, received) == (200, size)


def _connected(target: Target) -> contextlib.closing[http.client.HTTPConnection]:
    address = target.endpoint.removeprefix("http://")
    return contextlib.closing(http.client.HTTPConnection(address, timeout=TIMEOUT_S))


def _headers(target: Target, method: str, path: str, content_type: str) -> dict[str, str]:
    return build_headers(target, method, build_url(target, path), content_type, datetime.now(UTC))


@contextlib.asynccontextmanager
async def _bare_server(folder: Path) -> AsyncIterator[str]:
    command = ("-m", "benchmarks.transfers", str(folder))
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


def _bare_app(folder: Path) -> web.Application:
    async def put(request: web.Request) -> web.Response:
        with (folder / request.match_info["name"]).open("wb", buffering=0) as file:
            async for piece in request.content.iter_chunked(PIECE):
                file.write(piece)
        return web.Response(status=201)

    async def get(request: web.Request) -> web.StreamResponse:
        with (folder / request.match_info["name"]).open("rb", buffering=0) as file:
            response = web.StreamResponse()
            response.content_length = os.fstat(file.fileno()).st_size
            await response.prepare(request)
            while piece := file.read(PIECE):
                await response.write(piece)
        await response.write_eof()
        return response

    app = web.Application()
    app.add_routes([web.put("/{name}", put), web.get("/{name}", get)])
    return app


async def _serve(folder: Path) -> None:
    runner = web.AppRunner(_bare_app(folder), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [address] = runner.addresses
    print(f"http://127.0.0.1:{address[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
