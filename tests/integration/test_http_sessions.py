"""Sessions over HTTP, from their creation to their end (spec/rest-sessions.md §4, §8)."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Caller, a_server

NEW: dict[str, Any] = {"name": "class-7", "image": "python"}


async def create(server: Caller, **more: Any) -> Any:
    reply = await server("POST", "/session", NEW | more)
    assert reply.status in (200, 201), reply.body
    return reply.body


async def test_a_session_is_created_reused_and_ended(server: Caller) -> None:
    made = await server("POST", "/session", NEW)
    again = await server("POST", "/session", NEW)
    ended = await server("DELETE", "/session/class-7")
    gone = await server("GET", "/session/class-7")

    assert (made.status, made.body["status"], made.body["created"]) == (201, "RUNNING", True)
    assert made.body["sessionName"] == "class-7"
    assert (again.status, again.body["created"]) == (200, False)
    assert again.body["sessionId"] == made.body["sessionId"]
    assert (again.body["servicePorts"], again.body["service_ports"]) == ([], [])
    assert (ended.status, ended.body["stats"]["status"]) == (200, "terminated")
    assert (gone.status, gone.slug) == (404, "session-not-found")


async def test_a_name_is_free_again_after_the_end(server: Caller) -> None:
    first = await create(server)
    await server("DELETE", "/session/class-7")

    second = await create(server)

    assert second["sessionId"] != first["sessionId"]


async def test_another_image_or_no_reuse_is_a_conflict_that_names_the_session(server: Caller) -> None:
    made = await create(server)

    refused = await server("POST", "/session", NEW | {"reuseIfExists": False})

    assert (refused.status, refused.slug) == (400, "session-already-exists")
    assert refused.body["data"] == {"existingSessionId": made["sessionId"]}


async def test_two_who_create_one_name_at_once_share_one_session(server: Caller) -> None:
    first, second = await asyncio.gather(create(server), create(server))

    assert first["sessionId"] == second["sessionId"]
    assert {first["created"], second["created"]} == {True, False}
    assert first["status"] == second["status"] == "RUNNING"


async def test_faults_are_told_by_parameter(server: Caller) -> None:
    reply = await server("POST", "/session", {"name": "-x-", "foo": 1, "config": {"environ": {"A": 1}, "nope": 2}})

    assert (reply.status, reply.slug) == (400, "invalid-api-params")
    assert reply.body["data"]["foo"] == "not an allowed key"
    assert reply.body["data"]["image"] == "required"
    assert "4 to 64" in reply.body["data"]["session_name"]
    assert reply.body["data"]["config"]["nope"] == "not an allowed key"
    assert "string" in reply.body["data"]["config"]["environ"]["A"]


@pytest.mark.parametrize(
    ("more", "status", "slug", "says"),
    [
        ({"image": "no-such:1"}, 404, "image-not-found", "no-such:1"),
        ({"image": "python:!"}, 400, "invalid-api-params", "python:!"),
        ({"arch": "aarch64" if os.uname().machine == "x86_64" else "x86_64"}, 404, "image-not-found", "for"),
        ({"config": {"resources": {"mem": "64m"}}}, 400, "invalid-api-params", "mem=128m"),
        ({"config": {"resources": {"mem": "lots"}}}, 400, "invalid-api-params", "lots"),
        ({"config": {"resources": {"mem": -5}}}, 400, "invalid-api-params", "-5"),
        ({"config": {"resources": {"cpu": "inf"}}}, 400, "invalid-api-params", "infinite"),
        ({"config": {"resources": {"tpu": 1}}}, 400, "invalid-api-params", "tpu"),
        ({"config": {"mounts": ["data"]}}, 404, "vfolder-not-found", "data"),
        ({"config": {"scalingGroup": "gpus"}}, 404, "scaling-group-not-found", "gpus"),
        ({"config": {"agentList": ["elsewhere"]}}, 400, "invalid-api-params", "elsewhere"),
        ({"config": {"agentList": ["local", "elsewhere"]}}, 400, "invalid-api-params", "one agent"),
        ({"clusterSize": 2}, 412, "quota-exceeded", "one container"),
        ({"type": "batch"}, 400, "invalid-api-params", "command"),
        ({"type": "batch", "startupCommand": " "}, 400, "invalid-api-params", "command"),
        ({"type": "batch", "startupCommand": "ls", "starts_at": "soon"}, 400, "invalid-api-params", "soon"),
        ({"bootstrap_script": "é" * 8193}, 400, "invalid-api-params", "validation"),
        ({"starts_at": "1h"}, 400, "invalid-api-params", "starts_at"),
        ({"startupCommand": "ls"}, 400, "invalid-api-params", "startupCommand"),
        ({"type": "inference"}, 400, "invalid-api-params", "type"),
        ({"group": "nobody"}, 400, "invalid-api-params", "nobody"),
        ({"owner_access_key": "AKIAUNKNOWN"}, 400, "invalid-api-params", "AKIAUNKNOWN"),
        ({"config": {"resource_opts": {"min_rung": 9}}}, 400, "invalid-api-params", "min_rung"),
        ({"config": {"preopen_ports": [80]}}, 400, "invalid-api-params", "validation"),
        ({"config": None}, 400, "invalid-api-params", "validation"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_a_reason(
    server: Caller, more: dict[str, Any], status: int, slug: str, says: str
) -> None:
    reply = await server("POST", "/session", NEW | more)

    assert (reply.status, reply.slug) == (status, slug)
    assert says in reply.body["msg"]
    assert (await server("GET", "/session")).body == []


async def test_what_every_client_sends_is_accepted(server: Caller) -> None:
    """The defaults of official clients from 20.09 to 23.09 (spec/client-sdk.md)."""
    body: dict[str, Any] = {
        "tag": None,
        "clientSessionToken": "class-7",
        "config": {
            "mounts": [],
            "environ": None,
            "resources": {},
            "resource_opts": {},
            "scalingGroup": None,
            "mount_map": {},
            "preopen_ports": None,
            "agentList": [],
        },
        "image": "python:3.11",
        "owner_access_key": None,
        "domain": "default",
        "group": "default",
        "type": "interactive",
        "enqueueOnly": False,
        "maxWaitSeconds": "0",
        "reuseIfExists": "true",
        "startupCommand": None,
        "starts_at": None,
        "bootstrap_script": None,
        "clusterSize": 1,
        "clusterMode": "single-node",
        "dependencies": None,
        "callback_url": None,
        "architecture": "x86_64",
    }

    reply = await server("POST", "/session", body)

    assert (reply.status, reply.body["status"]) == (201, "RUNNING")


@pytest.mark.parametrize(
    ("version", "key", "value", "is_allowed"),
    [
        ("v4.20190115", "resources", {}, False),
        ("v4.20190315", "resources", {}, True),
        ("v4.20190115", "scalingGroup", None, False),
        ("v4.20190615", "mount_map", {}, False),
        ("v5.20191215", "mount_map", {}, True),
        ("v4.20190615", "preopen_ports", [], False),
        ("v5.20191215", "agentList", [], False),
        ("v6.20200815", "agentList", [], True),
        ("v5.20191215", "cluster_size", 1, True),
        ("v6.20200815", "cluster_size", 1, False),
    ],
)
async def test_each_version_has_its_keys_of_config(
    server: Caller, data_dir: Path, version: str, key: str, value: Any, is_allowed: bool
) -> None:
    token = json.loads((data_dir / "admin.json").read_text())["token"]
    later = {"type": "batch", "startupCommand": "ls", "starts_at": "1d", "enqueueOnly": True}
    body = NEW | later | {"config": {key: value}}

    # A signature would cover the version of our own client.
    headers = {"X-BackendAI-Version": version, "Authorization": f"Bearer {token}"}
    reply = await server("POST", "/session", body, headers=headers)

    assert reply.status == (201 if is_allowed else 400), reply.body
    if not is_allowed:
        assert list(reply.body["data"]["config"].values()) == ["not an allowed key"]


async def test_an_administrator_chooses_the_agent(server: Caller) -> None:
    made = await create(server, config={"agentList": ["local"], "scalingGroup": "default"})

    assert made["status"] == "RUNNING"
    story = (await server("GET", "/session/class-7/history")).body
    assert "its sandbox is being launched on node local" in [one["sentence"] for one in story]


@pytest.mark.parametrize(
    "environ",
    [
        {"": "x"},
        {"A=B": "x"},
        {"A\0": "x"},
        {"A": "\0"},
        {"A": "x" * (128 << 10)},
        {f"A{number}": "x" * 100_000 for number in range(11)},
    ],
    ids=["no name", "=", "null in name", "null", "long", "long together"],
)
async def test_an_environment_that_no_program_could_be_given_is_refused(
    server: Caller, environ: dict[str, str]
) -> None:
    body = {"name": "class-7", "image": "python", "config": {"environ": environ}}

    reply = await server("POST", "/session", body)

    assert (reply.status, reply.slug) == (400, "invalid-api-params")
    assert reply.body["data"]["config"]["environ"]


async def test_the_environment_is_the_users_and_the_sessions(server: Caller) -> None:
    made = await create(server, config={"environ": {"A": "1", "BACKENDAI_SESSION_NAME": "lie"}})

    result = await server.execute("class-7", "import os\nprint(os.environ['A'], os.environ['BACKENDAI_SESSION_NAME'])")
    identity = await server.execute("class-7", "print(os.environ['BACKENDAI_SESSION_ID'])")

    assert result["console"] == [["stdout", "1 class-7\n"]]
    assert identity["console"] == [["stdout", f"{made['sessionId']}\n"]]


async def test_a_session_without_room_waits_and_says_why(data_dir: Path) -> None:
    # Room for one; nothing is named, which an ordinary user's host may be unable to enforce.
    async with a_server(data_dir, overcommit_cpu=1 / (os.cpu_count() or 1)) as server:
        first = await create(server, name="first")
        waiting = await create(server, name="second", maxWaitSeconds=1)
        queued = await create(server, name="third", enqueueOnly=True)

        [third, second, _] = (await server("GET", "/session")).body
        info = (await server("GET", "/session/second")).body
        story = (await server("GET", "/session/second/history")).body
        await server("DELETE", f"/session/{first['sessionId']}")
        running = await create(server, name="second")

        assert (waiting["status"], queued["status"]) == ("TIMEOUT", "PENDING")
        assert (second["status"], third["status"]) == ("PENDING", "PENDING")
        assert second["reason"]["code"] == info["statusInfo"] == "no-available-instances"
        assert "cpu" in second["reason"]["sentence"]
        assert info["statusData"]["scheduler"]["retries"] >= 1
        assert [one["code"] for one in story] == ["session-enqueued", "no-available-instances"]
        assert (running["sessionId"], running["status"]) == (waiting["sessionId"], "RUNNING")
        for name in ("third", "second"):  # the queue may be about to give the third its node
            await server("DELETE", f"/session/{name}", params={"forced": "true"})


async def test_a_pending_session_is_cancelled(data_dir: Path) -> None:
    async with a_server(data_dir, overcommit_cpu=0.1) as server:
        await create(server, enqueueOnly=True)

        ended = await server("DELETE", "/session/class-7")

        [session] = (await server("GET", "/session", params={"status": "all"})).body
        assert ended.body == {"stats": {"status": "cancelled"}}
        assert (session["status"], session["reason"]["code"]) == ("CANCELLED", "user-requested")


async def test_a_batch_session_waits_for_its_start_and_lets_others_ahead(server: Caller) -> None:
    later = await create(server, name="later", type="batch", startupCommand="ls", starts_at="1d", enqueueOnly=True)
    timed_out = await create(server, name="later", type="batch", startupCommand="ls", maxWaitSeconds=1)
    other = await create(server, name="other")
    info = (await server("GET", "/session/later")).body
    [_, listed] = (await server("GET", "/session")).body
    await server("DELETE", "/session/later")

    scheduler = info["statusData"]["scheduler"]
    assert (later["status"], timed_out["status"], other["status"]) == ("PENDING", "TIMEOUT", "RUNNING")
    assert [one["name"] for one in scheduler["failed_predicates"]] == ["reserved_time"]
    assert info["statusInfo"] == "predicate-checks-failed"
    assert (info["type"], info["result"]) == ("batch", "UNDEFINED")
    assert (listed["type"], listed["result"]) == ("batch", "UNDEFINED")
    assert listed["starts_at"] in scheduler["failed_predicates"][0]["msg"]


async def test_references_are_ids_names_and_their_beginnings(server: Caller) -> None:
    first = await create(server, name="train-1")
    second = await create(server, name="train-2")

    async def named(reference: str) -> Any:
        return (await server("GET", f"/session/{reference}")).body.get("containerId")

    ambiguous = await server("GET", "/session/trai")
    by_wildcard = await server("GET", "/session/train-%25")

    assert await named("train-1") == await named(first["sessionId"]) == await named(first["sessionId"][:13])
    assert await named("train-2") == second["sessionId"]
    assert (ambiguous.status, ambiguous.slug) == (404, "too-many-sessions-matched")
    assert {match["name"] for match in ambiguous.body["data"]["matches"]} == {"train-1", "train-2"}
    assert by_wildcard.slug == "session-not-found"


@pytest.mark.parametrize(
    ("word", "is_true"), [("1.0", True), ("Yes", True), (1, True), ("none", False), ("OFF", False), (0, False)]
)
async def test_every_word_for_yes_and_no_is_understood(server: Caller, word: str | int, is_true: bool) -> None:
    made = await create(server, enqueueOnly=word, type="batch", startupCommand="ls", starts_at="1d", maxWaitSeconds=1)

    assert made["status"] == ("PENDING" if is_true else "TIMEOUT")


async def test_no_owner_in_the_query_means_the_caller(server: Caller) -> None:
    await create(server)

    assert (await server("GET", "/session/class-7", params={"owner_access_key": ""})).status == 200
    assert (await server("DELETE", "/session/class-7", params={"owner_access_key": ""})).status == 200


async def test_a_session_is_renamed_unless_the_name_is_taken(server: Caller) -> None:
    made = await create(server, name="first-1")
    second = await create(server, name="second-2")

    taken = await server("POST", "/session/first-1/rename", params={"name": "second-2"})
    bad = await server("POST", "/session/first-1/rename", params={"name": "x"})
    done = await server("POST", "/session/first-1/rename", {"name": "third-3"})
    found = await server("GET", "/session/third-3")
    old = await server("GET", "/session/first-1")
    value = await server.execute("third-3", "1 + 1")
    matched = await server("GET", "/session/_/match", params={"id": "thi"})
    nothing = await server("GET", "/session/_/match", params={"id": "nothing"})

    assert (taken.status, taken.slug, bad.status, done.status) == (400, "session-already-exists", 400, 204)
    assert taken.body["data"] == {"existingSessionId": second["sessionId"]}
    assert (found.body["containerId"], old.status) == (made["sessionId"], 404)
    assert value["console"] == [["stdout", "2"]]
    assert matched.body == {"matches": [{"id": made["sessionId"], "name": "third-3", "status": "RUNNING"}]}
    assert nothing.body == {"matches": []}


async def test_information_and_history_tell_the_story(server: Caller) -> None:
    await create(server, tag="t")
    info = (await server("GET", "/session/class-7")).body
    await server("DELETE", "/session/class-7")

    story = (await server("GET", "/session/class-7/history")).body

    assert info["architecture"] == os.uname().machine
    assert (info["status"], info["statusInfo"], info["image"], info["tag"]) == ("RUNNING", "", "python:3.11", "t")
    assert info["isolation"]["rung"] >= 0
    assert {type(info[key]) for key in ("occupiedSlots", "environ", "creationTime")} == {str}
    assert [one["code"] for one in story] == [
        "session-enqueued",
        "session-scheduled",
        "session-preparing",
        "session-started",
        "session-terminating",
        "session-terminated",
    ]


async def test_a_launch_that_fails_says_why(server: Caller) -> None:
    made = await create(server, config={"resource_opts": {"runtime": "no-such"}})

    [session] = (await server("GET", "/session", params={"status": "all"})).body
    assert made["status"] == session["status"] == "CANCELLED"
    assert session["reason"]["code"] == "failed-to-start"
    assert "no-such" in session["reason"]["sentence"]


async def test_a_session_whose_sandbox_dies_is_terminated_with_its_reason(server: Caller, data_dir: Path) -> None:
    made = await create(server)
    record = json.loads((data_dir / "sandboxes" / made["sessionId"] / "sandbox.json").read_text())

    os.kill(record["init_pid"], signal.SIGKILL)
    while (await server("GET", "/session")).body:
        await asyncio.sleep(0.01)

    [session] = (await server("GET", "/session", params={"status": "all"})).body
    assert (session["status"], session["reason"]["code"]) == ("TERMINATED", "self-terminated")
    assert "status 137" in session["reason"]["sentence"]


async def test_states_can_be_chosen(server: Caller) -> None:
    await create(server)

    async def listed(status: str) -> list[str]:
        return [one["name"] for one in (await server("GET", "/session", params={"status": status})).body]

    assert await listed("running") == await listed("RUNNING,PENDING") == await listed("all") == ["class-7"]
    assert await listed("PENDING") == []
    assert (await server("GET", "/session", params={"status": "asleep"})).status == 400
