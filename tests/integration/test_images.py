"""Images with packages: built by a real uv from wheels that the tests make, seen by real sandboxes."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.agent.environments import EnvironmentStore
from roost.agent.interpreters import find_interpreters
from roost.agent.sweep import remove_tree
from roost.client.api import Target
from roost.server.auth.secrets import SecretBox, new_access_key, new_secret_key
from roost.server.store import accounts
from roost.server.store.sql import SqlStore
from roost.server.store.tables import images
from roost.wire.environments import Environment, EnvironmentRequest
from tests.packages import a_wheel, only_wheels_of, wheels_behind_a_password
from tests.servers import Caller, a_server

LATER = '[project]\ndependencies = ["tool"]\nrequires-python = ">=3.99"\n'


@pytest.fixture(autouse=True)
def index(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all there is: `tool` 1 and 2."""
    folder = data_dir / "wheels"
    folder.mkdir()
    a_wheel(folder, "tool", "1")
    a_wheel(folder, "tool", "2")
    only_wheels_of(folder, monkeypatch)
    return folder


async def built(server: Caller, name: str, requirements: str, **more: Any) -> dict[str, Any]:
    messages = await server.build(name, requirements, **more)
    assert messages[-1].event == "image", messages
    image: dict[str, Any] = json.loads(messages[-1].data)
    return image


async def problem_of(server: Caller, name: str, requirements: str) -> dict[str, Any]:
    messages = await server.build(name, requirements)
    assert messages[-1].event == "problem", messages
    problem: dict[str, Any] = json.loads(messages[-1].data)
    return problem


async def a_session(server: Caller, image: str, name: str = "class-7") -> None:
    made = await server("POST", "/session", {"name": name, "image": image})
    assert made.status == 201, made.body


async def printed(server: Caller, code: str, name: str = "class-7") -> str:
    result = await server.execute(name, code)
    return "".join(text for _, text in result["console"])


def folders(data_dir: Path, name: str) -> list[str]:
    return sorted(path.name for path in (data_dir / "images" / name).iterdir())


async def test_packages_are_there_for_the_kernel_its_children_and_batch_runs(server: Caller) -> None:
    image = await built(server, "analysis:1", "tool<2\n")
    await a_session(server, "analysis:1")

    kernel = await printed(server, "import tool; print(tool.version)")
    child = await printed(
        server, "import subprocess; print(subprocess.getoutput('python -c \"import tool; print(tool.version)\"'))"
    )
    same = await printed(
        server,
        "import sys, subprocess; _ = subprocess.call([sys.executable, '-c', 'import tool; print(tool.version)'])",
    )
    script = await printed(server, "import shutil; print(shutil.which('tool'))")
    await server("PUT", "/session/class-7/files/main.py", data=b"import tool; print(tool.version)")
    started = await server(
        "POST", "/session/class-7/runs", {"mode": "batch", "run_id": "one", "options": {"exec": "*"}}
    )
    batch = "".join(json.loads(e.data) for e in await server.events("class-7", "one") if e.event == "stdout")

    assert (kernel, child, same, script) == ("1\n", "1\n", "1\n", "/opt/roost/env/bin/tool\n")
    assert (started.status, batch) == (201, "1\n")
    assert image["kind"] == "environment"
    assert image["base"].startswith("python:3.")


async def test_without_isolation_packages_are_found_by_their_place(server: Caller, data_dir: Path) -> None:
    image = await built(server, "analysis:1", "tool")
    body = {"name": "class-7", "image": "analysis:1", "config": {"resource_opts": {"runtime": "process"}}}
    assert (await server("POST", "/session", body)).status == 201

    places = (await printed(server, "import sys, tool, shutil; print(tool.__file__, shutil.which('tool'))")).split()

    assert [Path(place).is_relative_to(data_dir / "images" / "envs" / image["digest"]) for place in places] == [
        True
    ] * 2


async def test_nobody_can_write_to_packages(server: Caller, data_dir: Path) -> None:
    image = await built(server, "analysis:1", "tool")

    for folder, names, files in os.walk(data_dir / "images" / "envs" / image["digest"]):
        for path in (Path(folder), *(Path(folder, name) for name in (*names, *files))):
            mode = path.lstat().st_mode
            assert stat.S_ISLNK(mode) or mode & 0o222 == 0, path


