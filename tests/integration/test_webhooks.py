"""Webhooks: a real server tells a real receiver of a session's life; and what must not be told, and to whom."""

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from roost.server.domain import webhooks as rules
from roost.server.domain.webhooks import DELAYS_S, host_of, is_public, next_attempt
from roost.server.services.webhooks import check_callback
from roost.server.settings import load_settings
from roost.wire.errors import InvalidParameters
from tests.servers import Caller, a_server

NEW: dict[str, Any] = {"name": "class-7", "image": "python"}


class Receiver:
    """Takes what is posted to it; answers with the statuses it was given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
        self.statuses = list(statuses)
        self.strayed = False

    async def take(self, request: web.Request) -> web.Response:
        self.got.put_nowait((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    async def stray(self, request: web.Request) -> web.Response:
        self.strayed = True
        return web.Response(status=404)

    async def next(self) -> Any:
        async with asyncio.timeout(20):
            return json.loads((await self.got.get())[1])


@contextlib.asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[tuple[Receiver, str]]:
    receiver, app = Receiver(*statuses), web.Application()
    app.router.add_post("/hook", receiver.take)
    app.router.add_route("*", "/elsewhere", receiver.stray)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield receiver, f"http://127.0.0.1:{port}/hook"
    finally:
        await runner.cleanup()


async def create(server: Caller, url: str, **more: Any) -> str:
    reply = await server("POST", "/session", NEW | {"callback_url": url} | more)
    assert reply.status == 201, reply.body
    return str(reply.body["sessionId"])


async def test_a_webhook_hears_of_each_step_in_order_and_can_tell_who_speaks(data_dir: Path) -> None:
    async with receiving() as (receiver, url), a_server(data_dir, webhooks_allow_private=True) as server:
        session_id = await create(server, url)
        await server("DELETE", "/session/class-7")
        heads = []
        events = []
        async with asyncio.timeout(20):
            while "terminated" not in events:
                headers, body = await receiver.got.get()
                told = json.loads(body)
                events.append(told["event"])
                heads.append((headers, body))

    secret = (data_dir / "webhooks.key").read_bytes()
    assert events == ["enqueued", "scheduled", "preparing", "started", "terminated"]
    assert set(told) == {"type", "event", "session_id", "when"}
    assert (told["type"], told["session_id"]) == ("session_lifecycle", session_id)
    for headers, body in heads:
        assert headers["X-Roost-Signature"] == "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    assert len({headers["X-Roost-Delivery"] for headers, _ in heads}) == len(heads)
    assert (data_dir / "webhooks.key").stat().st_mode & 0o777 == 0o600


async def test_what_was_not_taken_is_sent_again_by_whichever_server_there_is(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. the receiver fails; 2. the server stops; 3. the next one sends the same, and then what came after it."""
    async with receiving(500) as (receiver, url):
        async with a_server(data_dir, webhooks_allow_private=True) as server:
            await create(server, url, type="batch", startupCommand="ls", starts_at="1d", enqueueOnly=True)
            first = await receiver.next()
            await server("DELETE", "/session/class-7")
        monkeypatch.setattr(rules, "DELAYS_S", (0.0,))
        async with a_server(data_dir, webhooks_allow_private=True):
            again, after = await receiver.next(), await receiver.next()

    assert first == again
    assert (first["event"], after["event"]) == ("enqueued", "cancelled")


async def test_a_webhook_that_never_answers_well_is_given_up_and_its_session_says_so(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "DELAYS_S", (0.0, 0.0))
    async with receiving(302, 404, 500) as (receiver, url), a_server(data_dir, webhooks_allow_private=True) as server:
        await create(server, url, type="batch", startupCommand="ls", starts_at="1d", enqueueOnly=True)
        tries = [(await receiver.next())["event"] for _ in range(3)]
        await server("DELETE", "/session/class-7")
        after = await receiver.next()
        story = (await server("GET", "/session/class-7/history")).body

    [failure] = [one for one in story if one["code"] == "webhook-failed"]
    assert (tries, after["event"]) == (["enqueued"] * 3, "cancelled")
    assert "after 3 attempts: it answered 500" in failure["sentence"]
    assert not receiver.strayed


async def test_a_name_that_leads_inside_is_not_posted_to(data_dir: Path) -> None:
    async with receiving() as (receiver, url), a_server(data_dir) as server:
        inside = url.replace("127.0.0.1", "localhost")
        await create(server, inside, type="batch", startupCommand="ls", starts_at="1d", enqueueOnly=True)
        async with asyncio.timeout(20):
            while "webhook-failed" not in (codes := await story_of(server)):
                await asyncio.sleep(0.01)
        refused = await server("POST", "/session", NEW | {"name": "other-1", "callback_url": url})
        await server("DELETE", "/session/class-7")

    assert receiver.got.empty()
    assert codes.count("webhook-failed") == 1
    assert (refused.status, refused.slug) == (400, "invalid-api-params")
    assert "no public address" in refused.body["msg"]


async def story_of(server: Caller) -> list[str]:
    return [one["code"] for one in (await server("GET", "/session/class-7/history")).body]


async def test_a_host_that_the_operator_named_is_posted_to(data_dir: Path) -> None:
    named = frozenset({"localhost"})
    async with receiving() as (receiver, url), a_server(data_dir, webhooks_allow_private=named) as server:
        inside = url.replace("127.0.0.1", "localhost")
        await create(server, inside, type="batch", startupCommand="ls", starts_at="1d", enqueueOnly=True)
        told = await receiver.next()
        refused = await server("POST", "/session", NEW | {"name": "other-1", "callback_url": url})
        await server("DELETE", "/session/class-7")

    assert told["event"] == "enqueued"
    assert refused.status == 400


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("127.1", False),
        ("2130706433", False),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url", ["ftp://a.example", "http://", "nonsense", "http://[::1", "http://a:99999/", "http://a b/"]
)
def test_what_cannot_be_posted_to_is_no_webhook(url: str) -> None:
    with pytest.raises(InvalidParameters, match="callback_url"):
        host_of(url)


@pytest.mark.parametrize("dot", ["\u3002", "\uff0e", "\uff61"])
def test_an_address_in_disguise_is_refused(dot: str) -> None:
    with pytest.raises(InvalidParameters, match="no public address"):
        check_callback(f"http://{dot.join(('127', '0', '0', '1'))}/", False)


def test_attempts_end() -> None:
    assert [next_attempt(attempts + 1, 0.0) for attempts in range(len(DELAYS_S) + 1)] == [*DELAYS_S, None]
    assert list(DELAYS_S) == sorted(DELAYS_S)


def test_the_setting_is_a_flag_or_hosts(tmp_path: Path) -> None:
    def read(text: str, **environ: str) -> Any:
        (tmp_path / "roost.toml").write_text(f"[webhooks]\nallow_private = {text}\n")
        return load_settings({"data_dir": tmp_path}, environ=environ).webhooks_allow_private

    assert read("true") is True
    assert read('["Hook.lan"]') == {"hook.lan"}
    assert read("true", ROOST_WEBHOOKS_ALLOW_PRIVATE="a.lan, b.lan") == {"a.lan", "b.lan"}
    with pytest.raises(InvalidParameters, match="webhooks_allow_private"):
        read("[1]")
