"""Files over HTTP (spec/rest-sessions.md §9 to §11)."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import aiohttp
import pytest

from tests.servers import Caller, Reply


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    assert (await server("POST", "/session", {"name": "class-7", "image": "python"})).status == 201
    return server


def form(*files: tuple[str, bytes], quote: bool = True) -> aiohttp.FormData:
    data = aiohttp.FormData(quote_fields=quote)
    for name, content in files:
        data.add_field("src", content, filename=name, content_type="application/octet-stream")
    return data


async def upload(session: Caller, data: aiohttp.FormData) -> int:
    return (await session("POST", "/session/class-7/upload", data=data)).status


@pytest.mark.parametrize("name", ["a.txt", "some/deep/b c.txt", "ü/名.txt", "100%.txt", "a%2Fb.txt"])
async def test_names_arrive_as_they_were(session: Caller, name: str) -> None:
    assert await upload(session, form((name, b"hello"))) == 204

    result = await session.execute("class-7", f"print(open({name!r}).read())")

    assert result["console"] == [["stdout", "hello\n"]]


async def test_what_was_uploaded_is_listed_and_comes_back(session: Caller) -> None:
    await upload(session, form(("dir/a.txt", b"A" * 1000), ("b.bin", bytes(range(256)))))

    listed = (await session("GET", "/session/class-7/files", {"path": "dir"})).body
    tars = await session("GET", "/session/class-7/download", {"files": ["dir", "/home/work/b.bin"]})
    bare = await session("GET", "/session/class-7/download_single", params={"file": "b.bin"})
    posted = await session("POST", "/session/class-7/download_single", {"file": "b.bin"})

    assert [(one["filename"], one["size"], one["mode"]) for one in json.loads(listed["files"])] == [
        ("a.txt", 1000, "-rw-r--r--")
    ]
    assert (listed["errors"], listed["abspath"]) == ("", "dir")
    assert tars.headers["Content-Type"].startswith("multipart/mixed")
    assert tars.body.count(b"Content-Encoding: identity") == 2
    assert (posted.status, posted.body) == (200, bare.body)
    with tarfile.open(fileobj=io.BytesIO(bare.body)) as tar:  # clients before API version 7 get a tar
        assert tar.extractfile("b.bin").read() == bytes(range(256))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..%2Fx", "%2Fetc%2Fx"])
async def test_no_upload_leaves_the_home(session: Caller, name: str) -> None:
    assert await upload(session, form((name, b"!"), quote=False)) in (400, 403)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "link", "link/passwd"])
async def test_no_download_leaves_the_home(session: Caller, path: str) -> None:
    await session.execute("class-7", "import os; os.symlink('/etc', 'link')")

    reply = await session("GET", "/session/class-7/download", {"files": [path]})

    assert reply.status in (400, 403) or b"root:" not in reply.body


async def test_limits_are_told(session: Caller) -> None:
    large = await upload(session, form(("big", bytes(1 << 20))))
    many = await upload(session, form(*((f"f{number}", b"") for number in range(21))))
    six = await session("GET", "/session/class-7/download", {"files": ["a"] * 6})
    none = await session("GET", "/session/class-7/download", {"files": []})
    missing = await session("GET", "/session/class-7/download", {"files": ["nope"]})
    unlisted = await session("GET", "/session/class-7/files", {"path": "nope"})
    no_form = await session("POST", "/session/class-7/upload", {"a": 1})

    assert (large, many, six.status, none.status, missing.status, no_form.status) == (400,) * 6
    assert (unlisted.status, unlisted.body["files"]) == (200, "")
    assert unlisted.body["errors"]


async def raw_form(session: Caller, part: bytes) -> Reply:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    body = io.BytesIO(b"--B\r\n" + part + b"\r\n--B--\r\n")
    return await session("POST", "/session/class-7/upload", data=body, headers=headers)


async def test_names_that_are_no_utf8_can_be_told(session: Caller) -> None:
    await session.execute("class-7", "import os; os.mkdir('odd'); open(b'odd/a\\xffb', 'w').close()")

    listed = await session("GET", "/session/class-7/files", {"path": "odd"})
    refused = await raw_form(
        session, b'Content-Disposition: form-data; name="src"; filename="\xff"\r\n\r\n' + bytes(1 << 20)
    )

    assert [one["filename"] for one in json.loads(listed.body["files"])] == ["a\N{REPLACEMENT CHARACTER}b"]
    assert (refused.status, refused.slug) == (400, "invalid-api-params")


@pytest.mark.parametrize(
    "part",
    [
        b"no colon\r\n\r\nx",
        b'Content-Disposition: form-data; name="src"; filename="a"\r\nContent-Transfer-Encoding: odd\r\n\r\nx',
    ],
)
async def test_a_form_that_cannot_be_read_is_a_400(session: Caller, part: bytes) -> None:
    refused = await raw_form(session, part)

    assert (refused.status, refused.slug) == (400, "invalid-api-params")


async def test_a_packed_part_is_refused(session: Caller, data_dir: Path) -> None:
    token = json.loads((data_dir / "admin.json").read_text())["token"]
    packed = gzip.compress(bytes(500_000))
    part = b'--B\r\nContent-Disposition: attachment; filename="a"\r\nContent-Encoding: gzip\r\n\r\n' + packed
    headers = {"Content-Type": "multipart/mixed; boundary=B", "Authorization": f"Bearer {token}"}

    reply = await session("POST", "/session/class-7/upload", data=part + b"\r\n--B--\r\n", headers=headers)

    assert (reply.status, "packed" in reply.body["msg"]) == (400, True)


DEEP = """
import os
os.mkdir("top")
os.chdir("top")
for depth in range(20):
    open("here", "w").close()
    os.symlink("here", "link")
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
os.chdir("/home/work/top")
with open("z", "w") as file:
    file.write("last")
"""


async def test_a_path_that_is_too_long_does_not_break_off_a_tar(session: Caller) -> None:
    assert (await session.execute("class-7", DEEP))["console"] == []

    whole = await session("GET", "/session/class-7/files/top")
    parts = await session("GET", "/session/class-7/download", {"files": ["top"]})

    with tarfile.open(fileobj=io.BytesIO(whole.body)) as tar:
        names = tar.getnames()
        assert tar.extractfile("top/z").read() == b"last"  # type: ignore[union-attr]
    assert max(len(name) for name in names) <= 4095
    assert (names.count("top"), sum(name.endswith("/here") for name in names)) == (1, 17)
    assert sum(name.endswith("/link") for name in names) == 17
    assert parts.status == 200