async def test_equal_contents_are_built_once_and_shared(server: Caller, data_dir: Path) -> None:
    first, second = await asyncio.gather(
        built(server, "one:1", "tool==2"), built(server, "two:1", "# the same\ntool == 2.0")
    )

    assert first["digest"] == second["digest"]
    assert folders(data_dir, "envs") == [first["digest"]]
    assert folders(data_dir, "staging") == []
    await server("DELETE", "/image/one:1")
    await a_session(server, "two:1")
    assert await printed(server, "import tool; print(tool.version)") == "2\n"


async def test_what_is_in_use_is_not_removed(server: Caller, data_dir: Path) -> None:
    await built(server, "analysis:1", "tool")
    await a_session(server, "analysis:1")

    refused = await server("DELETE", "/image/analysis:1")
    await server("DELETE", "/session/class-7")
    removed = await server("DELETE", "/image/analysis:1")

    assert (refused.status, refused.slug) == (409, "conflict")
    assert "class-7" in refused.body["msg"]
    assert removed.status == 204
    assert folders(data_dir, "envs") == []
    assert (await server("POST", "/session", {"name": "class-8", "image": "analysis:1"})).slug == "image-not-found"


def cached(data_dir: Path) -> set[str]:
    """The modules that uv's cache has."""
    return {path.name for path in (data_dir / "images" / "uv-cache").rglob("*.py")}


async def test_the_cache_keeps_what_other_images_are_made_of(server: Caller, data_dir: Path, index: Path) -> None:
    a_wheel(index, "extra", "1")
    await built(server, "both:1", "tool==2\nextra")
    await built(server, "one:1", "tool==2")
    await a_session(server, "one:1")

    await server("DELETE", "/image/both:1")

    assert cached(data_dir) == {"tool.py"}
    assert await printed(server, "import tool; print(tool.version)") == "2\n"
    await built(server, "both:2", "tool==2\nextra")
    await a_session(server, "both:2", "class-8")
    assert await printed(server, "import tool, extra; print(tool.version, extra.version)", "class-8") == "2 1\n"


async def test_an_older_version_leaves_the_cache_and_the_newer_one_stays_whole(server: Caller, data_dir: Path) -> None:
    await built(server, "old:1", "tool==1")
    await built(server, "new:1", "tool==2")

    await server("DELETE", "/image/old:1")
    await a_session(server, "new:1")

    assert cached(data_dir) == set()
    assert await printed(server, "import tool; print(tool.version)") == "2\n"


async def test_the_last_image_takes_the_whole_cache_along(server: Caller, data_dir: Path) -> None:
    await built(server, "one:1", "tool")

    await server("DELETE", "/image/one:1")

    assert not any((data_dir / "images" / "uv-cache").rglob("*.msgpack"))
    await built(server, "one:1", "tool")
    assert stat.S_IMODE((data_dir / "images" / "uv-cache").stat().st_mode) == 0o700


async def test_nothing_leaves_the_cache_while_something_is_built(data_dir: Path) -> None:
    python = find_interpreters()[0]
    (data_dir / "images").mkdir()
    store = EnvironmentStore(data_dir / "images")
    await store.open()
    [old] = await every_step(store.build(EnvironmentRequest(interpreter=python, requirements="tool==1")))
    building = store.build(EnvironmentRequest(interpreter=python, requirements="tool==2"))
    await anext(building)

    await store.remove(old)
    kept = cached(data_dir)
    [new] = await every_step(building)
    await store.remove(new)

    assert kept == {"tool.py"}
    assert cached(data_dir) == set()


async def test_what_a_failed_build_has_brought_leaves_the_cache(server: Caller, data_dir: Path, index: Path) -> None:
    a_wheel(index, "Big.Extra", "1")
    a_wheel(index, "deep", "1", {"d/" * 1000 + "deep.txt": ""})
    await built(server, "one:1", "tool==2")

    await problem_of(server, "two:1", "big-extra==1\ntool==2\ndeep")

    assert cached(data_dir) == {"tool.py"}


