"""The SDK's WebSockets against a real server."""

import json
from typing import Any

import pytest

from roost.client.config import APIConfig
from roost.client.exceptions import ArgumentError, BackendAPIError, BackendClientError
from roost.client.session import AsyncSession
from tests.servers import Caller


def config(server: Caller) -> APIConfig:
    target = server.target
    return APIConfig(endpoint=target.endpoint, access_key=target.access_key, secret_key=target.secret_key)


@pytest.mark.filterwarnings("ignore:the server is newer")
async def test_code_is_run_over_a_stream_and_asks_for_input(server: Caller) -> None:
    frames: list[dict[str, Any]] = []
    async with AsyncSession(config=config(server)) as api:
        session = await api.ComputeSession.get_or_create("python", name="class-7")
        async with session.stream_execute("print('hi', input('who? '))") as stream:
            async for message in stream:
                frames.append(json.loads(message.data))
                if frames[-1]["status"] == "waiting-input":
                    await stream.send_str("Ann")
        await session.destroy()

    assert frames[-1]["status"] == "finished"
    assert "".join(text for frame in frames for _, text in frame["console"]) == "who? hi Ann\n"


@pytest.mark.filterwarnings("ignore:the server is newer")
async def test_a_refused_handshake_says_what_the_server_said(server: Caller) -> None:
    async with AsyncSession(config=config(server)) as api:
        with pytest.raises(BackendClientError) as refused:
            await api.ComputeSession("nobody").stream_execute("1").__aenter__()
        with pytest.raises(BackendClientError, match="mode"):
            api.ComputeSession("nobody").stream_execute("1", mode="nope")

    assert isinstance(refused.value, BackendAPIError)
    assert (refused.value.status, refused.value.data["type"].rpartition("/")[2]) == (404, "session-not-found")


def test_streams_are_for_async_sessions_only() -> None:
    from roost.client.session import Session

    with Session(config=APIConfig(endpoint="http://127.0.0.1:1"), proxy_mode=True) as api, pytest.raises(ArgumentError):
        api.ComputeSession("class-7").stream_execute("1")
