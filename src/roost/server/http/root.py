"""What the server says of itself; needs no credentials."""

import importlib.metadata

from aiohttp import web

from roost.server.http.context import answer, public
from roost.wire.versions import SERVER_VERSION

ROOST_VERSION = importlib.metadata.version("roost")


@public
async def get_root(request: web.Request) -> web.Response:
    """`GET /`: the highest API version that we speak (spec/auth.md §1.1)."""
    return answer({"version": SERVER_VERSION, "manager": ROOST_VERSION, "roost": ROOST_VERSION})


@public
async def get_health(request: web.Request) -> web.Response:
    """`GET /healthz`"""
    return answer({"status": "ok"})
