"""What the documents say is so."""

import re
from pathlib import Path

from aiohttp import web

from roost.server.http import routes
from roost.wire.runs import EventKind

ROOT = Path(__file__).parents[2]


def test_every_route_is_on_the_page_of_the_protocol() -> None:
    page = (ROOT / "docs/protocol/http.md").read_text()
    written = {
        (method, path.rstrip("/")) for method, path in re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^\s`?]*)", page)
    }
    also = re.findall(r"\(or `(POST)`\)", page)
    written |= {("POST", "/session/_/create")} if "`POST /session/_/create`" in page else set()

    app = web.Application()
    app.add_routes([*routes._session_routes("/session"), *routes._image_routes(), *routes._template_routes()])
    served = {
        (route.method, str(route.resource.canonical)) for route in app.router.routes() if route.resource is not None
    }
    served = {(method, path) for method, path in served if method != "HEAD"}

    assert also == ["POST", "POST"]
    assert written - {("GET", ""), ("GET", "/healthz"), ("GET", "/stream/session/{ref}/execute")} == served - {
        ("POST", "/session/{ref}/download"),
        ("POST", "/session/{ref}/download_single"),
    }


def test_every_kind_of_event_is_on_the_page_of_the_protocol() -> None:
    page = (ROOT / "docs/protocol/http.md").read_text()

    assert all(f"`{kind}`" in page for kind in EventKind)


def test_every_folder_of_the_code_is_on_the_map() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    source = ROOT / "src"
    folders = {path.parent.relative_to(ROOT) for path in source.rglob("*.py")}
    named = {Path(name) for name in re.findall(r"^\| `(src/[^`]+)/` \|", page, re.MULTILINE)}
    within = {Path("src/roost"), Path("src/roost/client/func"), Path("src/roost/server/store/migrations/versions")}
    within |= {Path("src/roost/server/store/migrations")}
    mirrored = {folder for folder in folders if folder.is_relative_to("src/ai/backend/client")}

    assert folders - within - mirrored == named - {Path("src/ai/backend/client")}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
