"""What requests may say, and how what is wrong with them is told (spec/rest-sessions.md §1.2, §4)."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from roost.server.http.documents import parse_json, parse_yaml
from roost.wire.errors import InvalidParameters
from roost.wire.ids import SESSION_NAME

M = TypeVar("M", bound=BaseModel)

MAX_SCRIPT = 16 << 10
"""Bytes of a bootstrap script."""

MAX_VARIABLE = (128 << 10) - 2
"""Bytes of name and value together of an environment variable, which Linux hands to no program if they are more."""

MAX_ENVIRON = 1 << 20
"""Bytes of all of them; half of what Linux hands over together with a program's arguments."""

MAX_REQUIREMENTS = 1 << 20
"""Characters of a requirements.txt, which may hold hashes."""

MAX_PYPROJECT = 1 << 16
"""Characters of a pyproject.toml. It takes Python the square of that to read the worst of them."""

SINCE = {
    "scaling_group": (4, "20190315"),
    "resources": (4, "20190315"),
    "resource_opts": (4, "20190315"),
    "mount_map": (5, ""),
    "preopen_ports": (5, ""),
    "agent_list": (6, ""),
}
"""The first API version whose `config` has a key; those that are not here have been there always."""
UNTIL = {"cluster_size": (6, "")}
"""The first whose `config` has it no more."""

_TRUE = {"1", "1.0", "t", "true", "y", "yes", "on"}
_FALSE = {"0", "f", "false", "n", "no", "off", "none"}


def _boolish(value: Any) -> Any:
    text = str(value).lower() if value is not None else "null"
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise ValueError("must be true or false")


def _session_name(value: Any) -> Any:
    if not isinstance(value, str) or not SESSION_NAME.fullmatch(value):
        raise ValueError("must be 4 to 64 letters, digits and underscores, with dots and hyphens inside")
    if value == "from-template":
        raise ValueError("is reserved")
    return value


def _integer(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)
    return value


def _script(value: str) -> str:
    if len(value.encode()) > MAX_SCRIPT:
        raise ValueError(f"must be at most {MAX_SCRIPT} bytes long")
    return value


def _environ(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"{name!r:.80} cannot be a variable: a name without =, and no null bytes")
        if len(name.encode()) + len(text.encode()) > MAX_VARIABLE:
            raise ValueError(f"{name!r:.80} is longer than {MAX_VARIABLE} bytes; put it into a file")
    if sum(len(name.encode()) + len(text.encode()) for name, text in value.items()) > MAX_ENVIRON:
        raise ValueError(f"is longer than {MAX_ENVIRON} bytes together; put some of it into files")
    return value


Boolish = Annotated[bool, BeforeValidator(_boolish)]
Integer = Annotated[int, BeforeValidator(_integer)]
SessionName = Annotated[str, BeforeValidator(_session_name)]
Environ = Annotated[dict[str, str], AfterValidator(_environ)]
Script = Annotated[str, AfterValidator(_script)]


