"""The compatible face against a server that checks every signature."""

import asyncio
import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.client import session as session_module
from roost.client.active import api_session
from roost.client.archives import extract, place
from roost.client.config import APIConfig
from roost.client.exceptions import (
    APIVersionWarning,
    ArgumentError,
    BackendAPIError,
    BackendAPIVersionError,
    BackendClientError,
)
from roost.client.func.base import BaseFunction, api_function
from roost.client.request import Request
from roost.client.session import AsyncSession, Session
from roost.client.utils import ProgressReportingReader
from tests.unit.client_server import ACCESS_KEY, SECRET_KEY, ClientServer


@pytest.fixture
def server() -> Iterator[ClientServer]:
    with ClientServer() as running:
        running.version = "v6.20210815"
        yield running


@pytest.fixture
def config(server: ClientServer) -> APIConfig:
    return APIConfig(endpoint=server.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY)


def test_a_session_from_beginning_to_end(server: ClientServer, config: APIConfig, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a b.txt").write_bytes(b"content")
    with Session(config=config) as api:
        compute = api.ComputeSession.get_or_create("python", name="class-8")
        assert compute.created
        assert compute.id == uuid.UUID(server.sessions["class-8"])
        result = compute.execute(code="1+1", mode="query")
        assert result["console"] == [["stdout", "1+1"]]
        compute.interrupt()
        assert compute.get_info()["status"] == "RUNNING"
        assert compute.get_logs()["result"]["logs"] == "hello\n"
        compute.upload([tmp_path / "in"], basedir=tmp_path / "in")
        assert server.files == {"deep/a b.txt": b"content"}
        assert "deep/a b.txt" in compute.list_files()["files"]
        server.files["b.txt"] = b"down"
        assert compute.download(["b.txt"], dest=tmp_path) == {"file_names": ["b.txt"]}
        assert (tmp_path / "b.txt").read_bytes() == b"down"
        assert compute.destroy() == {"stats": {"status": "terminated"}}
        with pytest.raises(BackendAPIError) as caught:
            compute.get_info()
    assert caught.value.status == 404
    assert caught.value.data["type"].endswith("/session-not-found")
    assert api_session.get(None) is None


async def test_the_same_functions_are_awaited_in_an_async_session(config: APIConfig) -> None:
    async with AsyncSession(config=config) as api:
        compute = await api.ComputeSession.get_or_create("python", name="class-8")
        assert (await compute.execute("r9", "x"))["runId"] == "r9"
        assert compute.id is not None
        by_id = api.ComputeSession.from_session_id(compute.id)
        assert (await by_id.get_info())["name"] == "class-8"
        await by_id.destroy()
        assert (await api.ComputeSession.hello())["manager"] == "test"


NO_SESSIONS = ["..", ".", "...", "", "a/../b", "-a", "ü", "a" * 65]
CALLS: dict[str, Callable[[Any], Any]] = {
    "destroy": lambda compute: compute.destroy(),
    "restart": lambda compute: compute.restart(),
    "interrupt": lambda compute: compute.interrupt(),
    "complete": lambda compute: compute.complete("x"),
    "get_info": lambda compute: compute.get_info(),
    "get_logs": lambda compute: compute.get_logs(),
    "get_dependency_graph": lambda compute: compute.get_dependency_graph(),
    "execute": lambda compute: compute.execute("r1", "x"),
    "upload": lambda compute: compute.upload([__file__], basedir=Path(__file__).parent),
    "download": lambda compute: compute.download(["a"]),
    "list_files": lambda compute: compute.list_files(),
    "rename": lambda compute: compute.rename("class-8"),
}


@pytest.mark.parametrize("reference", NO_SESSIONS)
@pytest.mark.parametrize("name", CALLS)
def test_what_names_no_session_is_refused_before_anything_is_sent(
    server: ClientServer, config: APIConfig, name: str, reference: str
) -> None:
    with Session(config=config) as api:
        server.requests.clear()
        with pytest.raises(ArgumentError, match="not a session"):
            CALLS[name](api.ComputeSession(reference))
    assert server.requests == []


@pytest.mark.parametrize("reference", NO_SESSIONS)
async def test_an_async_session_refuses_it_too(server: ClientServer, config: APIConfig, reference: str) -> None:
    async with AsyncSession(config=config) as api:
        server.requests.clear()
        for call in CALLS.values():
            with pytest.raises(ArgumentError, match="not a session"):
                await call(api.ComputeSession(reference))
        with pytest.raises(ArgumentError, match="not a session"):
            api.ComputeSession(reference).stream_execute("x")
    assert server.requests == []


def test_a_path_that_leads_upwards_is_not_downloaded(server: ClientServer, config: APIConfig) -> None:
    server.is_roost = True
    with Session(config=config) as api:
        server.requests.clear()
        with pytest.raises(BackendClientError, match="leads out of /home/work"):
            api.ComputeSession("class-7").download(["../../class-8"])
    assert server.requests == []


def test_what_creation_sends(server: ClientServer, config: APIConfig) -> None:
    mounts = ["mine"]
    with Session(config=config) as api:
        api.ComputeSession.get_or_create("python", name="class-8", mounts=mounts)
    assert mounts == ["mine"]
    assert server.bodies == [
        {
            "tag": None,
            "name": "class-8",
            "image": "python",
            "owner_access_key": None,
            "domain": "default",
            "group": "default",
            "type": "interactive",
            "enqueueOnly": False,
            "maxWaitSeconds": 0,
            "reuseIfExists": True,
            "startupCommand": None,
            "starts_at": None,
            "bootstrap_script": None,
            "clusterSize": 1,
            "clusterMode": "single-node",
            "config": {
                "mounts": ["mine"],
                "environ": None,
                "resources": {},
                "resource_opts": {},
                "scalingGroup": None,
                "mount_map": {},
                "preopen_ports": None,
            },
        }
    ]


def test_later_parameters_are_sent_where_they_are_given(server: ClientServer, config: APIConfig) -> None:
    with Session(config=config) as api:
        compute = api.ComputeSession.get_or_create(
            "python", name="class-8", dependencies=["a"], callback_url="https://x.example/", architecture="x86_64"
        )
        compute.destroy(forced=True, recursive=True)
    later = {"dependencies": ["a"], "callback_url": "https://x.example/", "architecture": "x86_64"}
    assert {key: server.bodies[0].get(key) for key in later} == later
    assert server.requests[-1][1].endswith("?forced=true&recursive=true")


def test_a_creation_whose_connection_breaks_is_repeated_with_its_key(server: ClientServer, config: APIConfig) -> None:
    server.is_roost, server.lose_creations = True, 1
    with Session(config=config) as api:
        assert api.ComputeSession.get_or_create("python", name="class-8").id is not None
        server.lose_creations = 2
        with pytest.raises(BackendClientError):
            api.ComputeSession.get_or_create("python", name="class-9")
    assert server.keys[0] == server.keys[1] != server.keys[2] == server.keys[3]
    assert None not in server.keys


def test_a_creation_is_sent_once_to_servers_that_would_not_recognise_it(
    server: ClientServer, config: APIConfig
) -> None:
    server.lose_creations = 1
    with Session(config=config) as api, pytest.raises(BackendClientError):
        api.ComputeSession.get_or_create("python", name="class-8")
    assert server.keys == [None]


def test_a_newer_server_of_ours_is_no_reason_to_warn(server: ClientServer, config: APIConfig) -> None:
    server.version, server.is_roost = "v7.20230615", True
    with Session(config=config) as api:  # warnings are errors here
        assert (api.api_version, api.is_roost) == ((6, "20210815"), True)


def test_what_is_not_available_says_so_and_what_to_do(config: APIConfig) -> None:
    with Session(config=config) as api:
        with pytest.raises(BackendAPIVersionError, match="roost ps"):
            api.ComputeSession.paginated_list(status="RUNNING")
        with pytest.raises(BackendAPIVersionError, match="roost shell"):
            api.ComputeSession("class-8").stream_pty()


def test_a_reader_tells_a_bar_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"line\n" + bytes(95))
    told: list[int] = []

    class Bar:
        def update(self, n: int) -> None:
            told.append(n)

    with ProgressReportingReader(tmp_path / "file", tqdm_instance=Bar()) as reader:
        assert reader.readline() == b"line\n"
        assert reader.read(5) == bytes(5)
        assert reader.readinto(bytearray(10)) == 10
        assert len(reader.read1(10)) <= 10
        reader.read()
    assert told[:3] == [5, 5, 10]
    assert sum(told) == 100
    with ProgressReportingReader(tmp_path / "file") as alone:  # stderr is no terminal here
        assert len(alone.read()) == 100