async def test_what_a_build_that_was_given_up_has_brought_leaves_the_cache(data_dir: Path) -> None:
    (data_dir / "images").mkdir()
    store = EnvironmentStore(data_dir / "images")
    await store.open()
    python = find_interpreters()[0]
    building = store.build(EnvironmentRequest(interpreter=python, requirements="tool==1"))
    beside = store.build(EnvironmentRequest(interpreter=python, requirements="tool==2"))
    async for line in building:
        if "Installed" in str(line):
            break
    await anext(beside)

    await building.aclose()
    kept = cached(data_dir)
    await beside.aclose()

    assert (kept, cached(data_dir)) == ({"tool.py"}, set())


async def every_step(building: AsyncIterator[str | Environment]) -> list[str]:
    """Build to the end; the digest of what was built."""
    return [step.digest async for step in building if isinstance(step, Environment)]


async def test_a_session_keeps_the_packages_that_it_was_made_with(server: Caller, data_dir: Path) -> None:
    old = await built(server, "analysis", "tool==1")
    await a_session(server, "analysis", "session-1")
    new = await built(server, "analysis", "tool==2")
    await a_session(server, "lablup/analysis:latest", "session-2")
    assert (await server("PATCH", "/session/session-1")).status == 204  # in a new sandbox

    assert await printed(server, "import tool; print(tool.version)", "session-1") == "1\n"
    assert await printed(server, "import tool; print(tool.version)", "session-2") == "2\n"
    assert folders(data_dir, "envs") == sorted([old["digest"], new["digest"]])

    await server("DELETE", "/session/session-1")
    await built(server, "other", "tool==2")
    assert folders(data_dir, "envs") == [new["digest"]]


async def test_packages_wait_for_a_session_that_does_not_run_yet(server: Caller, data_dir: Path) -> None:
    old = await built(server, "analysis", "tool==1")
    body = {"name": "class-7", "image": "analysis", "type": "batch", "startupCommand": "true", "starts_at": "1h"}
    assert (await server("POST", "/session", body | {"enqueueOnly": True})).status == 201

    new = await built(server, "analysis", "tool==2")

    assert folders(data_dir, "envs") == sorted([old["digest"], new["digest"]])


async def test_images_outlive_the_server(data_dir: Path) -> None:
    async with a_server(data_dir) as server:
        await built(server, "analysis:1", "tool")
        await server("PUT", "/image-alias/sci", {"target": "analysis:1"})
    (data_dir / "images" / "staging" / "left").mkdir()
    async with a_server(data_dir) as server:
        await a_session(server, "sci")

        assert await printed(server, "import tool; print(tool.version)") == "2\n"
        assert folders(data_dir, "staging") == []
        await server("DELETE", "/session/class-7")


