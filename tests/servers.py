"""A real server in this process, and requests to it as a client of ours or anybody's would send them."""

import contextlib
import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from roost.client.api import Target, build_headers, build_url
from roost.client.sse import SSEMessage, SSEParser
from roost.server.app import serving
from roost.server.settings import Settings


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def slug(self) -> str:
        """The last part of a problem's type."""
        return str(self.body["type"]).rpartition("/")[2]


class Caller:
    """Sends requests to a server; signed, unless told otherwise."""

    def __init__(self, target: Target, http: aiohttp.ClientSession) -> None:
        self.target = target
        self.http = http

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request; a form or raw bytes go into `data`."""
        url = build_url(self.target, path, params)
        content_type = "application/json" if body is not None else "text/plain"
        content_type = (headers or {}).get("Content-Type", content_type)
        if isinstance(data, aiohttp.FormData) or "multipart" in content_type:
            content_type = "multipart/form-data"
        sent = build_headers(self.target, method, url, content_type, datetime.now(UTC)) | dict(headers or {})
        content = io.BytesIO(msgspec.json.encode(body)) if body is not None else data
        async with self.http.request(method, url, data=content, headers=sent) as raw:
            answered = await raw.read()
            is_json = raw.content_type.endswith("json")
            return Reply(raw.status, msgspec.json.decode(answered) if is_json else answered, raw.headers)

    async def execute(self, ref: str, code: str = "", mode: str = "query", run_id: str | None = None) -> dict[str, Any]:
        """One call of the compatible poll; its result."""
        reply = await self("POST", f"/session/{ref}", {"mode": mode, "code": code, "runId": run_id, "options": None})
        assert reply.status == 200, reply.body
        result: dict[str, Any] = reply.body["result"]
        return result

    async def finished(self, ref: str, code: str) -> dict[str, Any]:
        """A whole run by the compatible poll, its console in one piece."""
        part = await self.execute(ref, code)
        console = part["console"]
        while part["status"] != "finished":
            part = await self.execute(ref, mode="continue", run_id=part["runId"])
            console += part["console"]
        return part | {"console": console}

    async def events(self, ref: str, run_id: str, after: int = 0) -> list[SSEMessage]:
        """A run's events up to its end."""
        url = build_url(self.target, f"/session/{ref}/runs/{run_id}/events", {"after": str(after)})
        headers = build_headers(self.target, "GET", url, None, datetime.now(UTC))
        parser, messages = SSEParser(), []
        async with self.http.get(url, headers=headers, skip_auto_headers=("Content-Type",)) as raw:
            assert raw.status == 200
            async for chunk in raw.content.iter_any():
                messages += parser.feed(chunk)
        return messages

    async def build(self, name: str, requirements: str, **more: Any) -> list[SSEMessage]:
        """Build an image; what was said up to its end, which is `image` or `problem`."""
        url = build_url(self.target, "/image", None)
        headers = build_headers(self.target, "POST", url, "application/json", datetime.now(UTC))
        body = msgspec.json.encode({"name": name, "requirements": requirements, **more})
        parser, messages = SSEParser(), []
        async with self.http.post(url, data=io.BytesIO(body), headers=headers) as raw:
            assert raw.status == 200, await raw.text()
            async for chunk in raw.content.iter_any():
                messages += parser.feed(chunk)
        return messages


@contextlib.asynccontextmanager
async def a_server(data_dir: Path, **settings: Any) -> AsyncIterator[Caller]:
    """A server on a free port of loopback; gives its administrator."""
    async with serving(Settings(data_dir=data_dir, **settings)) as endpoint, aiohttp.ClientSession() as http:
        admin = msgspec.json.decode((data_dir / "admin.json").read_bytes())
        target = Target(endpoint=endpoint, access_key=admin["access_key"], secret_key=admin["secret_key"])
        yield Caller(target, http)
