"""Configuration, names by version, event streams, problem documents: what needs no server."""

import json
import os
from pathlib import Path

import pytest
from yarl import URL

from roost.client.config import APIConfig, bool_env, get_config, get_env, parse_api_version, set_config
from roost.client.errors import problem_to_error
from roost.client.func.session import ComputeSession, drop
from roost.client.request import Request
from roost.client.sse import SSEMessage, SSEParser
from roost.client.types import undefined
from roost.client.versioning import get_id_or_name, get_naming
from roost.wire import errors


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("BACKEND_", "SORNA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROOST_DATA_DIR", str(tmp_path))
    set_config(None)


def test_an_unconfigured_config_shows_the_defaults() -> None:
    config = APIConfig()
    assert str(config.endpoint) == APIConfig.DEFAULTS["endpoint"]
    assert config.version == APIConfig.DEFAULTS["version"]
    assert config.is_anonymous
    assert (config.connection_timeout, config.read_timeout) == (10.0, 0.0)
    assert config.vfolder_mounts == []


def test_arguments_weigh_more_than_the_environment_even_when_they_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND_READ_TIMEOUT", "5")
    monkeypatch.setenv("SORNA_SKIP_SSLCERT_VALIDATION", "yes")
    assert APIConfig().read_timeout == 5.0
    assert APIConfig().skip_sslcert_validation
    explicit = APIConfig(read_timeout=0, skip_sslcert_validation=False)
    assert explicit.read_timeout == 0
    assert not explicit.skip_sslcert_validation


def test_endpoints_are_absolute_and_rotate() -> None:
    config = APIConfig(endpoint="http://a.example,http://b.example")
    first = config.endpoint
    config.rotate_endpoints()
    assert {first, config.endpoint} == {URL("http://a.example"), URL("http://b.example")}
    with pytest.raises(ValueError, match="absolute"):
        APIConfig(endpoint="/relative")


def test_the_web_server_mode_has_dummy_keys() -> None:
    config = APIConfig(endpoint_type="session", access_key="a", secret_key="b")
    assert (config.access_key, config.secret_key) == ("dummy", "dummy")


def test_get_env_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        get_env("NOTHING")
    monkeypatch.setenv("SORNA_X", "1")
    assert get_env("x") == "1"
    assert bool_env("Yes")
    assert not bool_env("F")
    with pytest.raises(ValueError, match="maybe"):
        bool_env("maybe")
    assert parse_api_version("v6.20210815") == (6, "20210815")


def test_get_config_uses_a_local_server_that_runs(tmp_path: Path) -> None:
    ticks = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    served = {"endpoint": "http://127.0.0.1:1", "pid": os.getpid(), "start_time": int(ticks)}
    admin = {"endpoint": "http://127.0.0.1:1", "access_key": "AK", "secret_key": "SK", "token": "T"}
    (tmp_path / "server.json").write_text(json.dumps(served))
    (tmp_path / "admin.json").write_text(json.dumps(admin))
    assert (str(get_config().endpoint), get_config().access_key) == ("http://127.0.0.1:1", "AK")
    set_config(None)
    (tmp_path / "server.json").write_text(json.dumps(served | {"start_time": int(ticks) + 1}))
    assert str(get_config().endpoint) == APIConfig.DEFAULTS["endpoint"]


def test_names_follow_the_version() -> None:
    assert get_naming((4, "20190615"), "path") == "kernel"
    assert get_naming((5, "20191215"), "name_arg") == "name"
    assert get_id_or_name((6, "20210815"), ComputeSession("class-7")) == "class-7"


def test_drop_recurses_into_mappings_alone() -> None:
    assert drop({"a": undefined, "b": {"c": undefined}, "d": [undefined]}, undefined) == {"b": {}, "d": [undefined]}


def test_without_a_session_there_is_a_clear_error() -> None:
    with pytest.raises(RuntimeError, match="inside a session"):
        Request("GET", "/")


def test_an_event_stream_may_be_cut_anywhere() -> None:
    text = b': hi\r\nid: 1\r\nevent: stdout\r\ndata: "a\xc3\xa9"\r\n\r\nbroken\n\nretry: 5000\ndata: x\ndata: y\n\n'
    expected = [SSEMessage("stdout", '"aé"', "1"), SSEMessage("message", "x\ny", None, 5.0)]
    for size in (1, 2, 7, len(text)):
        parser = SSEParser()
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert [message for piece in pieces for message in parser.feed(piece)] == expected


@pytest.mark.parametrize("cls", [cls for cls in errors.error_classes() if cls is not errors.RoostError])
def test_each_error_comes_back_as_its_class(cls: type[errors.RoostError]) -> None:
    found = problem_to_error(500, {"type": f"https://x/{cls.code}", "title": "t", "msg": "m", "data": [1]})
    assert (type(found), found.message, found.data, found.hint) == (cls, "m", [1], cls.hint)


def test_an_unknown_problem_goes_by_its_status() -> None:
    assert type(problem_to_error(404, None)) is errors.NotFound
    assert type(problem_to_error(502, {"title": "bad gateway"})) is errors.RoostError


def test_what_is_wrong_with_parameters_is_in_the_message() -> None:
    data = {"tag": "too long", "config": {"environ": {"A": "not a text"}}}
    problem = {"type": "https://x/invalid-api-params", "title": "t", "msg": "validation failed", "data": data}

    found = problem_to_error(400, problem)

    assert found.message == "validation failed (tag: too long, config.environ.A: not a text)"