def test_wrong_arguments_are_refused_before_anything_is_sent(
    server: ClientServer, config: APIConfig, tmp_path: Path
) -> None:
    with Session(config=config) as api:
        compute = api.ComputeSession("class-8")
        with pytest.raises(AssertionError):
            api.ComputeSession.get_or_create("python", name="no")
        with pytest.raises(AssertionError):
            compute.execute(mode="query")
        with pytest.raises(BackendClientError):
            compute.execute(code="", mode="dance")
        with pytest.raises(ValueError, match="beneath"):
            compute.upload(["/etc/hostname"], basedir=tmp_path)
    assert server.requests == [("GET", "/")]


def test_both_kinds_of_fetch_work_in_a_blocking_session(config: APIConfig) -> None:
    async def elsewhere() -> str:
        async with Request("GET", "/").fetch() as response:
            assert response.content_type == "application/json"
            text = await response.text()
            assert (await response.json())["manager"] == "test"
            return text

    with Session(config=config):
        with Request("GET", "/").fetch() as response:
            assert response.json()["manager"] == "test"
        assert "manager" in asyncio.run(elsewhere())


@pytest.mark.parametrize("params", [{"scope": "*", "sessionName": "a b/ü"}, {"q": "1&2=3%"}])
def test_queries_are_signed_as_they_are_sent(config: APIConfig, params: dict[str, str]) -> None:
    with Session(config=config), Request("GET", "/", params=params).fetch() as response:
        assert response.status == 200


