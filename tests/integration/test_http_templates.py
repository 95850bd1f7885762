"""Session templates over HTTP, and sessions of them (spec/rest-sessions.md §5, §15)."""

import asyncio
import json
from typing import Any

import pytest

from tests.servers import Caller

TEMPLATE: dict[str, Any] = {
    "api_version": "v1",
    "kind": "taskTemplate",
    "metadata": {"name": "course", "tag": "week-1"},
    "spec": {
        "session_type": "interactive",
        "kernel": {"image": "python", "environ": {"A": "1", "B": "2"}, "run": {"bootstrap": "echo made > made.txt"}},
    },
}
YAML = """
- name: course
  template:
    apiVersion: v1
    kind: task_template
    metadata: {name: course}
    note: somebody's own
    spec:
      type: batch
      kernel:
        image: python
        run: {startupCommand: "python -c 'print(6 * 7)'"}
      mounts: {data: }
"""
WORN = "00000000-0000-0000-0000-000000000000"


def payload(*templates: dict[str, Any]) -> dict[str, str]:
    return {"payload": json.dumps([{"template": template} for template in templates])}


def changed(**spec: Any) -> dict[str, Any]:
    return TEMPLATE | {"spec": TEMPLATE["spec"] | spec}


async def write(server: Caller, *templates: dict[str, Any]) -> str:
    reply = await server("POST", "/template/session", payload(*(templates or (TEMPLATE,))))
    assert reply.status == 200, reply.body
    return str(reply.body["id"])


async def create(server: Caller, id_: str | None, **more: Any) -> Any:
    body = {"name": "class-7", "template_id": id_} | more
    return await server("POST", "/session/_/create-from-template", body)


async def test_a_template_is_written_read_listed_replaced_and_deleted(server: Caller) -> None:
    id_ = await write(server)
    path = f"/template/session/{id_}"
    read = await server("GET", path, params={"format": "yaml"})
    [item] = (await server("GET", "/template/session", {"all": False})).body
    replaced = await server("PUT", path, payload(changed(kernel={"image": "shell"})))
    again = await server("GET", path)
    deleted = await server("DELETE", path)
    gone = await server("GET", path)
    listed = await server("GET", "/template/session")

    assert len(id_) == 32
    assert read.body["template"]["spec"]["kernel"]["environ"] == {"A": "1", "B": "2"}
    assert (read.body["name"], read.body["domain_name"]) == ("course", "default")
    assert (item["id"], item["is_owner"], item["type"], item["group_name"]) == (id_, True, "task", "default")
    assert item["template"] == read.body["template"]
    assert (replaced.body, deleted.body) == ({"success": True}, {"success": True})
    assert again.body["template"]["spec"]["kernel"]["image"] == "shell"
    assert (gone.status, gone.body, listed.body) == (200, {}, [])


async def test_yaml_and_its_other_names_are_understood(server: Caller) -> None:
    made = await server("POST", "/template/session", {"payload": YAML})
    read = await server("GET", f"/template/session/{made.body['id']}")

    template = read.body["template"]
    assert template["spec"]["session_type"] == "batch"
    assert template["spec"]["kernel"]["run"]["startup_command"] == "python -c 'print(6 * 7)'"
    assert template["spec"]["mounts"] == {"data": ""}
    assert "note" not in template


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"session_templates": [{"template": TEMPLATE}]}),
        json.dumps({"template": TEMPLATE, "name": "course"}),
        json.dumps(TEMPLATE),
    ],
    ids=["documented form", "one", "a bare one"],
)
async def test_a_payload_may_have_other_shapes(server: Caller, text: str) -> None:
    made = await server("POST", "/template/session", {"payload": text})

    assert made.status == 200
    assert (await server("GET", f"/template/session/{made.body['id']}")).body["name"] == "course"


async def test_clients_since_23_09_are_told_every_template_others_the_last(server: Caller) -> None:
    newer = {"User-Agent": "Backend.AI Client for Python 23.09.10"}
    older = {"User-Agent": "Backend.AI Client for Python 23.03.8"}

    many = await server("POST", "/template/session", payload(TEMPLATE, TEMPLATE), headers=newer)
    last = await server("POST", "/template/session", payload(TEMPLATE, TEMPLATE), headers=older)

    assert [sorted(one) for one in many.body] == [["id", "user"], ["id", "user"]]
    assert sorted(last.body) == ["id", "user"]
    assert len((await server("GET", "/template/session")).body) == 4


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "template"),
        ("[]", "session_templates"),
        ("just words", "no templates"),
        ("[1]", "0"),
        ("{", "JSON"),
        ("a: [", "YAML"),
        ("\x00", "YAML"),
        ("a: &x [1]\nb: *x", "anchors"),
        ("[" * 200, "JSON"),
        ("- " * 200 + "1", "levels"),
        (json.dumps([{"template": TEMPLATE | {"kind": "other"}}]), "kind"),
        (json.dumps([{"template": changed(kernel={"image": "python", "foo": 1})}]), "foo"),
        (json.dumps([{"template": changed(kernel={})}]), "image"),
        (json.dumps([{"template": changed(kernel={"image": "python", "environ": {"A=": "1"}})}]), "A="),
        (json.dumps([{"template": TEMPLATE, "group_id": WORN}]), "group of id"),
        ("# " + "x" * (1 << 16), "characters"),
        ("2026-11-28: 1", "template"),
    ],
)
async def test_what_is_no_template_is_refused_and_named(server: Caller, text: str, named: str) -> None:
    refused = await server("POST", "/template/session", {"payload": text})

    assert (refused.status, refused.slug) == (400, "invalid-api-params")
    assert named in json.dumps(refused.body)


