"""Session templates as clients write them, and requests for sessions of them (spec/rest-sessions.md §5, §15)."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AliasChoices, ConfigDict, Field, model_validator

from roost.server.http.documents import parse_json, parse_yaml
from roost.server.http.params import Boolish, Creation, Environ, Params, Script, SessionName, check
from roost.wire.errors import InvalidParameters

MAX_TEMPLATES = 64
"""As many may be written with one request."""

MAX_PAYLOAD = 1 << 20
"""Characters of the text that holds them."""

NOTHING = (None, "Undefined.token")
"""What official command lines send for options that their user has not given; the second is that of 21.09, with
releases of click that turn the default of an option into a text."""

_MAY_BE_NULL = ("template_id", "templateId")

NOT_OF_TEMPLATES = frozenset({"preopen_ports", "agent_list"})
"""What `config` of a creation from a template does not have."""


def _repository(value: str) -> str:
    if not value or value.startswith("-") or any(sign.isspace() or not sign.isprintable() for sign in value):
        raise ValueError("must be the address of a Git repository")
    return value


class Credential(Params):
    """Who clones a repository."""

    username: str
    password: str


class Git(Params):
    """A repository to clone into the session's home."""

    repository: Annotated[str, Field(max_length=1024), AfterValidator(_repository)]
    commit: str | None = None
    branch: str | None = None
    credential: Credential | None = None
    dest_dir: str | None = Field(
        default=None, validation_alias=AliasChoices("destination_dir", "destinationDir", "dest_dir")
    )


class Start(Params):
    """What runs in a session before its user, and instead of one."""

    bootstrap: Script | None = None
    startup_command: str | None = Field(
        default=None, validation_alias=AliasChoices("startup_command", "startup", "startupCommand")
    )


class Kernel(Params):
    """What the session is made of."""

    image: str
    architecture: str | None = None
    environ: Environ | None = None
    run: Start | None = None
    git: Git | None = None


class Spec(Params):
    """What the session is."""

    session_type: Literal["interactive", "batch"] = Field(
        default="interactive", validation_alias=AliasChoices("session_type", "sessionType", "type")
    )
    kernel: Kernel
    scaling_group: str | None = None
    mounts: dict[str, str | None] | None = None
    resources: dict[str, Any] | None = None
    agent_list: list[str] | None = None


class Metadata(Params):
    """What the template says of itself."""

    name: str = Field(min_length=1, max_length=128)
    tag: str | None = Field(default=None, max_length=64)


class Template(Params):
    """A template; what else stands beside its parts is left out."""

    model_config = ConfigDict(extra="ignore", strict=True, loc_by_alias=False)

    api_version: str = Field(validation_alias=AliasChoices("api_version", "apiVersion"))
    kind: Literal["taskTemplate", "task_template"]
    metadata: Metadata
    spec: Spec


class Written(Params):
    """A template, and whose it is."""

    template: Template
    name: str | None = Field(default=None, min_length=1, max_length=128)
    group_id: str | None = None
    user_uuid: str | None = None


class Payload(Params):
    """All that one request writes."""

    session_templates: list[Written] = Field(min_length=1, max_length=MAX_TEMPLATES)


class TemplateWriting(Params):
    """`POST` and `PUT /template/session`."""

    payload: str = Field(max_length=MAX_PAYLOAD)
    group: str = Field(default="default", validation_alias=AliasChoices("group", "groupName", "group_name"))
    domain: str = Field(default="default", validation_alias=AliasChoices("domain", "domainName", "domain_name"))
    owner_access_key: str | None = None


class TemplateListing(Params):
    """`GET /template/session`."""

    all: Boolish = False
    group_id: str | None = Field(default=None, validation_alias=AliasChoices("group_id", "groupId"))


class TemplateReading(Params):
    """`GET /template/session/{id}`; what is answered is JSON whatever the format."""

    format: Literal["json", "yaml"] = "json"
    owner_access_key: str | None = None


class TemplateCreation(Creation):
    """`POST /session/_/create-from-template`: what is absent or null is the template's to say."""

    template_id: UUID | None = Field(strict=False, validation_alias=AliasChoices("template_id", "templateId"))
    session_name: SessionName | None = Field(  # type: ignore[assignment] # it may be missing here
        default=None, validation_alias=AliasChoices("name", "clientSessionToken", "session_name")
    )
    image: str | None = Field(  # type: ignore[assignment] # so may this
        default=None, validation_alias=AliasChoices("image", "lang")
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, given: dict[str, Any]) -> dict[str, Any]:
        said = {key: value for key, value in given.items() if value not in NOTHING or key in _MAY_BE_NULL}
        if isinstance(config := said.get("config"), dict):
            said["config"] = {key: value for key, value in config.items() if value not in NOTHING}
        return said

    def given(self) -> dict[str, Any]:
        """What the request itself says, by the names of `Creation`."""
        return self.model_dump(exclude_unset=True, exclude={"template_id"})


def read_templates(payload: str) -> list[Written]:
    """The templates in a text: a list, an object with them under `session_templates`, or a single one.

    Raises:
        InvalidParameters: names what is missing or wrong.
    """
    is_json = payload.lstrip()[:1] in ("[", "{")
    value = parse_json(payload, "the payload") if is_json else parse_yaml(payload, "the payload")
    if isinstance(value, dict) and "session_templates" not in value:
        value = [value if "template" in value else {"template": value}]
    if not isinstance(value, dict | list):
        raise InvalidParameters("the payload holds no templates", hint="write a list of `{template: …, name: …}`")
    return check(value if isinstance(value, dict) else {"session_templates": value}, Payload).session_templates