def test_a_wrong_key_is_an_api_error(server: ClientServer) -> None:
    config = APIConfig(endpoint=server.endpoint, access_key=ACCESS_KEY, secret_key="wrong")
    with Session(config=config) as api, pytest.raises(BackendAPIError) as caught:
        api.ComputeSession("class-8").get_info()
    assert caught.value.status == 401
    assert str(caught.value) == repr(caught.value)


def test_the_next_endpoint_is_tried_and_then_the_client_gives_up(server: ClientServer) -> None:
    keys: dict[str, Any] = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    with Session(config=APIConfig(endpoint=f"http://127.0.0.1:1,{server.endpoint}", **keys)) as api:
        assert api.ComputeSession.hello()["manager"] == "test"
    with Session(config=APIConfig(endpoint="http://127.0.0.1:1", **keys)) as api, pytest.raises(BackendClientError):
        api.ComputeSession.hello()


def test_sessions_nest_and_their_functions_stay_with_them(server: ClientServer, config: APIConfig) -> None:
    with Session(config=config) as outer:
        with Session(config=config) as inner:
            assert api_session.get() is inner
            assert outer.ComputeSession.hello()["manager"] == "test"
        assert api_session.get() is outer
    with pytest.raises(AssertionError), outer:
        pass
    outer.close()


def test_a_newer_server_warns_and_the_older_version_is_used(server: ClientServer, config: APIConfig) -> None:
    server.version = "v7.20230615"
    api = Session(config=config)
    with pytest.warns(APIVersionWarning, match="newer"):
        api._worker.call(api._negotiate())
    api.close()
    assert api.api_version == (6, "20210815")