async def test_a_template_is_its_owners(server: Caller) -> None:
    refused = await server(
        "POST", "/template/session", {"payload": json.dumps([{"template": TEMPLATE, "user_uuid": WORN}])}
    )

    assert (refused.status, refused.slug) == (403, "generic-forbidden")


@pytest.mark.parametrize("id_", [WORN, WORN.replace("-", ""), "no-id"])
async def test_there_is_no_such_template(server: Caller, id_: str) -> None:
    path = f"/template/session/{id_}"

    assert [(await server(*call)).slug for call in (("DELETE", path), ("PUT", path, payload(TEMPLATE)))] == [
        "task-template-not-found",
        "task-template-not-found",
    ]


async def test_a_session_is_what_the_template_says(server: Caller) -> None:
    made = await create(server, await write(server))
    info = (await server("GET", "/session/class-7")).body
    ran = await server.execute("class-7", "import os; print(os.environ['A'], open('made.txt').read(), end='')")

    assert (made.status, made.body["status"]) == (201, "RUNNING")
    assert info["tag"] == "week-1"
    assert ran["console"] == [["stdout", "1 made\n"]]


async def test_what_the_request_says_takes_the_templates_place_key_by_key(server: Caller) -> None:
    id_ = await write(server)

    await create(server, id_, tag="mine", config={"environ": {"A": "5"}}, bootstrap_script="")
    info = (await server("GET", "/session/class-7")).body
    ran = await server.execute(
        "class-7", "import os; print(os.environ['A'], os.environ.get('B'), os.listdir(), end='')"
    )

    assert info["tag"] == "mine"
    assert ran["console"] == [["stdout", "5 None []"]]


async def test_what_is_empty_takes_its_place_too(server: Caller) -> None:
    id_ = await write(server, changed(mounts={"data": ""}))

    refused = await create(server, id_)
    made = await create(server, id_, config={"mounts": [], "mount_map": {}, "environ": {}})
    ran = await server.execute("class-7", "import os; print(os.environ.get('A'), end='')")

    assert (refused.status, refused.slug) == (404, "vfolder-not-found")
    assert made.status == 201
    assert ran["console"] == [["stdout", "None"]]


async def test_null_is_what_nobody_has_said(server: Caller) -> None:
    nulls = dict.fromkeys(("image", "group", "domain", "type", "tag", "starts_at", "startupCommand", "maxWaitSeconds"))

    made = await create(server, await write(server), config={"environ": None, "scalingGroup": None}, **nulls)

    assert made.status == 201
    assert (await server("GET", "/session/class-7")).body["tag"] == "week-1"


async def test_a_batch_template_makes_batch_sessions(server: Caller) -> None:
    id_ = (await server("POST", "/template/session", {"payload": YAML})).body["id"]

    made = await create(server, id_, config={"mounts": []})

    assert made.status == 201
    async with asyncio.timeout(30):
        while (await server("GET", "/session/class-7/logs")).body["result"]["logs"] != "42\n":
            await asyncio.sleep(0.01)


async def test_without_a_template_the_request_says_it_all(server: Caller) -> None:
    nothing = await create(server, None)
    made = await create(server, None, image="python")

    assert (nothing.status, nothing.body["data"]) == (400, {"image": "required"})
    assert made.status == 201


@pytest.mark.parametrize(
    ("more", "data"),
    [
        ({"config": {"preopen_ports": [8080]}}, {"config": {"preopen_ports": "not an allowed key"}}),
        ({"config": {"agent_list": ["x"]}}, {"config": {"agent_list": "not an allowed key"}}),
        ({"foo": 1}, {"foo": "not an allowed key"}),
        (
            {"name": "x"},
            {"session_name": "must be 4 to 64 letters, digits and underscores, with dots and hyphens inside"},
        ),
    ],
)
async def test_parameters_of_a_creation_from_a_template_are_checked(
    server: Caller, more: dict[str, Any], data: dict[str, Any]
) -> None:
    refused = await create(server, None, **{"image": "python", **more})

    assert (refused.status, refused.body["data"]) == (400, data)


@pytest.mark.parametrize(
    ("id_", "slug"), [(WORN, "task-template-not-found"), ("x", "invalid-api-params"), (7, "invalid-api-params")]
)
async def test_a_template_that_is_not_there_makes_no_session(server: Caller, id_: Any, slug: str) -> None:
    refused = await create(server, id_)

    assert refused.slug == slug


async def test_a_body_may_be_yaml(server: Caller) -> None:
    headers = {"Content-Type": "text/yaml"}

    made = await server("POST", "/session", data=b"name: class-7\nimage: python\ntag: from-yaml", headers=headers)
    broken = await server("POST", "/session", data=b"name: [", headers=headers)

    assert made.status == 201
    assert (await server("GET", "/session/class-7")).body["tag"] == "from-yaml"
    assert (broken.status, broken.slug) == (400, "invalid-api-params")
