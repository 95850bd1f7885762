"""Tells webhooks of their sessions' lives, from the outbox in the store: at least once each, in order."""

import asyncio
import socket
import time

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from roost.server.domain.sessions import Happening
from roost.server.domain.webhooks import Delivery, host_of, is_literal, is_public, next_attempt, signature_of
from roost.server.events.base import EventBus
from roost.server.scheduler.ledger import WEBHOOKS
from roost.server.store import webhooks as rows
from roost.server.store.base import Store
from roost.wire.errors import InvalidParameters

LIMIT_S = 30.0
"""Of one attempt, from the look-up of the name to the last byte of the answer's head."""
AT_ONCE = 16

_LOOK_AGAIN_S = 60.0
"""The outbox is woken by events and by its own timer; this bounds how long it waits where a look has failed."""

log = structlog.get_logger(__name__)


class NotAllowed(OSError):
    """The address is not one that this server may post to."""


class Webhooks:
    """Owns the task that empties the outbox, and those of the attempts that are under way."""

    def __init__(self, store: Store, bus: EventBus, secret: bytes, allowed: bool | frozenset[str]) -> None:
        """
        Args:
            secret: what bodies are signed with.
            allowed: whether addresses that are not of the internet at large are posted to, or for which hosts.
        """
        self._store = store
        self._bus = bus
        self._secret = secret
        self._allowed = allowed
        self._attempts: dict[str, asyncio.Task[None]] = {}
        """What is under way, by session."""
        self._emptying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin with what an earlier server left."""
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._allowed), use_dns_cache=False, force_close=True
        )
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        self._http = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._emptying = asyncio.create_task(self._empty(), name="webhooks")

    async def aclose(self) -> None:
        """Break off what is under way; it stays in the outbox. May be called twice."""
        if self._emptying is None:
            return
        tasks = [self._emptying, *self._attempts.values()]
        self._emptying = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.close()

    async def _empty(self) -> None:
        async with self._bus.subscribe(WEBHOOKS) as changes:
            while True:
                next_at = time.time() + _LOOK_AGAIN_S
                try:
                    next_at = min(next_at, await self._begin_due())
                except Exception:  # one bad look must not stop the outbox for good
                    log.exception("webhooks.failed")
                await changes.wait(next_at - time.time())

    async def _begin_due(self) -> float:
        """Begin the attempts that are due; when the next one is, in Unix time."""
        now = time.time()
        # Noted before the look: an attempt that ends during it leaves a row behind that is out of date.
        busy = set(self._attempts)
        waiting = [one for one in await self._store.read(rows.first_of_each) if one.session_id not in busy]
        for delivery in waiting:
            if delivery.next_at <= now and len(self._attempts) < AT_ONCE:
                task = asyncio.create_task(self._attempt(delivery), name=f"webhook-{delivery.id}")
                self._attempts[delivery.session_id] = task
        return min((one.next_at for one in waiting if one.next_at > now), default=now + _LOOK_AGAIN_S)

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            await self._settle(delivery, await self._post(delivery))
        except Exception:  # it stays in the outbox, and the next look takes it again
            log.exception("webhook.not_settled", session_id=delivery.session_id)
            await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            del self._attempts[delivery.session_id]
            await self._bus.publish(WEBHOOKS)

    async def _settle(self, delivery: Delivery, fault: Exception | str | None) -> None:
        if fault is None:
            await self._store.write(lambda c: rows.remove(c, delivery))
            return
        attempts, now = delivery.attempts + 1, time.time()
        next_at = None if isinstance(fault, NotAllowed) else next_attempt(attempts, now)
        log.info("webhook.refused", session_id=delivery.session_id, attempts=attempts, fault=str(fault))
        if next_at is not None:
            at = next_at
            await self._store.write(lambda c: rows.postpone(c, delivery, attempts, at))
            return
        sentence = f"its webhook was not told of {delivery.event!r}, after {attempts} attempts: {fault}"
        given_up = Happening(at=now, code="webhook-failed", sentence=sentence, hint="look at callback_url")
        await self._store.write(lambda c: rows.remove(c, delivery, given_up))

    async def _post(self, delivery: Delivery) -> Exception | str | None:
        """Make one attempt; what was wrong with it, None where it arrived."""
        body = delivery.body.encode()
        headers = {
            "Content-Type": "application/json",
            "X-Roost-Delivery": str(delivery.id),
            "X-Roost-Signature": signature_of(self._secret, body),
        }
        try:
            _check_literal(host_of(delivery.url), self._allowed)
            async with self._http.post(delivery.url, data=body, headers=headers, allow_redirects=False) as response:
                return None if 200 <= response.status < 300 else f"it answered {response.status}"
        except TimeoutError:
            return f"no answer in {LIMIT_S:g} seconds"
        except aiohttp.ClientConnectorError as error:
            return error.os_error if isinstance(error.os_error, NotAllowed) else f"no connection: {error.os_error}"
        except (aiohttp.ClientError, OSError, ValueError, InvalidParameters) as error:
            return error if isinstance(error, NotAllowed) else f"{type(error).__name__}"


def check_callback(url: str, allowed: bool | frozenset[str]) -> None:
    """Refuse at once what would never be posted to; names are looked up for each attempt.

    Raises:
        InvalidParameters: it is no URL, or an address that this server does not post to.
    """
    try:
        _check_literal(host_of(url), allowed)
    except NotAllowed as error:
        raise InvalidParameters(
            f"callback_url: {error}", hint="the setting `webhooks.allow_private` allows it"
        ) from None


class _CheckedResolver(AbstractResolver):
    """Answers with addresses that may be connected to; the connection is made to these and no others."""

    def __init__(self, allowed: bool | frozenset[str]) -> None:
        self._allowed = allowed
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if _is_named(host, self._allowed):
            return found
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise NotAllowed(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _check_literal(host: str, allowed: bool | frozenset[str]) -> None:
    if is_literal(host) and not is_public(host) and not _is_named(host, allowed):
        raise NotAllowed(f"{host} is no public address")


def _is_named(host: str, allowed: bool | frozenset[str]) -> bool:
    return allowed if isinstance(allowed, bool) else host.lower() in allowed
