"""One reader is disconnected again and again while its run writes and asks for input; its events are whole.

A hundred times in 15 MB here, in about 10 s; a thousand times in 50 MB in the soak.
"""

import itertools
import json
import os
import random
from datetime import UTC, datetime

import pytest

from roost.client.api import build_headers, build_url
from roost.client.sse import SSEMessage, SSEParser
from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

PROMPTS = 10
CODE = """
number = 0
for part in range(%(prompts)d):
    for _ in range(%(lines)d):
        number += 1
        print(f'{number:099}')
    print('got', input(f'part {part}? '))
"""


class Reader:
    """Reads a run's events, answers its prompts, and goes on after the last event it saw."""

    def __init__(self, caller: Caller, run_id: str) -> None:
        self._caller = caller
        self._run_id = run_id
        self.seen: list[SSEMessage] = []

    @property
    def has_ended(self) -> bool:
        return bool(self.seen) and self.seen[-1].event == "end"

    async def read(self, limit: int | None = None) -> None:
        """On one connection: up to the end, or until so many bytes came, wherever that is."""
        after = self.seen[-1].id if self.seen else "0"
        url = build_url(self._caller.target, f"/session/class-7/runs/{self._run_id}/events", {"after": str(after)})
        headers = build_headers(self._caller.target, "GET", url, None, datetime.now(UTC))
        parser, size = SSEParser(), 0
        async with self._caller.http.get(url, headers=headers, skip_auto_headers=("Content-Type",)) as raw:
            assert raw.status == 200
            async for chunk in raw.content.iter_any():
                kept = chunk if limit is None else chunk[: limit - size]
                size += len(kept)
                for message in parser.feed(kept):
                    await self._take(message)
                if size == limit:
                    raw.close()
                    return

    async def _take(self, message: SSEMessage) -> None:
        if message.id is None:
            return
        self.seen.append(message)
        if message.event == "prompt":
            number = json.loads(message.data)["prompt"]
            body = {"prompt": number, "text": f"answer {number}"}
            reply = await self._caller("POST", f"/session/class-7/runs/{self._run_id}/input", body)
            assert reply.status == 204, reply.body

    def told(self) -> list[tuple[str, str]]:
        """Kinds and contents; pieces of one stream are one, since where it is cut is chance. Without the cost."""
        parts = []
        for kind, messages in itertools.groupby(self.seen, key=lambda message: message.event):
            texts = [message.data for message in messages]
            if kind == "stdout":
                texts = ["".join(map(json.loads, texts))]
            if kind == "end":
                texts = [json.loads(text)["status"] for text in texts]
            parts += [(str(kind), text) for text in texts]
        return parts


async def come_and_go(server: Caller, times: int, total: int) -> None:
    seed = int(os.environ.get("ROOST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed} (ROOST_SEED repeats it)")
    chance = random.Random(seed)
    await server("POST", "/session", {"name": "class-7", "image": "python"})
    readers = []
    for run_id in ("disturbed", "undisturbed"):
        await server(
            "POST",
            "/session/class-7/runs",
            {"run_id": run_id, "code": CODE % {"prompts": PROMPTS, "lines": total // PROMPTS // 100}},
        )
        readers.append(Reader(server, run_id))
        for _ in range(times if run_id == "disturbed" else 0):
            await readers[-1].read(limit=chance.randrange(1, total // times))
            assert not readers[-1].has_ended
        await readers[-1].read()
    disturbed, undisturbed = readers
    again = Reader(server, "disturbed")
    again.seen = await server.events("class-7", "disturbed")

    assert [message.id for message in disturbed.seen] == [str(seq + 1) for seq in range(len(disturbed.seen))]
    assert disturbed.seen == again.seen
    assert disturbed.told() == undisturbed.told()
    assert sum(len(text) for kind, text in undisturbed.told() if kind == "stdout") >= total
    assert sum(kind == "input" for kind, _ in undisturbed.told()) == PROMPTS


async def test_a_reader_that_goes_a_hundred_times_misses_nothing_and_sees_nothing_twice(
    server: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    await come_and_go(server, times=100, total=15_000_000)

    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif("ROOST_SOAK" not in os.environ, reason="a long run: `make soak` does it")
async def test_a_reader_that_goes_a_thousand_times_misses_nothing_and_sees_nothing_twice(server: Caller) -> None:
    await come_and_go(server, times=1000, total=50_000_000)
