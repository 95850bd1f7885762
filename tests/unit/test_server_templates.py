"""What a template stands for."""

from typing import Any

import pytest

from roost.server.domain.templates import creation_of, overlaid

GIT = {"repository": "https://example.com/x/course.git", "branch": None, "commit": None, "dest_dir": None}


def a_template(**kernel: Any) -> dict[str, Any]:
    made = {"image": "python", "architecture": None, "environ": None, "run": None, "git": None} | kernel
    spec = {"session_type": "interactive", "kernel": made, "scaling_group": None, "agent_list": None}
    return {"metadata": {"name": "a", "tag": None}, "spec": spec | {"mounts": {}, "resources": None}}


def bootstrap_of(**kernel: Any) -> Any:
    return creation_of(a_template(**kernel), domain="default", group="default").get("bootstrap_script")


def test_what_a_template_does_not_say_is_left_to_the_creation() -> None:
    assert creation_of(a_template(), domain="d", group="g") == {
        "image": "python",
        "type": "interactive",
        "domain": "d",
        "group": "g",
        "config": {},
    }


def test_folders_are_mounts_and_those_with_a_target_mapped() -> None:
    template = a_template()
    template["spec"]["mounts"] = {"a": "", "b": "/home/work/b"}

    config = creation_of(template, domain="d", group="g")["config"]

    assert config == {"mounts": ["a", "b"], "mount_map": {"b": "/home/work/b"}}


def test_a_request_takes_the_place_of_what_it_names() -> None:
    template = {"image": "python", "tag": "t", "config": {"environ": {"A": "1"}, "resources": {"cpu": 1}}}

    both = overlaid(template, {"tag": None, "config": {"environ": {}}})

    assert both == {"image": "python", "tag": None, "config": {"environ": {}, "resources": {"cpu": 1}}}


def test_a_request_that_names_folders_leaves_out_the_places_of_others() -> None:
    template = {"config": {"mounts": ["a", "b"], "mount_map": {"a": "x", "b": "y"}}}

    assert overlaid(template, {"config": {"mounts": ["b"]}})["config"] == {"mounts": ["b"], "mount_map": {"b": "y"}}
    assert overlaid(template, {"config": {"mounts": []}})["config"] == {"mounts": [], "mount_map": {}}


@pytest.mark.parametrize(
    ("git", "steps"),
    [
        ({}, ["git clone -- https://example.com/x/course.git course"]),
        (
            {"branch": "main", "dest_dir": "my folder"},
            ["git clone -b main -- https://example.com/x/course.git 'my folder'"],
        ),
        (
            {"commit": "abc; rm"},
            ["git clone -- https://example.com/x/course.git course", "git -C course checkout 'abc; rm'"],
        ),
        (
            {"credential": {"username": "u", "password": "p@$ /"}},
            ["git clone -- https://u:p%40%24%20%2F@example.com/x/course.git course"],
        ),
        ({"repository": "git@example.com:x/y.git"}, ["git clone -- git@example.com:x/y.git y"]),
    ],
)
def test_a_repository_is_cloned_before_the_session_is_usable(git: dict[str, Any], steps: list[str]) -> None:
    assert bootstrap_of(git={"credential": None, **GIT, **git}) == "\n".join(["#!/bin/sh", *steps, ""])


def test_a_repository_is_cloned_behind_the_templates_own_script() -> None:
    script = bootstrap_of(run={"bootstrap": "echo hi\n"}, git={"credential": None, **GIT})

    assert script == "echo hi\ngit clone -- https://example.com/x/course.git course\n"
