"""Files as resources of their own: streamed, in ranges, of any size (docs/protocol/http.md)."""

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote

from aiohttp import hdrs, web

from roost.server.http.context import platform_of, room_of, session_of, streams
from roost.server.http.memory import FREE, Room, bytes_of_answer
from roost.wire.agent import OpenFile, SessionFiles
from roost.wire.errors import InvalidParameters
from roost.wire.sandboxes import FileInfo

PIECE = 1 << 20
"""Bytes of a file that are handed on at a time."""
SMALL_PIECE = FREE // 2
"""Of a download of somebody who holds too much already; as much is held again where its reader does not take it."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class _Unsatisfiable(Exception):
    """The range lies beyond the end."""


async def get_content(request: web.Request) -> web.StreamResponse:
    """`GET` and `HEAD …/files/{path}`: a file, or part of it; a folder as a tar."""
    session = await session_of(request)
    path = request.match_info["path"] or "."
    home = await platform_of(request).files.home(session)
    info = await home.info(path)
    if info.mode[0] == "d":
        return await _send_tar(request, home, path)
    async with home.open(path) as opened:
        info = opened.info
        headers = {
            hdrs.ACCEPT_RANGES: "bytes",
            hdrs.ETAG: _etag(info),
            hdrs.LAST_MODIFIED: format_datetime(datetime.fromtimestamp(int(info.mtime), UTC), usegmt=True),
        }
        try:
            start, stop, is_part = _range(request, info)
        except _Unsatisfiable:
            return web.Response(status=416, headers=headers | {hdrs.CONTENT_RANGE: f"bytes */{info.size}"})
        if is_part:
            headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{info.size}"
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = stop - start
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD:
            with room_of(request) as room:
                await _send(response, room, opened, start, stop)
        await response.write_eof()
        return response


async def _send(response: web.StreamResponse, room: Room, opened: OpenFile, start: int, stop: int) -> None:
    while start < stop:
        most = PIECE if room.take(bytes_of_answer(PIECE)) else SMALL_PIECE
        piece = await opened.read(start, min(most, stop - start))
        if not piece:  # it has become shorter: a broken answer says so, padding would not
            raise ConnectionResetError("the file was cut while it was sent")
        await response.write(piece)
        start += len(piece)


@streams
async def put_content(request: web.Request) -> web.Response:
    """`PUT …/files/{path}`: 201 where there was none, 204 where it was replaced; all of it or nothing."""
    session = await session_of(request)
    home = await platform_of(request).files.home(session)
    is_new = await home.store(request.match_info["path"], request.content.iter_chunked(PIECE))
    return web.Response(status=201 if is_new else 204)


async def delete_content(request: web.Request) -> web.Response:
    """`DELETE …/files/{path}`: a file, a link or an empty folder."""
    session = await session_of(request)
    await (await platform_of(request).files.home(session)).remove(request.match_info["path"])
    return web.Response(status=204)


async def _send_tar(request: web.Request, home: SessionFiles, path: str) -> web.StreamResponse:
    name = quote(path.rstrip("/").rpartition("/")[2].strip(".") or "work")
    response = web.StreamResponse(headers={hdrs.CONTENT_DISPOSITION: f"attachment; filename*=utf-8''{name}.tar"})
    response.content_type = "application/x-tar"
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        async for piece in home.tar(path):
            await response.write(piece)
    await response.write_eof()
    return response


def _etag(info: FileInfo) -> str:
    return f'"{info.mtime.hex()}-{info.size:x}"'


def _range(request: web.Request, info: FileInfo) -> tuple[int, int, bool]:
    """First byte, the one after the last, and whether that is only a part; several ranges at once are not given."""
    wanted = request.headers.get(hdrs.RANGE, "")
    match = _RANGE.fullmatch(wanted.strip())
    unchanged = request.headers.get(hdrs.IF_RANGE, _etag(info)) == _etag(info)
    if match is None or not unchanged or match[1] == match[2] == "":
        if wanted and "," not in wanted and match is None:
            raise InvalidParameters(f"not a range: {wanted!r:.80}", hint="bytes=FIRST-LAST")
        return 0, info.size, False
    first, last = match[1], match[2]
    start, stop = (int(first), int(last) + 1 if last else info.size) if first else (info.size - int(last), info.size)
    start, stop = max(0, start), min(stop, info.size)
    if start >= stop:
        raise _Unsatisfiable
    return start, stop, True