async def test_nothing_that_is_in_a_package_is_executed_while_it_is_built(
    server: Caller, index: Path, data_dir: Path
) -> None:
    mark = data_dir / "executed"
    a_wheel(index, "trap", "1", {"trap.pth": f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"})

    await built(server, "trap:1", "trap")
    await built(server, "trap:2", "trap\ntool")

    assert not mark.exists()


@pytest.mark.parametrize("requirements", ["tool", "user"], ids=["named", "depended on"])
async def test_what_is_for_a_later_python_than_that_of_the_image_is_not_chosen(
    server: Caller, index: Path, requirements: str
) -> None:
    a_wheel(index, "tool", "3", requires=">=3.99")
    a_wheel(index, "user", "1", depends="tool")

    await built(server, "analysis:1", requirements)
    await a_session(server, "analysis:1")

    assert await printed(server, "import tool; print(tool.version)") == "2\n"


async def test_a_package_for_no_python_like_this_is_refused_with_its_reason(server: Caller, index: Path) -> None:
    a_wheel(index, "later", "1", requires=">=3.99")

    problem = await problem_of(server, "analysis:1", "later\n")

    assert "requires Python >=3.99" in problem["msg"]


async def test_a_package_of_very_deep_folders_is_refused_and_leaves_nothing(
    server: Caller, data_dir: Path, index: Path
) -> None:
    a_wheel(index, "deep", "1", {"d/" * 1000 + "deep.txt": ""})

    problem = await problem_of(server, "analysis:1", "deep\n")

    assert "nested too deeply" in problem["msg"]
    assert folders(data_dir, "staging") == folders(data_dir, "envs") == []
    remove_tree(data_dir / "images" / "uv-cache")  # who removes the folder of the test does it by recursion


@pytest.mark.parametrize(
    ("requirements", "said"),
    [("tool==3", "no version of tool==3"), ("absent", "absent was not found"), ("tool==1\ntool==2", "unsatisfiable")],
)
async def test_what_cannot_be_solved_is_told_with_the_last_lines(
    server: Caller, data_dir: Path, requirements: str, said: str
) -> None:
    problem = await problem_of(server, "analysis:1", requirements)

    assert problem["type"].endswith("/invalid-api-params")
    assert said in problem["msg"]
    assert (folders(data_dir, "envs"), folders(data_dir, "staging")) == ([], [])


async def test_a_package_without_wheels_is_named(server: Caller, index: Path) -> None:
    (index / "source-1.0.tar.gz").write_bytes(b"never opened")

    problem = await problem_of(server, "analysis:1", "source")

    assert "source has none that fits" in problem["hint"]


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"name": "analysis:1"}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "requirements": "a", "pyproject": "b"}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "requirements": "# nothing"}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "requirements": "-r other.txt"}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "pyproject": "[project"}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "pyproject": LATER}, 400, "invalid-api-params"),
        ({"name": "../x", "requirements": "tool"}, 400, "invalid-api-params"),
        ({"name": "analysis:-", "requirements": "tool"}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "requirements": "tool", "sdist": True}, 400, "invalid-api-params"),
        ({"name": "analysis:1", "requirements": "tool", "python": "2.7"}, 404, "image-not-found"),
        ({"name": "analysis:1", "requirements": "tool", "python": "x"}, 400, "invalid-api-params"),
        ({"name": "python", "requirements": "tool"}, 409, "conflict"),
        ({"name": "analysis:1", "requirements": "tool", "more": 1}, 400, "invalid-api-params"),
        (
            {"name": "a:1", "requirements": "tool", "labels": {"ai.backend.resource.min.mem": "lots"}},
            400,
            "invalid-api-params",
        ),
    ],
)
async def test_a_bad_request_is_refused_before_anything_is_built(
    server: Caller, body: dict[str, Any], status: int, slug: str
) -> None:
    reply = await server("POST", "/image", body)

    assert (reply.status, reply.slug) == (status, slug)


async def test_who_goes_away_gives_the_build_up(
    server: Caller, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "600")  # so that it does not end by itself
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        loop = asyncio.get_running_loop()
        building = asyncio.create_task(server.build("analysis:1", "absent"))
        async with asyncio.timeout(60):
            peer, _ = await loop.sock_accept(silent)
            with peer:
                building.cancel()
                await asyncio.wait([building])
                while await loop.sock_recv(peer, 65536):
                    pass  # until uv is gone

            assert folders(data_dir, "envs") == []
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    image = await built(server, "analysis:1", "tool")
    assert image["reference"] == "analysis:1"


async def test_aliases_name_images_and_each_other(server: Caller) -> None:
    await built(server, "analysis:1", "tool")

    assert (await server("PUT", "/image-alias/sci", {"target": "analysis:1"})).body["image"] == "analysis:1"
    await server("PUT", "/image-alias/team/sci:9", {"target": "sci"})
    found = await server("GET", "/image/team/sci:9")
    refused = await server("DELETE", "/image/analysis:1")
    for alias in ("team/sci:9", "sci"):
        assert (await server("DELETE", f"/image-alias/{alias}")).status == 204

    assert found.body["aliases"] == ["sci", "team/sci:9"]
    assert found.body["requirements"] == "tool\n"
    assert "--hash=sha256:" in found.body["lock"]
    assert (refused.status, "sci" in refused.body["msg"]) == (409, True)
    assert (await server("GET", "/image/sci")).slug == "image-not-found"
    assert (await server("DELETE", "/image-alias/sci")).status == 404


