"""One caller takes only so much of the server's memory at a time, and what is small waits for nothing."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from roost.agent.files import _HomeFile
from roost.client.api import build_url
from roost.client.sse import SSEMessage, SSEParser
from roost.server.http import content, incoming, memory
from tests.servers import Caller

MIB = 1 << 20
LARGE = b"{" + b" " * (2 * MIB)
SHOW = "class Large:\n    def _repr_html_(self): return 'y' * 900_000\nfor _ in range(12): display(Large())"
"""Events that are large, and together more than what two kernels keep for a connection."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes for which there was room, each time that somebody asked."""
    sizes: list[int] = []
    take = memory.Room.take

    def noting(room: memory.Room, size: int, then: Callable[[], None] | None = None) -> bool:
        has_room = take(room, size, then)
        sizes.append(size if has_room else 0)
        return has_room

    monkeypatch.setattr(memory.Room, "take", noting)
    return sizes


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for room for long."""
    monkeypatch.setattr(memory, "WAIT_S", 0.2)
    monkeypatch.setattr(incoming, "WAIT_S", 0.2)


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    assert (await server("POST", "/session", {"name": "class-7", "image": "python"})).status == 201
    return server


async def until_taken(taken: list[int], size: int) -> None:
    while not any(one >= size for one in taken):
        await asyncio.sleep(0.01)


def head(server: Caller, data_dir: Path, method: str, path: str, *more: str) -> bytes:
    token = json.loads((data_dir / "admin.json").read_text())["token"]
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", *more]
    return "\r\n".join([*lines, "\r\n"]).encode()


@contextlib.asynccontextmanager
async def reading_nothing(server: Caller, sent: bytes) -> AsyncIterator[None]:
    """A connection on which something is sent and nothing read."""
    url = URL(server.target.endpoint)
    with socket.socket() as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, (url.host, url.port))
        sending = asyncio.create_task(loop.sock_sendall(connected, sent))
        yield
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def half_a_message(server: Caller, data_dir: Path, size: int) -> contextlib.AbstractAsyncContextManager[None]:
    """A WebSocket on which `size` bytes of a message twice as long have come."""
    return reading_nothing(server, upgraded(server, data_dir, struct.pack("!Q", 2 * size), b"a" * size))


def upgraded(server: Caller, data_dir: Path, length: bytes, content: bytes) -> bytes:
    """What opens a WebSocket, and begins a message on it."""
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
    )
    path = "/stream/session/class-7/execute"
    return head(server, data_dir, "GET", path, *upgrade) + b"\x81\xff" + length + bytes(4) + content


async def execute_on_socket(server: Caller, data_dir: Path, code: str, *lines: str) -> list[dict[str, Any]]:
    """Every frame of a run over a WebSocket, on which lines are typed ahead."""
    token = json.loads((data_dir / "admin.json").read_text())["token"]
    url = build_url(server.target, "/stream/session/class-7/execute")
    async with server.http.ws_connect(url, headers={"Authorization": f"Bearer {token}"}) as opened:
        await opened.send_json({"code": code, "mode": "query"})
        for line in lines:
            await opened.send_str(line)
        return [json.loads(message.data) async for message in opened]


async def small_requests_are_answered(server: Caller) -> None:
    for _ in range(20):
        assert (await server("POST", "/session", data=io.BytesIO(b"{"))).status == 400


async def test_large_bodies_wait_for_those_before_them_and_small_ones_do_not(
    server: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST", 3 * MIB)
    monkeypatch.setattr(memory, "MAX_BODY", 2 * MIB)
    async with a_slow_body(server) as (first, rest):
        second = asyncio.create_task(server("POST", "/session", data=io.BytesIO(LARGE)))

        await small_requests_are_answered(server)
        assert not second.done()
        rest.set()
        assert [await first, (await second).status] == [400, 400]


async def test_a_large_body_that_waits_for_too_long_is_told_so(
    server: Caller, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(memory, "MOST", 3 * MIB)
    monkeypatch.setattr(memory, "MAX_BODY", 2 * MIB)
    async with a_slow_body(server) as (first, rest):
        reply = await server("POST", "/session", data=io.BytesIO(LARGE))

        assert (reply.status, reply.slug) == (429, "too-many-requests")
        assert "send it again" in reply.body["hint"]
        rest.set()
        assert await first == 400


@contextlib.asynccontextmanager
async def a_slow_body(server: Caller) -> AsyncIterator[tuple["asyncio.Task[int]", asyncio.Event]]:
    """A request whose large body has come but for its end; its status, and what lets the end come."""
    sent, rest = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield LARGE
        sent.set()
        await rest.wait()

    async def post() -> int:
        return (await server("POST", "/session", data=slow())).status

    first = asyncio.create_task(post())
    await sent.wait()
    yield first, rest


async def test_forms_are_counted(
    session: Caller, monkeypatch: pytest.MonkeyPatch, impatient: None, taken: list[int]
) -> None:
    monkeypatch.setattr(memory, "MOST", 3 * MIB)
    rest = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield form
        await rest.wait()
        yield b"--B--\r\n"

    part = b"--B\r\nContent-Disposition: form-data; name=src; filename=%s\r\n\r\n" + b"q" * (MIB - 1) + b"\r\n"
    form = part % b"a" + part % b"b"
    headers = {"Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(len(form) + 7)}
    first = asyncio.create_task(session("POST", "/session/class-7/upload", data=slow(), headers=headers))
    await until_taken(taken, 2 * MIB)

    refused = await session("POST", "/session/class-7/upload", data=io.BytesIO(form + b"--B--\r\n"), headers=headers)
    small = aiohttp.FormData()
    small.add_field("src", b"tiny", filename="c")
    fits = await session("POST", "/session/class-7/upload", data=small)

    assert (refused.status, refused.slug) == (429, "too-many-requests")
    assert fits.status == 204
    rest.set()
    assert (await first).status == 204


async def test_messages_that_are_not_whole_are_counted_and_others_wait(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    monkeypatch.setattr(memory, "MOST", 2 * MIB)
    async with half_a_message(session, data_dir, 2 * MIB):
        await until_taken(taken, 3 * MIB // 2)
        second = asyncio.create_task(execute_on_socket(session, data_dir, "'hello'" + " " * MIB))
        while taken[-1] != 0:
            await asyncio.sleep(0.01)

        await small_requests_are_answered(session)
        assert not second.done()

    assert (await second)[-1]["status"] == "finished"


async def test_a_message_that_waits_for_too_long_ends_its_connection_and_says_why(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, taken: list[int]
) -> None:
    monkeypatch.setattr(memory, "MOST", 2 * MIB)
    async with half_a_message(session, data_dir, 2 * MIB):
        await until_taken(taken, 3 * MIB // 2)

        [large] = await execute_on_socket(session, data_dir, "'hello'" + " " * MIB)
        small = await execute_on_socket(session, data_dir, "'hello'")

    assert (large["status"], "memory" in large["msg"]) == ("error", True)
    assert small[-1]["status"] == "finished"


async def test_lines_that_wait_for_prompts_are_counted_until_they_are_asked_for(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(memory, "MOST", 2 * MIB)

    ahead = await execute_on_socket(session, data_dir, "import time; time.sleep(60)", *["x" * MIB] * 3)

    assert (ahead[-1]["status"], "memory" in ahead[-1]["msg"]) == ("error", True)


async def test_lines_that_were_asked_for_are_counted_no_more(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST", 2 * MIB)

    asked = await execute_on_socket(session, data_dir, "for _ in range(6): input()", *["x" * MIB] * 6)

    assert asked[-1]["status"] == "finished"


async def test_packed_messages_are_not_agreed_to(session: Caller, data_dir: Path) -> None:
    token = json.loads((data_dir / "admin.json").read_text())["token"]
    url = build_url(session.target, "/stream/session/class-7/execute")
    async with session.http.ws_connect(url, headers={"Authorization": f"Bearer {token}"}, compress=15) as opened:
        assert opened.compress == 0


async def test_what_is_read_of_a_run_for_somebody_who_does_not_read_is_small(
    session: Caller, data_dir: Path, taken: list[int]
) -> None:
    code = "for _ in range(20_000): print('x' * 999)"
    await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": code})
    await session.events("class-7", "r1")

    assert max(taken) <= memory.FREE


async def test_large_events_that_are_not_read_are_counted_and_others_continue_where_they_were(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(memory, "MOST", 3 * MIB)
    await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": SHOW})
    await session.events("class-7", "r1")

    async with reading_nothing(session, head(session, data_dir, "GET", "/session/class-7/runs/r1/events")):
        before, said = await events_until_broken_off(session, data_dir, "r1")
    behind = await session.events("class-7", "r1", after=len(before))

    assert b"\n: Your other requests" in said
    assert [one.id for one in [*before, *behind]] == [str(seq) for seq in range(1, len(before) + len(behind) + 1)]
    assert behind[-1].event == "end"


async def test_frames_that_are_not_read_are_counted(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(memory, "MOST", 3 * MIB)
    await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": SHOW})
    start = json.dumps({"code": SHOW, "mode": "query"}).encode()

    async with reading_nothing(session, upgraded(session, data_dir, struct.pack("!Q", len(start)), start)):
        _, said = await events_until_broken_off(session, data_dir, "r1")

    assert b"\n: Your other requests" in said


async def events_until_broken_off(server: Caller, data_dir: Path, run_id: str) -> tuple[list[SSEMessage], bytes]:
    """The events of the first stream that does not come to the run's end, and the last bytes of it."""
    token = json.loads((data_dir / "admin.json").read_text())["token"]
    url = build_url(server.target, f"/session/class-7/runs/{run_id}/events")
    while True:
        parser, messages, last = SSEParser(), list[SSEMessage](), b""
        async with server.http.get(url, headers={"Authorization": f"Bearer {token}"}) as raw:
            async for chunk in raw.content.iter_any():
                messages += parser.feed(chunk)
                last = (last + chunk)[-200:]
        if not messages or messages[-1].event != "end":
            return messages, last


