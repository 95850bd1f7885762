"""Uploads and downloads of the SDK over connections that break."""

import contextlib
import functools
import io
import os
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from roost.client import api as client_api
from roost.client.api import Api, Target
from roost.client.config import APIConfig
from roost.client.errors import Unreachable
from roost.client.repeats import again
from roost.client.session import AsyncSession
from tests.relay import Cut, Relay, a_relay
from tests.servers import Caller

FILES = "/session/class-7/files"
SIZE = 8 << 20


@pytest.fixture
async def relay(server: Caller) -> AsyncIterator[Relay]:
    """A way to a server with a running session `class-7`."""
    assert (await server("POST", "/session", {"name": "class-7", "image": "python"})).status == 201
    async with a_relay(server.target.endpoint) as relay:
        yield relay


@pytest.fixture
async def api(server: Caller, relay: Relay) -> AsyncIterator[Api]:
    async with Api(msgspec.structs.replace(server.target, endpoint=relay.endpoint)) as api:
        yield api


@pytest.fixture
async def compute(server: Caller, relay: Relay) -> AsyncIterator[Any]:
    """The session of that name, by the compatible class."""
    target = server.target
    config = APIConfig(endpoint=relay.endpoint, access_key=target.access_key, secret_key=target.secret_key)
    async with AsyncSession(config=config) as session:
        yield session.ComputeSession("class-7")


class RecordingApi(Api):
    """Remembers the further headers of what it sends."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.sent: list[Mapping[str, str]] = []

    def _send(self, *arguments: Any, **options: Any) -> Any:
        self.sent.append(options["more"])
        return super()._send(*arguments, **options)


async def test_an_upload_that_broke_off_is_sent_again(server: Caller, relay: Relay, api: Api, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "a").write_bytes(content)
    relay.cuts += [Cut(up=1 << 20), Cut(down=0)]

    await api.put_file("class-7", "a", tmp_path / "a")

    assert (await server("GET", f"{FILES}/a")).body == content
    assert not relay.cuts


async def test_what_can_be_read_once_is_sent_once(relay: Relay, api: Api, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # its reader gives up
            (tmp_path / "a").write_bytes(b"x" * (1 << 20))

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    relay.cuts += [Cut(up=1 << 18)]

    with pytest.raises(Unreachable):
        await api.put_file("class-7", "a", tmp_path / "a")

    writing.join(10)


async def test_a_download_goes_on_where_it_broke_off(server: Caller, relay: Relay, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    await server("PUT", f"{FILES}/a", data=io.BytesIO(content))
    relay.cuts += [Cut(down=2 << 20, arrives=True)] * 3

    async with RecordingApi(msgspec.structs.replace(server.target, endpoint=relay.endpoint)) as api:
        await api.get_file("class-7", "a", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == content
    starts = [int(headers.get("Range", "bytes=0-")[len("bytes=") : -1]) for headers in api.sent]
    assert starts[0] == 0 < starts[1] < starts[2] < starts[3]


async def test_a_file_that_has_changed_since_comes_anew(
    server: Caller, relay: Relay, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server("PUT", f"{FILES}/a", data=io.BytesIO(os.urandom(SIZE)))
    content = os.urandom(SIZE + 1)
    relay.cuts += [Cut(down=2 << 20)]

    async def change(self: object) -> None:
        await server("PUT", f"{FILES}/a", data=io.BytesIO(content))

    monkeypatch.setattr(client_api._Patience, "wait", change)
    await api.get_file("class-7", "a", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == content


async def test_a_folder_that_broke_off_comes_anew(server: Caller, relay: Relay, api: Api, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    await server("PUT", f"{FILES}/d/a", data=io.BytesIO(content))
    relay.cuts += [Cut(down=2 << 20)] * 2

    await api.get_file("class-7", "d", tmp_path / "d")

    assert (tmp_path / "d" / "a").read_bytes() == content
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a"]


@pytest.mark.parametrize("size", [1000, SIZE], ids=["form", "alone"])
async def test_the_compatible_upload_is_sent_again(
    server: Caller, relay: Relay, compute: Any, tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    relay.cuts += [Cut(up=size // 2), Cut(down=0)]
    relay.drop()

    await compute.upload(["a"], basedir=tmp_path)

    assert (await server("GET", f"{FILES}/a")).body == content
    assert not relay.cuts


async def test_the_compatible_download_comes_again(server: Caller, relay: Relay, compute: Any, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    await server("PUT", f"{FILES}/a", data=io.BytesIO(content))
    relay.cuts += [Cut(down=2 << 20)] * 2
    relay.drop()

    assert await compute.download(["a"], dest=tmp_path) == {"file_names": ["a"]}

    assert (tmp_path / "a").read_bytes() == content
    assert not relay.cuts


async def test_a_bar_shows_what_came_once(server: Caller, relay: Relay, compute: Any, tmp_path: Path) -> None:
    await server("PUT", f"{FILES}/a", data=io.BytesIO(os.urandom(SIZE)))
    relay.cuts += [Cut(down=2 << 20, arrives=True)]
    relay.drop()
    told: list[int] = []

    class Bar:
        def update(self, n: int) -> None:
            told.append(n)

    await again(functools.partial(compute._download_alone, "a", tmp_path), Bar())

    assert min(told) < 0
    assert sum(told) == SIZE
