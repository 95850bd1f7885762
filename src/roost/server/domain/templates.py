"""What a template and a request for a session of it come to together (spec/rest-sessions.md §5). Pure."""

import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit


def creation_of(template: Mapping[str, Any], *, domain: str, group: str) -> dict[str, Any]:
    """The parameters of a creation that a template stands for, those of `config` in a mapping of their own.

    Args:
        template: as it is stored.
        domain: the template's.
        group: the name of the template's group.
    """
    spec, kernel = template["spec"], template["spec"]["kernel"]
    run, mounts = kernel["run"] or {}, spec["mounts"] or {}
    wanted = {
        "image": kernel["image"],
        "architecture": kernel["architecture"],
        "type": spec["session_type"],
        "domain": domain,
        "group": group,
        "tag": template["metadata"]["tag"],
        "startup_command": run.get("startup_command"),
        "bootstrap_script": _bootstrap(run.get("bootstrap"), kernel["git"]),
    }
    config = {
        "environ": kernel["environ"],
        "resources": spec["resources"],
        "scaling_group": spec["scaling_group"],
        "agent_list": spec["agent_list"],
        "mounts": list(mounts),
        "mount_map": {name: target for name, target in mounts.items() if target},
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    return given | {"config": {key: value for key, value in config.items() if value}}


def overlaid(template: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """A template's parameters with those that a request names in their place, key by key; `config` likewise."""
    said = request.get("config", {})
    config = {**template["config"], **said}
    if "mounts" in said and "mount_map" not in said and "mount_map" in config:
        config["mount_map"] = {name: path for name, path in config["mount_map"].items() if name in said["mounts"]}
    return {**template, **request, "config": config}


def _bootstrap(script: str | None, git: Mapping[str, Any] | None) -> str | None:
    if git is None:
        return script
    beginning = script.rstrip("\n") if script else "#!/bin/sh"
    return "\n".join([beginning, *_clone(git), ""])


def _clone(git: Mapping[str, Any]) -> list[str]:
    url = urlsplit(git["repository"])
    folder = git["dest_dir"] or url.path.rstrip("/").rpartition("/")[2].removesuffix(".git")
    credential = git["credential"]
    if credential is not None:
        who = ":".join(quote(credential[key], safe="") for key in ("username", "password"))
        url = url._replace(netloc=f"{who}@{url.netloc.rpartition('@')[2]}")
    command = ["git", "clone", *(("-b", git["branch"]) if git["branch"] else ()), "--", urlunsplit(url), folder]
    steps = [shlex.join(command)]
    if git["commit"]:
        steps.append(shlex.join(["git", "-C", folder, "checkout", git["commit"]]))
    return steps
