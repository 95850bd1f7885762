"""Images and their references (spec/rest-sessions.md §4.4)."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from roost.server.domain.resources import parse_bytes, parse_count
from roost.wire.errors import ImageNotFound, InvalidParameters
from roost.wire.sandboxes import Interpreter

TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-._]*[A-Za-z0-9])?", re.ASCII)
REGISTRY = "index.docker.io/"
LABEL = "ai.backend"
"""What the labels that we understand begin with."""
NAMESPACE = "lablup"
"""What a reference without either means in the compatible API."""
NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*", re.ASCII)
"""Of an image that is built here."""
MAX_HOPS = 8
"""As long as a chain of aliases may be."""
MINIMUM = MappingProxyType({"cpu": 1, "mem": 128 << 20})
ALSO = MappingProxyType({"shell": ("bash",), "nodejs": ("node",), "golang": ("go",), "c": ("gcc",)})
"""Names of languages that people use besides those of the compatible API."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What a session sees as its system: this machine's own, one of its interpreters, and perhaps packages."""

    reference: str
    """Canonical."""
    aliases: tuple[str, ...] = ()
    """Names that it has by itself."""
    architecture: str
    interpreter: Interpreter
    base: str | None = None
    """The reference of the host image below packages; None for a host image."""
    environment: str | None = None
    """The digest of its packages; None for a host image."""
    size_bytes: int = 0
    """Of the packages."""
    created_at: float | None = None
    """Unix time; None for a host image."""
    labels: Mapping[str, str] = MappingProxyType({})
    minimum: Mapping[str, float] = MINIMUM
    maximum: Mapping[str, float] = MappingProxyType({"cpu": math.inf, "mem": math.inf})
    default: Mapping[str, float] = MappingProxyType({"cpu": 1, "mem": 1 << 30})
    shmem: str | None = None
    """Shared memory of a session that asks for none, as written."""


def host_images(interpreters: Iterable[Interpreter], architecture: str) -> list[Image]:
    """An image `language:version` for each interpreter.

    The first of a language is also plain `language`, and the first of each major version `language:major`.
    """
    images: list[Image] = []
    named: set[str] = set()
    for interpreter in interpreters:
        aliases = [alias for alias in _names(interpreter) if alias not in named]
        named.update(aliases)
        reference = aliases[0]
        images.append(
            Image(
                reference=reference,
                aliases=tuple(aliases[1:]),
                architecture=architecture,
                interpreter=interpreter,
            )
        )
    return images


def _names(interpreter: Interpreter) -> Iterator[str]:
    """Everything that an image of this interpreter may be called, its reference first."""
    major = interpreter.version.partition(".")[0]
    for language in (interpreter.language, *ALSO.get(interpreter.language, ())):
        yield f"{language}:{interpreter.version}"
        yield from (language, f"{language}:latest", f"{language}:{major}")


def find_image(reference: str, images: Iterable[Image], architecture: str | None = None) -> Image:
    """The image of a reference, for this architecture if one is named.

    Raises:
        InvalidParameters: the tag is malformed.
        ImageNotFound: there is none; the hint names those that are there.
    """
    known = list(images)
    for name in _short(reference):
        for image in known:
            if name == image.reference or name in image.aliases:
                if architecture is None or _architecture(architecture) == image.architecture:
                    return image
                raise ImageNotFound(
                    f"there is no image {reference!r} for {architecture}", hint=f"it is for {image.architecture}"
                )
    names = ", ".join(image.reference for image in known) or "none"
    raise ImageNotFound(f"there is no image {reference!r}", hint=f"the images here are {names}")


def follow(reference: str, aliases: Mapping[str, str]) -> str:
    """What a reference stands for by the aliases that administrators made.

    Raises:
        ImageNotFound: the chain of aliases is too long, perhaps without end.
    """
    seen = [reference]
    while (target := aliases.get(seen[-1])) is not None:
        if len(seen) > MAX_HOPS:
            raise ImageNotFound(
                f"{reference!r} is an alias of an alias, more than {MAX_HOPS} times: {' → '.join(seen)}",
                hint="`roost image alias` gives one of them another target",
            )
        seen.append(target)
    return seen[-1]


def check_reference(reference: str) -> str:
    """The canonical reference `name:tag` that an image built here may have; without a tag it is `latest`.

    Raises:
        InvalidParameters: it is malformed.
    """
    name, colon, tag = reference.partition(":")
    tag = tag if colon else "latest"
    if not NAME.fullmatch(name) or not TAG.fullmatch(tag) or len(name) > 64 or len(tag) > 64:
        raise InvalidParameters(
            f"not a name for an image: {reference!r:.200}", hint="NAME:TAG in small letters, such as analysis:1"
        )
    return f"{name}:{tag}"


def check_alias(alias: str) -> str:
    """A name that an alias may have: that of any image reference.

    Raises:
        InvalidParameters: it is malformed.
    """
    if not 0 < len(alias) <= 255 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]*", alias, re.ASCII):
        raise InvalidParameters(f"not an alias: {alias!r:.200}", hint="letters, digits and .-_:/")
    _short(alias)
    return alias


def labelled(image: Image, labels: Mapping[str, str]) -> Image:
    """An image with labels, and the limits that they set.

    Raises:
        InvalidParameters: a label that sets a limit is no amount.
    """
    minimum, maximum = dict(image.minimum), dict(image.maximum)
    for slot, parse in (("cpu", parse_count), ("mem", parse_bytes)):
        for limits, which in ((minimum, "min"), (maximum, "max")):
            if (label := f"{LABEL}.resource.{which}.{slot}") in labels:
                limits[slot] = _amount(label, labels[label], parse)
        if minimum[slot] > maximum[slot]:
            raise InvalidParameters(f"the labels allow no amount of {slot}: the least is above the most")
    shmem = labels.get(f"{LABEL}.resource.preferred.shmem")
    if shmem is not None:
        _amount(f"{LABEL}.resource.preferred.shmem", shmem, parse_bytes)
    default = {slot: min(amount, maximum[slot]) for slot, amount in image.default.items()}
    return msgspec.structs.replace(
        image, labels=dict(labels), minimum=minimum, maximum=maximum, default=default, shmem=shmem
    )


def _amount(label: str, value: str, parse: Callable[[str], float]) -> float:
    try:
        return parse(value)
    except ValueError:
        raise InvalidParameters(f"the label {label} is no amount: {value!r:.80}") from None


def _short(reference: str) -> tuple[str, ...]:
    """What a reference may be called here: without default registry and namespace, then without platform."""
    path, slash, last = reference.removeprefix(REGISTRY).rpartition("/")
    name, colon, tag = last.partition(":")
    if colon and not TAG.fullmatch(tag):
        raise InvalidParameters(f"not an image reference: {reference!r}", hint="registry/repository:tag")
    if slash and path != NAMESPACE:
        return (reference,)
    return name + colon + tag, name + colon + tag.partition("-")[0]


def _architecture(name: str) -> str:
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())