def test_negotiation_is_looked_up_when_a_session_opens(config: APIConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def negotiate(http_session: object, config: object) -> tuple[int, str]:
        return 5, "20191215"

    monkeypatch.setattr(session_module, "_negotiate_api_version", negotiate)
    with Session(config=config) as api:
        assert api.api_version == (5, "20191215")
    with Session(config=config, proxy_mode=True) as api:
        assert api.api_version == (6, "20210815")


def test_an_announcement_is_handed_over(server: ClientServer) -> None:
    heard: list[str] = []
    server.announcement = {"enabled": True, "message": "closed on Sunday"}
    keys: dict[str, Any] = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    with Session(config=APIConfig(endpoint=server.endpoint, announcement_handler=heard.append, **keys)):
        pass
    assert heard == ["closed on Sunday"]


class Counter(BaseFunction):
    """API functions of somebody else's making."""

    @api_function
    @classmethod
    async def up_to(cls, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number

    @api_function
    async def leave(self) -> None:
        raise SystemExit(3)


def test_generators_and_even_exits_reach_a_blocking_caller(config: APIConfig) -> None:
    counter: Any = Counter
    with Session(config=config):
        assert list(counter.up_to(3)) == [0, 1, 2]
        for number in counter.up_to(1000):
            if number == 2:
                break
        with pytest.raises(SystemExit):
            counter().leave()
        assert list(counter.up_to(1)) == [0]


def archive_of(*entries: tuple[str, bytes, str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as tar:
        for name, kind, target in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, target, 0o777 if kind == tarfile.DIRTYPE else 0o4777
            tar.addfile(entry, io.BytesIO())
    return file.getvalue()


FILE, LINK, FOLDER = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
ESCAPES = {
    "up": [("../outside", FILE, "")],
    "up within": [("a/../../outside", FILE, "")],
    "absolute": [("/tmp/roost-outside", FILE, "")],
    "hard link": [("link", tarfile.LNKTYPE, "/etc/hostname")],
    "device": [("null", tarfile.CHRTYPE, "")],
    "pipe": [("pipe", tarfile.FIFOTYPE, "")],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_an_archive_never_leaves_its_folder(tmp_path: Path, name: str) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    with pytest.raises(BackendClientError):
        extract(archive_of(("good", FILE, ""), *ESCAPES[name]), dest)
    assert list(dest.iterdir()) == []
    assert list(tmp_path.iterdir()) == [dest]


@pytest.mark.parametrize("target", ["../outside", "/etc", "a/b/../../outside"])
def test_links_that_lead_outside_are_left_out_and_said(tmp_path: Path, target: str) -> None:
    entries = [("a", FOLDER, ""), ("a/b", LINK, ".."), ("out", LINK, target), ("good", FILE, "")]

    with pytest.warns(UserWarning, match="'out' leads outside"):
        names = extract(archive_of(*entries), tmp_path)

    assert names == ["a", "a/b", "good"]
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "good").is_file()


def test_what_has_too_long_a_path_here_is_left_out_and_said(tmp_path: Path) -> None:
    deep = "/".join(["d" * 250] * 16)
    long = f"{deep}/{'f' * 70}"
    archive = archive_of(("a", FILE, ""), (long, FILE, ""), ("z", FILE, ""))

    with pytest.warns(UserWarning, match="is too long here"):
        names = extract(archive, tmp_path / "dest")

    assert names == ["a", "z"]


def test_links_out_of_a_downloaded_folder_are_left_out(tmp_path: Path) -> None:
    archive = archive_of(("f", FOLDER, ""), ("f/d", FOLDER, ""), ("f/out", LINK, "../x"), ("f/d/in", LINK, "../good"))

    with pytest.warns(UserWarning, match="'out' leads outside"):
        names = place(io.BytesIO(archive), tmp_path / "f", is_folder=True)

    assert names == ["f", "f/d", "f/d/in"]
    assert not (tmp_path / "f/out").is_symlink()


def test_links_that_stay_inside_are_kept_and_never_written_through(tmp_path: Path) -> None:
    inside = [("d", FOLDER, ""), ("d/l", LINK, "../f"), ("f", FILE, ""), ("e", LINK, "d"), ("e/x", FILE, "")]
    names = [name for name, _, _ in inside]
    assert extract(archive_of(*inside[:4]), tmp_path) == names[:4]
    assert (tmp_path / "d/l").resolve() == tmp_path / "f"
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o755
    with pytest.raises(BackendClientError, match="link"):
        extract(archive_of(inside[4]), tmp_path)
    assert not (tmp_path / "d/x").exists()
