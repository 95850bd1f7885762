"""Every path that the server answers."""

from aiohttp import web

from roost.server.http import content, execute, files, images, root, runs, sessions, stream, templates
from roost.server.http.context import MEMORY, PLATFORM, STRANGERS
from roost.server.http.deliveries import Deliveries
from roost.server.http.memory import MAX_BODY, Memory
from roost.server.http.middleware import (
    add_headers,
    admit,
    answer_problems,
    break_off,
)
from roost.server.http.strangers import Strangers
from roost.server.services.platform import Platform


def make_web_app(platform: Platform) -> web.Application:
    """The web application over a platform."""
    app = web.Application(middlewares=[answer_problems, break_off, admit], client_max_size=MAX_BODY)
    app[PLATFORM] = platform
    app[STRANGERS] = Strangers()
    app[MEMORY] = Memory()
    app.on_response_prepare.append(add_headers)
    app.add_routes([web.get("/", root.get_root), web.get("/healthz", root.get_health)])
    app.add_routes(_image_routes())
    app.add_routes(_template_routes())
    for prefix in ("/session", "/kernel"):  # clients before API version 5 say kernel
        app.add_routes(_session_routes(prefix))
        app.router.add_get(f"/stream{prefix}/{{ref}}/execute", stream.execute)
    app[stream.OPEN] = set()
    app.on_shutdown.append(stream.close_all)
    app[execute.DELIVERIES] = Deliveries(platform.runs)
    app.on_cleanup.append(lambda app: app[execute.DELIVERIES].aclose())
    return app


def _image_routes() -> list[web.RouteDef]:
    return [
        web.get("/image", images.list_images),
        web.post("/image", images.build_image),
        web.get("/image/{ref:.+}", images.get_image),
        web.delete("/image/{ref:.+}", images.delete_image),
        web.put("/image-alias/{alias:.+}", images.put_alias),
        web.delete("/image-alias/{alias:.+}", images.delete_alias),
    ]


def _template_routes() -> list[web.RouteDef]:
    one = "/template/session/{id}"
    return [
        web.get("/template/session", templates.list_templates),
        web.post("/template/session", templates.create_templates),
        web.get(one, templates.get_template),
        web.put(one, templates.put_template),
        web.delete(one, templates.delete_template),
    ]


def _session_routes(prefix: str) -> list[web.RouteDef]:
    one = f"{prefix}/{{ref}}"
    run = f"{one}/runs/{{run}}"
    return [
        # aiohttp looks for a path from here on downwards, so that of most requests comes first.
        web.post(one, execute.execute),
        web.get(one, sessions.get_session),
        web.patch(one, sessions.restart_session),
        web.delete(one, sessions.destroy_session),
        web.post(prefix, sessions.create_session),
        web.get(prefix, sessions.list_sessions),
        web.post(f"{prefix}/_/create", sessions.create_session),
        web.post(f"{prefix}/_/create-from-template", templates.create_from_template),
        web.get(f"{prefix}/_/match", sessions.match_sessions),
        web.post(f"{one}/interrupt", execute.interrupt),
        web.post(f"{one}/complete", execute.complete),
        web.get(f"{one}/logs", sessions.get_logs),
        web.post(f"{one}/rename", sessions.rename_session),
        web.get(f"{one}/history", sessions.get_history),
        web.get(f"{one}/dependency-graph", sessions.get_dependency_graph),
        web.post(f"{one}/upload", files.upload),
        web.get(f"{one}/download", files.download),
        web.post(f"{one}/download", files.download),
        web.get(f"{one}/download_single", files.download_single),
        web.post(f"{one}/download_single", files.download_single),
        web.get(f"{one}/files", files.list_files),
        web.get(f"{one}/files/{{path:.*}}", content.get_content),
        web.put(f"{one}/files/{{path:.+}}", content.put_content),
        web.delete(f"{one}/files/{{path:.+}}", content.delete_content),
        web.post(f"{one}/runs", runs.start_run),
        web.get(f"{one}/runs", runs.list_runs),
        web.get(run, runs.get_run),
        web.get(f"{run}/events", runs.stream_events),
        web.post(f"{run}/input", runs.answer_prompt),
        web.post(f"{run}/interrupt", runs.interrupt_run),
    ]