class Params(BaseModel):
    """Parameters of one endpoint; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, loc_by_alias=False)


class NoParams(Params):
    """An endpoint without parameters of its own."""

    owner_access_key: str | None = None


class CreationConfig(Params):
    """`config` of a creation (§4.2)."""

    mounts: list[str] | None = None
    environ: Environ | None = None
    cluster_size: Integer | None = Field(
        default=None, ge=1, validation_alias=AliasChoices("clusterSize", "cluster_size")
    )
    scaling_group: str | None = Field(default=None, validation_alias=AliasChoices("scalingGroup", "scaling_group"))
    resources: dict[str, Any] | None = None
    resource_opts: dict[str, Any] | None = Field(
        default=None, validation_alias=AliasChoices("resourceOpts", "resource_opts")
    )
    mount_map: dict[str, str] | None = Field(default=None, validation_alias=AliasChoices("mountMap", "mount_map"))
    preopen_ports: list[Annotated[int, BeforeValidator(_integer), Field(ge=1024, le=65535)]] | None = Field(
        default=None, validation_alias=AliasChoices("preopenPorts", "preopen_ports")
    )
    agent_list: list[str] | None = Field(default=None, validation_alias=AliasChoices("agentList", "agent_list"))

    def check_version(self, version: tuple[int, str], but: Collection[str] = ()) -> None:
        """Refuse the keys that requests of this API version do not have (§4.2).

        Args:
            version: of the request.
            but: further ones that it does not have.

        Raises:
            InvalidParameters: with one message for each in `data`.
        """
        foreign = {
            name: "not an allowed key"
            for name in self.model_fields_set
            if name in but or not SINCE.get(name, (0, "")) <= version < UNTIL.get(name, (99, ""))
        }
        if foreign:
            raise InvalidParameters("validation failed", data={"config": foreign})


class Creation(Params):
    """`POST /session` (§4.1)."""

    session_name: SessionName = Field(validation_alias=AliasChoices("name", "clientSessionToken", "session_name"))
    image: str = Field(validation_alias=AliasChoices("image", "lang"))
    type: Literal["interactive", "batch", "inference"] = Field(
        default="interactive", validation_alias=AliasChoices("type", "sessionType")
    )
    group: str = Field(default="default", validation_alias=AliasChoices("group", "groupName", "group_name"))
    domain: str = Field(default="default", validation_alias=AliasChoices("domain", "domainName", "domain_name"))
    cluster_size: Integer = Field(default=1, ge=1, validation_alias=AliasChoices("cluster_size", "clusterSize"))
    cluster_mode: Literal["single-node", "multi-node"] = Field(
        default="single-node", validation_alias=AliasChoices("cluster_mode", "clusterMode")
    )
    config: CreationConfig = CreationConfig()
    tag: str | None = Field(default=None, max_length=64)
    enqueue_only: Boolish = Field(default=False, validation_alias=AliasChoices("enqueueOnly", "enqueue_only"))
    max_wait_seconds: Integer = Field(
        default=0, ge=0, validation_alias=AliasChoices("maxWaitSeconds", "max_wait_seconds")
    )
    starts_at: str | None = Field(default=None, validation_alias=AliasChoices("starts_at", "startsAt"))
    reuse: Boolish = Field(default=True, validation_alias=AliasChoices("reuseIfExists", "reuse"))
    startup_command: str | None = Field(
        default=None, validation_alias=AliasChoices("startupCommand", "startup_command")
    )
    bootstrap_script: Script | None = Field(
        default=None, validation_alias=AliasChoices("bootstrap_script", "bootstrapScript")
    )
    owner_access_key: str | None = None
    dependencies: list[str] | None = Field(default=None, max_length=64)
    callback_url: str | None = Field(
        default=None, validation_alias=AliasChoices("callback_url", "callbackUrl", "callbackURL")
    )
    architecture: str | None = Field(default=None, validation_alias=AliasChoices("arch", "architecture"))


class Destruction(Params):
    """`DELETE /session/{ref}` (§8.2)."""

    forced: Boolish = False
    recursive: Boolish = False
    owner_access_key: str | None = None


class Matching(Params):
    """`GET /session/_/match`."""

    id: str = Field(min_length=1)
    owner_access_key: str | None = None


class Renaming(Params):
    """`POST /session/{ref}/rename`."""

    session_name: SessionName = Field(validation_alias=AliasChoices("name", "clientSessionToken", "session_name"))
    owner_access_key: str | None = None


class Listing(Params):
    """`GET /session`: states between commas, or `all`; the live ones if nothing is said."""

    status: str | None = None
    owner_access_key: str | None = None


class BatchOptions(Params):
    """`options` of a batch run (spec/execution.md §4.2)."""

    clean: str | None = None
    build: str | None = None
    exec: str | None = None
    build_log: bool | None = Field(default=None, validation_alias=AliasChoices("buildLog", "build_log"))
    """Build output is always there."""


class CompletionOptions(Params):
    """Where the cursor stands (spec/execution.md §4.4)."""

    row: Integer | None = Field(default=None, ge=0)
    col: Integer | None = Field(default=None, ge=0)
    line: str | None = None
    post: str | None = None


class RunOptions(Params):
    """Of one run."""

    echo: bool = True
    timeout_s: Annotated[float, Field(strict=False, gt=0, le=1e9)] | None = None
    clean: str | None = None
    build: str | None = None
    exec: str | None = None


class RunStart(Params):
    """`POST /session/{ref}/runs`."""

    code: str = ""
    run_id: str | None = None
    mode: Literal["query", "batch"] = "query"
    options: RunOptions = RunOptions()


class ImageBuild(Params):
    """`POST /image`."""

    name: str
    requirements: Annotated[str, Field(max_length=MAX_REQUIREMENTS)] | None = None
    pyproject: Annotated[str, Field(max_length=MAX_PYPROJECT)] | None = None
    python: Annotated[str, Field(pattern=r"^\d\.\d{1,3}$")] | None = None
    labels: dict[str, str] = {}
    sdist: bool = False


class AliasTarget(Params):
    """`PUT /image-alias/{alias}`."""

    target: Annotated[str, Field(max_length=255)]


class Interruption(Params):
    """`POST …/runs/{run}/interrupt`; in the query as well."""

    owner_access_key: str | None = None
    grace_s: Annotated[float, Field(strict=False, ge=0, le=60)] | None = None


class Answer(Params):
    """`POST …/runs/{run}/input`."""

    prompt: int | None = None
    text: str | None = None
    eof: bool = False


class FileList(Params):
    """`GET …/files`."""

    path: str = "."
    owner_access_key: str | None = None


class Download(Params):
    """`GET …/download`."""

    files: list[str]
    owner_access_key: str | None = None


class DownloadSingle(Params):
    """`GET …/download_single`."""

    file: str
    owner_access_key: str | None = None


async def read_params(request: web.Request, model: type[M]) -> M:
    """The parameters of a request: the JSON object in its body if it has one, else its query.

    Raises:
        InvalidParameters: with one message for each parameter in `data`.
    """
    raw = await request.read()
    return check(await read_json(request) if raw else _query(request, model), model)


def check(values: Any, model: type[M]) -> M:
    """Check what was given against a model.

    Raises:
        InvalidParameters: with one message for each parameter in `data`.
    """
    if not isinstance(values, dict):
        raise InvalidParameters("the parameters must be a JSON object")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidParameters("validation failed", data=_told(error)) from None


async def read_json(request: web.Request) -> Any:
    """The body as JSON, or as YAML where it says that it is that (§1.2).

    Raises:
        InvalidParameters: it is none, or nested too deeply.
    """
    parse = parse_yaml if request.content_type == "text/yaml" else parse_json
    return parse(await request.read(), "the body")


def _query(request: web.Request, model: type[BaseModel]) -> dict[str, Any]:
    lists = {name for name, field in model.model_fields.items() if "list" in str(field.annotation)}
    return {key: request.query.getall(key) if key in lists else request.query[key] for key in request.query}


def _told(error: ValidationError) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for fault in error.errors(include_url=False):
        *path, last = [str(part) for part in fault["loc"]] or ["parameters"]
        place = told
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = place[part] = {"": inner}
            place = inner
        place[last] = _MESSAGES.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    return told


_MESSAGES = {
    "missing": "required",
    "extra_forbidden": "not an allowed key",
    "model_type": "must be an object",
}
