"""Files over REST (spec/rest-sessions.md §9 to §11)."""

import re
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
from aiohttp import BodyPartReader, MultipartWriter, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from roost.server.http.context import answer, platform_of, room_of, session_of, streams, version_of
from roost.server.http.memory import bytes_of_answer, bytes_of_body
from roost.server.http.params import Download, DownloadSingle, FileList, read_params
from roost.server.http.problems import printable
from roost.server.services.files import MAX_BYTES, MAX_FILES_DOWN, MAX_FILES_UP
from roost.wire.errors import FileNotFoundInSession, InvalidParameters

_EXTENDED_NAME = re.compile(r"filename\*\s*=", re.IGNORECASE)


@streams
async def upload(request: web.Request) -> web.Response:
    """`POST …/upload`: a form whose parts are files."""
    session = await session_of(request)
    with room_of(request) as room:
        await room.wait(min(bytes_of_body(request), MAX_FILES_UP * MAX_BYTES))
        await platform_of(request).files.upload(session, await _read_form(request))
    return web.Response(status=204)


async def download(request: web.Request) -> web.Response:
    """`GET …/download`: a tar of each path."""
    params = await read_params(request, Download)
    session = await session_of(request, params.owner_access_key)
    with room_of(request) as room:
        await room.wait(bytes_of_answer(min(len(params.files), MAX_FILES_DOWN) * MAX_BYTES))
        writer = MultipartWriter("mixed")
        for archive in await platform_of(request).files.archives(session, params.files):
            headers = CIMultiDict({hdrs.CONTENT_TYPE: "application/octet-stream", hdrs.CONTENT_ENCODING: "identity"})
            writer.append(archive, headers)
        response = web.Response(body=writer)
        await response.prepare(request)
        await response.write_eof()
        return response


async def download_single(request: web.Request) -> web.Response:
    """`GET …/download_single`: the bare file, or for clients before API version 7 a tar of it."""
    params = await read_params(request, DownloadSingle)
    session = await session_of(request, params.owner_access_key)
    files = platform_of(request).files
    if version_of(request) >= (7, ""):
        content = await files.read(session, params.file)
    else:
        [content] = await files.archives(session, [params.file])
    return web.Response(body=content, content_type="application/octet-stream")


async def list_files(request: web.Request) -> web.Response:
    """`GET …/files`: the entries as JSON inside of JSON."""
    params = await read_params(request, FileList)
    session = await session_of(request, params.owner_access_key)
    try:
        entries: Any = [
            msgspec.to_builtins(one) | {"filename": printable(one.filename)}
            for one in await platform_of(request).files.list(session, params.path)
        ]
    except FileNotFoundInSession as error:
        return answer({"files": "", "errors": error.message, "abspath": params.path})
    return answer({"files": orjson.dumps(entries).decode(), "errors": "", "abspath": params.path})


async def _read_form(request: web.Request) -> list[tuple[str, bytes]]:
    if not request.content_type.startswith("multipart/"):
        raise InvalidParameters("the body is not a form", hint="send multipart/form-data, one part for each file")
    is_form = request.content_type == "multipart/form-data"
    files: list[tuple[str, bytes]] = []
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise InvalidParameters("a part of the form is a form itself")
            # In a form the header says nothing (RFC 7578, 4.8); elsewhere aiohttp would unpack the first 256 KiB.
            if not is_form and part.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
                raise InvalidParameters("a part of the form is packed", hint="send the file as it is")
            if len(files) == MAX_FILES_UP:
                raise InvalidParameters("too many files at once", hint=f"send at most {MAX_FILES_UP}")
            files.append((_name(part), await _read_part(part)))
    except (ValueError, RuntimeError, HttpProcessingError) as error:
        raise InvalidParameters(
            f"the form cannot be read: {error}", hint="send multipart/form-data, one part for each file"
        ) from error
    return files


async def _read_part(part: BodyPartReader) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(1 << 16):
        content += chunk
        if len(content) >= MAX_BYTES:
            raise InvalidParameters(f"{_name(part)} is too large", hint=f"each file must be below {MAX_BYTES} bytes")
    return bytes(part.decode(bytes(content)))


def _name(part: BodyPartReader) -> str:
    """The file's name, percent-decoded exactly once: `filename*` comes decoded, `filename` does not (§11)."""
    name = part.filename or ""
    return name if _EXTENDED_NAME.search(part.headers.get(hdrs.CONTENT_DISPOSITION, "")) else unquote(name)