async def test_answers_that_are_not_read_are_counted(
    session: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, taken: list[int]
) -> None:
    await session.execute("class-7", "for name in 'abcde': open(name, 'wb').write(bytes(1_000_000))")
    files = json.dumps({"files": list("abcde")}).encode()
    asked = head(session, data_dir, "POST", "/session/class-7/download", f"Content-Length: {len(files)}") + files
    monkeypatch.setattr(memory, "MOST", 12 * MIB)

    async with reading_nothing(session, asked):
        await until_taken(taken, 10 * MIB)
        by_file = await session("POST", "/session/class-7/download_single", {"file": "a"})
        two = await session("POST", "/session/class-7/download", {"files": ["a", "b"]})
        monkeypatch.setattr(memory, "MOST", 11 * MIB)
        none = await session("POST", "/session/class-7/download_single", {"file": "a"})

    assert by_file.status == 200
    assert (none.status, none.slug) == (429, "too-many-requests")
    assert (two.status, two.slug) == (429, "too-many-requests")


async def test_a_poll_for_whose_answer_there_is_no_room_loses_nothing(
    session: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = memory.MOST
    monkeypatch.setattr(memory, "MOST", 0)
    body = {"mode": "query", "code": "print('x' * 500_000)", "runId": "r1", "options": None}
    replies = [await session("POST", "/session/class-7", body)]
    while replies[-1].status == 200:
        replies.append(await session("POST", "/session/class-7", body | {"mode": "continue"}))
    monkeypatch.setattr(memory, "MOST", most)
    while replies[-1].status == 429 or replies[-1].body["result"]["status"] != "finished":
        replies.append(await session("POST", "/session/class-7", body | {"mode": "continue"}))

    consoles = [one.body["result"]["console"] for one in replies if one.status == 200]
    assert "".join(text for console in consoles for _, text in console) == "x" * 500_000 + "\n"
    assert [one.slug for one in replies if one.status != 200] == ["too-many-requests"]


async def test_what_nobody_is_left_to_read_is_let_go_of(session: Caller, data_dir: Path) -> None:
    await session.execute("class-7", "for name in 'abcde': open(name, 'wb').write(bytes(1_000_000))")
    files = json.dumps({"files": list("abcde")}).encode()
    asked = head(session, data_dir, "POST", "/session/class-7/download", f"Content-Length: {len(files)}") + files

    def unread() -> int:
        return sum(type(one) is aiohttp.MultipartWriter for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        async with reading_nothing(session, asked):
            while not unread():
                await asyncio.sleep(0.01)
        while unread():
            await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_stranger_has_no_room(server: Caller, taken: list[int]) -> None:
    url = URL(server.target.endpoint)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    with contextlib.closing(writer):
        writer.write(b"POST /session HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n" + LARGE)

        assert b" 40" in await reader.readline()
    assert taken == []


@pytest.mark.parametrize("most", [memory.MOST, content.PIECE], ids=["room", "no room"])
async def test_files_are_sent_in_pieces_for_which_there_is_room(
    session: Caller, monkeypatch: pytest.MonkeyPatch, taken: list[int], most: int
) -> None:
    await session.execute("class-7", "open('a', 'wb').write(bytes(3_000_000))")
    sizes: list[int] = []
    read = _HomeFile.read

    async def noting(file: _HomeFile, offset: int, size: int) -> bytes:
        sizes.append(size)
        return await read(file, offset, size)

    monkeypatch.setattr(_HomeFile, "read", noting)
    monkeypatch.setattr(memory, "MOST", most)
    assert len((await session("GET", "/session/class-7/files/a")).body) == 3_000_000

    if most > content.PIECE:
        assert max(sizes) == content.PIECE
        assert max(taken) == memory.bytes_of_answer(content.PIECE)
    else:
        assert memory.bytes_of_answer(max(sizes)) <= memory.FREE
