"""Requests that are sent again, since their answer was lost."""

import asyncio
from typing import Any

import pytest

from roost.server.store import idempotency
from tests.servers import Caller

NEW: dict[str, Any] = {"name": "class-7", "image": "python", "enqueueOnly": True}
KEY = {"Idempotency-Key": "k1"}


async def test_a_creation_that_is_sent_again_is_answered_with_its_session_also_after_its_end(server: Caller) -> None:
    first = await server("POST", "/session", NEW, headers=KEY)
    again = await server("POST", "/session", dict(reversed(NEW.items())), headers=KEY)
    await server("DELETE", "/session/class-7", params={"forced": "true"})
    late = await server("POST", "/session", NEW, headers=KEY)
    other_body = await server("POST", "/session", NEW | {"tag": "t"}, headers=KEY)
    other_key = await server("POST", "/session", NEW, headers={"Idempotency-Key": "k2"})

    assert (first.status, again.status, late.status) == (201, 201, 201)
    assert first.body["sessionId"] == again.body["sessionId"] == late.body["sessionId"]
    assert late.body["status"] in ("TERMINATED", "CANCELLED")
    assert (other_body.status, other_body.slug) == (409, "conflict")
    assert other_key.body["sessionId"] != first.body["sessionId"]


async def test_a_creation_in_the_query_is_done_once_too(server: Caller) -> None:
    new = {"name": "class-7", "image": "python", "enqueueOnly": "true", "reuseIfExists": "false"}

    replies = [await server("POST", "/session", params=new, headers=KEY) for _ in range(2)]

    assert [reply.status for reply in replies] == [201, 201]


@pytest.mark.parametrize("reuse", [True, False])
async def test_two_that_are_sent_at_once_make_one_session_and_get_one_answer(server: Caller, reuse: bool) -> None:
    new = NEW | {"enqueueOnly": False, "reuseIfExists": reuse}

    replies = await asyncio.gather(*[server("POST", "/session", new, headers=KEY) for _ in range(4)])

    assert [reply.status for reply in replies] == [201] * 4
    assert len({reply.body["sessionId"] for reply in replies}) == 1


async def test_a_key_that_found_a_session_finds_it_again(server: Caller) -> None:
    await server("POST", "/session", NEW)
    first = await server("POST", "/session", NEW, headers=KEY)
    again = await server("POST", "/session", NEW, headers=KEY)

    assert (first.status, again.status) == (200, 200)
    assert first.body["sessionId"] == again.body["sessionId"]


async def test_a_key_is_forgotten_in_time(server: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    await server("POST", "/session", NEW, headers=KEY)
    monkeypatch.setattr(idempotency, "KEPT_S", 0.0)

    other = await server("POST", "/session", NEW | {"name": "class-8"}, headers=KEY)

    assert (other.status, other.body["sessionName"]) == (201, "class-8")


@pytest.mark.parametrize("key", ["", "x" * 256, "\u00e9"])
async def test_a_key_that_cannot_be_used_is_refused(server: Caller, key: str) -> None:
    reply = await server("POST", "/session", NEW, headers={"Idempotency-Key": key})

    assert (reply.status, reply.slug) == (400, "invalid-api-params")


async def test_a_run_that_is_sent_again_is_one_run(server: Caller) -> None:
    await server("POST", "/session", NEW | {"enqueueOnly": False})
    first = await server("POST", "/session/class-7/runs", {"code": "1"}, headers=KEY)
    again = await server("POST", "/session/class-7/runs", {"code": "1"}, headers=KEY)
    other = await server("POST", "/session/class-7/runs", {"code": "2"}, headers=KEY)
    named = await server("POST", "/session/class-7/runs", {"code": "2", "run_id": "r1"}, headers=KEY)

    assert (first.status, again.status, other.status, named.status) == (201, 200, 409, 201)
    assert first.body["run_id"] == again.body["run_id"]