async def test_an_alias_that_leads_nowhere_is_refused(server: Caller) -> None:
    await server("PUT", "/image-alias/first", {"target": "python"})
    await server("PUT", "/image-alias/second", {"target": "first"})

    loop = await server("PUT", "/image-alias/first", {"target": "second"})
    nothing = await server("PUT", "/image-alias/third", {"target": "absent"})
    taken = await server(
        "PUT", f"/image-alias/{(await server('GET', '/image')).body[0]['reference']}", {"target": "first"}
    )

    assert (loop.status, loop.slug) == (nothing.status, nothing.slug) == (404, "image-not-found")
    assert taken.status == 409
    assert (await server("GET", "/image/second")).body["language"] == "python"


async def test_labels_set_what_a_session_may_ask_for(server: Caller) -> None:
    labels = {"ai.backend.resource.min.mem": "512m", "ai.backend.resource.max.cpu": "2", "ai.backend.features": "batch"}
    image = await built(server, "analysis:1", "tool", labels=labels)

    async def ask(**resources: str) -> str:
        body = {"name": "class-7", "image": "analysis:1", "config": {"resources": resources}}
        reply = await server("POST", "/session", body)
        return "" if reply.status == 201 else str(reply.body["msg"])

    assert "cpu=1 mem=512m" in await ask(mem="256m")
    assert "cpu=2" in await ask(cpu="3")
    assert await ask(mem="512m") == ""
    assert image["labels"] == labels


async def test_users_read_and_do_not_change(server: Caller, data_dir: Path) -> None:
    await built(server, "analysis:1", "tool")
    user = await a_user(server, data_dir)

    assert [one["reference"] for one in (await user("GET", "/image")).body][-1] == "analysis:1"
    for method, path, body in (
        ("POST", "/image", {"name": "analysis:2", "requirements": "tool"}),
        ("DELETE", "/image/analysis:1", None),
        ("PUT", "/image-alias/sci", {"target": "python"}),
        ("DELETE", "/image-alias/sci", None),
    ):
        assert (await user(method, path, body)).slug == "insufficient-privilege"
    await a_session(user, "analysis:1")
    assert await printed(user, "import tool; print(tool.version)") == "2\n"
    await user("DELETE", "/session/class-7")


async def a_user(server: Caller, data_dir: Path) -> Caller:
    """An ordinary user of the server; written down beside it, since there is no call for that yet."""
    store, box = SqlStore(data_dir / "roost.db"), SecretBox.of_file(data_dir / "secrets.key")
    access_key, secret_key = new_access_key(), new_secret_key()

    def add(connection: Any) -> None:
        accounts.add_user(connection, id="u", email="user@localhost", role="user", domain="default")
        accounts.add_keypair(
            connection, access_key=access_key, user_id="u", secret=box.lock(secret_key), token_hash=None
        )

    await store.open()
    try:
        await store.write(add)
    finally:
        await store.aclose()
    target = Target(endpoint=server.target.endpoint, access_key=access_key, secret_key=secret_key)
    return Caller(target, server.http)


async def test_credentials_in_the_address_of_a_wheel_that_an_earlier_server_kept_are_shown_to_nobody(
    data_dir: Path, server: Caller
) -> None:
    await built(server, "analysis:1", "tool<2\n")
    store = SqlStore(data_dir / "roost.db")
    await store.open()
    address = "tool @ https://{}example.com/a@b/tool-1-py3-none-any.whl\n"
    secret = address.format("ann:s3cret@")
    await store.write(lambda c: c.execute(images.update().values(requirements=secret, lock=f"# made\n{secret}")))
    await store.aclose()

    shown = (await server("GET", "/image/analysis:1")).body

    assert shown["requirements"] == address.format("****@")
    assert shown["lock"] == f"# made\n{address.format('****@')}"


async def test_credentials_of_a_wheels_address_are_neither_shown_nor_kept(
    server: Caller, index: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wheels_behind_a_password(index, "jane", "s3cret", monkeypatch) as host:
        address = f"tool @ https://jane:s3cret@{host}/tool-1-py3-none-any.whl"
        messages = await server.build("analysis:1", f"{address}\n")

    shown = (await server("GET", "/image/analysis:1")).body
    assert shown["requirements"] == f"tool @ https://****@{host}/tool-1-py3-none-any.whl\n"
    assert f"https://****@{host}/" in shown["lock"]
    assert not [message for message in messages if "s3cret" in message.data]
    assert not [path for path in data_dir.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
