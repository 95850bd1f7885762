"""Files as resources of their own."""

import io
import os
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest

from roost.client.api import build_headers, build_url
from tests.servers import Caller

FILES = "/session/class-7/files"


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    assert (await server("POST", "/session", {"name": "class-7", "image": "python"})).status == 201
    return server


async def test_a_file_of_any_size_goes_in_and_comes_out(session: Caller) -> None:
    content = os.urandom(5 << 20)

    first = await session("PUT", f"{FILES}/deep/big.bin", data=io.BytesIO(content))
    again = await session("PUT", f"{FILES}/deep/big.bin", data=io.BytesIO(content))
    owner = await session.execute("class-7", "import os; print(os.stat('deep/big.bin').st_uid == os.getuid())")
    back = await session("GET", f"{FILES}/deep/big.bin")
    head = await session("HEAD", f"{FILES}/deep/big.bin")

    assert (first.status, again.status) == (201, 204)
    assert owner["console"] == [["stdout", "True\n"]]
    assert back.body == content
    assert (head.body, head.headers["Content-Length"], head.headers["ETag"]) == (
        b"",
        str(len(content)),
        back.headers["ETag"],
    )


@pytest.mark.parametrize(
    ("wanted", "status", "start", "stop"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=90-", 206, 90, 100),
        ("bytes=-5", 206, 95, 100),
        ("bytes=50-1000", 206, 50, 100),
        ("bytes=-1000", 206, 0, 100),
        ("bytes=0-1,5-6", 200, 0, 100),
        ("bytes=-", 200, 0, 100),
    ],
)
async def test_parts_of_a_file(session: Caller, wanted: str, status: int, start: int, stop: int) -> None:
    content = bytes(range(100))
    await session("PUT", f"{FILES}/a", data=content)

    reply = await session("GET", f"{FILES}/a", headers={"Range": wanted})

    assert (reply.status, reply.body) == (status, content[start:stop])
    if status == 206:
        assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/100"


async def test_a_part_beyond_the_end_or_of_another_version_is_not_given(session: Caller) -> None:
    await session("PUT", f"{FILES}/a", data=b"x" * 100)

    beyond = await session("GET", f"{FILES}/a", headers={"Range": "bytes=100-"})
    other = await session("GET", f"{FILES}/a", headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    nonsense = await session("GET", f"{FILES}/a", headers={"Range": "lines=1-2"})

    assert (beyond.status, beyond.headers["Content-Range"]) == (416, "bytes */100")
    assert (other.status, len(other.body)) == (200, 100)
    assert nonsense.status == 400


async def test_an_upload_that_breaks_off_changes_nothing(session: Caller, caplog: pytest.LogCaptureFixture) -> None:
    await session("PUT", f"{FILES}/a", data=b"before")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        raise OSError("the line is cut")

    url = build_url(session.target, f"{FILES}/a")
    headers = build_headers(session.target, "PUT", url, "application/octet-stream", datetime.now(UTC))
    with pytest.raises((aiohttp.ClientError, OSError)):
        await session.http.put(url, data=broken(), headers=headers)

    left = await session.execute("class-7", "import os; print(open('a').read(), os.listdir())")
    while "upload" in str(left["console"]):
        left = await session.execute("class-7", "import os; print(open('a').read(), os.listdir())")
    assert left["console"] == [["stdout", "before ['a']\n"]]
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_folder_is_a_tar(session: Caller) -> None:
    await session.execute(
        "class-7",
        "import os\nos.makedirs('d/e'); open('d/e/f', 'w').write('hi'); os.symlink('f', 'd/e/link')\n"
        "os.mkfifo('d/pipe'); open('d/ü', 'w').close(); open('d/' + 'n' * 200, 'w').close()",
    )

    reply = await session("GET", f"{FILES}/d")
    whole = await session("GET", f"{FILES}/")

    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        assert sorted(tar.getnames()) == sorted(["d", "d/" + "n" * 200, "d/e", "d/e/f", "d/e/link", "d/ü"])
        assert tar.extractfile("d/e/f").read() == b"hi"  # type: ignore[union-attr]
        assert tar.getmember("d/e/link").linkname == "f"
    assert reply.headers["Content-Type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(whole.body)) as tar:
        assert "work/d/e/f" in tar.getnames()


async def test_files_and_empty_folders_are_removed(session: Caller) -> None:
    await session("PUT", f"{FILES}/d/a", data=b"")

    full = await session("DELETE", f"{FILES}/d")
    steps = [(await session("DELETE", f"{FILES}/{path}")).status for path in ("d/a", "d/a", "d")]

    assert full.status == 400
    assert "not empty" in full.body["msg"].lower()
    assert steps == [204, 400, 204]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "link/passwd", "link", "a%00b", "..%2F..%2Fetc%2Fpasswd", "."])
async def test_nothing_outside_of_the_home_is_read_written_or_removed(session: Caller, path: str) -> None:
    await session.execute("class-7", "import os; os.symlink('/etc', 'link')")

    for method in ("GET", "PUT", "DELETE"):
        reply = await session(method, f"{FILES}/{path}", data=b"!" if method == "PUT" else None)
        assert reply.status != 500, method
        assert b"root:" not in (reply.body if isinstance(reply.body, bytes) else b"")
    assert (await session("GET", "/session/class-7")).status == 200


async def test_a_link_may_be_removed_and_replaced_but_is_not_followed(session: Caller) -> None:
    await session.execute("class-7", "import os; open('t', 'w').write('t'); os.symlink('t', 'link')")

    read = await session("GET", f"{FILES}/link")
    replaced = await session("PUT", f"{FILES}/link", data=b"new")
    shown = await session.execute("class-7", "print(open('t').read(), open('link').read(), os.path.islink('link'))")

    assert (read.status, replaced.status) == (403, 204)
    assert shown["console"] == [["stdout", "t new False\n"]]


async def test_what_the_system_refuses_is_told(session: Caller) -> None:
    await session("PUT", "/session/class-7/files/a", data=b"x")
    replies = [
        await session(method, f"/session/class-7/{path}", data=data)
        for method, path, data in (
            ("PUT", "files/" + "n" * 300, b"x"),
            ("PUT", "files/" + "n" * 300 + "/a", b"x"),
            ("PUT", "files/a/b", b"x"),
            ("DELETE", "files/" + "n" * 300, None),
            ("GET", "files?path=a", None),
        )
    ]

    assert [reply.status for reply in replies] == [400, 400, 400, 400, 200]
    assert replies[-1].body["errors"] == "there is no a in the session: Not a directory"
