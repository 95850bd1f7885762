"""Images: our own endpoints (docs/protocol/http.md)."""

import asyncio
import contextlib

import orjson
from aiohttp import web

from roost.server.domain.images import Image
from roost.server.http.context import answer, caller_of, platform_of
from roost.server.http.params import AliasTarget, ImageBuild, check, read_json
from roost.server.http.problems import problem_of
from roost.server.http.views import image_view
from roost.server.services.images import Plan, WantedImage
from roost.wire.errors import RoostError

KEEP_ALIVE_S = 1.0
"""A build that has nothing to say for so long says that it lives, and learns whether anybody listens."""


async def list_images(request: web.Request) -> web.Response:
    """`GET /image`"""
    images = platform_of(request).images
    return answer([image_view(image, images.aliases_of(image)) for image in images.all()])


async def get_image(request: web.Request) -> web.Response:
    """`GET /image/{ref}`: by reference or alias, with what its packages were solved to."""
    images = platform_of(request).images
    image = images.find(request.match_info["ref"])
    packages = await images.packages(image)
    more = {} if packages is None else {"requirements": packages[0], "lock": packages[1]}
    return answer(image_view(image, images.aliases_of(image)) | more)


async def build_image(request: web.Request) -> web.StreamResponse:
    """`POST /image`: server-sent events up to `image` or `problem`; who goes away gives the build up."""
    params = check(await read_json(request), ImageBuild)
    wanted = WantedImage(reference=params.name, **params.model_dump(exclude={"name"}))
    plan = await platform_of(request).images.plan(caller_of(request), wanted)
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    try:
        await _build(request, response, plan)
    except RoostError as error:
        body = problem_of(error).body
        assert isinstance(body, bytes)
        await response.write(b"event: problem\ndata: %s\n\n" % body)
    finally:  # whatever it was, nobody may wait for the rest
        await response.write_eof()
    return response


async def delete_image(request: web.Request) -> web.Response:
    """`DELETE /image/{ref}`"""
    await platform_of(request).images.remove(caller_of(request), request.match_info["ref"])
    return web.Response(status=204)


async def put_alias(request: web.Request) -> web.Response:
    """`PUT /image-alias/{alias}`"""
    params = check(await read_json(request), AliasTarget)
    images = platform_of(request).images
    image = await images.put_alias(caller_of(request), request.match_info["alias"], params.target)
    return answer({"alias": request.match_info["alias"], "target": params.target, "image": image.reference})


async def delete_alias(request: web.Request) -> web.Response:
    """`DELETE /image-alias/{alias}`"""
    await platform_of(request).images.delete_alias(caller_of(request), request.match_info["alias"])
    return web.Response(status=204)


async def _build(request: web.Request, response: web.StreamResponse, plan: Plan) -> None:
    images = platform_of(request).images
    async with contextlib.aclosing(images.build(plan)) as steps:
        while True:
            # A task, since a step that is waited for is not to be given up when it takes its time.
            step = asyncio.ensure_future(anext(steps, None))
            try:
                while not (await asyncio.wait([step], timeout=KEEP_ALIVE_S))[0]:
                    await response.write(b": still here\n\n")
                said = await step
                if said is None:
                    return
                await response.write(_message(said, images.aliases_of(said) if isinstance(said, Image) else []))
            finally:
                if not step.done():
                    step.cancel()
                    await asyncio.wait([step])


def _message(step: str | Image, aliases: list[str]) -> bytes:
    if isinstance(step, str):
        return b"event: line\ndata: %s\n\n" % orjson.dumps({"text": step})
    return b"event: image\ndata: %s\n\n" % orjson.dumps(image_view(step, aliases))
