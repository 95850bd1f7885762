"""Images and their references (spec/rest-sessions.md §4.4)."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from roost.wire.errors import ImageNotFound, InvalidParameters
from roost.wire.sandboxes import Interpreter

TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-._]*[A-Za-z0-9])?", re.ASCII)
REGISTRY = "index.docker.io/"
NAMESPACE = "lablup"
"""What a reference without either means in the compatible API."""
ALSO = MappingProxyType({"shell": ("bash",), "nodejs": ("node",), "golang": ("go",), "c": ("gcc",)})
"""Names of languages that people use besides those of the compatible API."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What a session sees as its system: this machine's own, with one of its interpreters."""

    reference: str
    """Canonical."""
    aliases: tuple[str, ...] = ()
    architecture: str
    interpreter: Interpreter
    minimum: Mapping[str, float] = MappingProxyType({"cpu": 1, "mem": 128 << 20})
    maximum: Mapping[str, float] = MappingProxyType({"cpu": math.inf, "mem": math.inf})
    default: Mapping[str, float] = MappingProxyType({"cpu": 1, "mem": 1 << 30})


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
    """The image of a reference or alias, for this architecture if one is named.

    Raises:
        InvalidParameters: the tag is malformed.
        ImageNotFound: there is none; the hint names those that are there.
    """
    known = list(images)
    short = _short(reference)
    for image in known:
        if short == image.reference or short in image.aliases:
            if architecture is None or _architecture(architecture) == image.architecture:
                return image
            raise ImageNotFound(f"there is no image {reference!r} for {architecture}")
    names = ", ".join(image.reference for image in known) or "none"
    raise ImageNotFound(f"there is no image {reference!r}", hint=f"the images here are {names}")


def _short(reference: str) -> str:
    """A reference as host images are named: without the default registry, its namespace and the tag's platform."""
    path, slash, last = reference.removeprefix(REGISTRY).rpartition("/")
    name, colon, tag = last.partition(":")
    if colon and not TAG.fullmatch(tag):
        raise InvalidParameters(f"not an image reference: {reference!r}", hint="registry/repository:tag")
    if slash and path != NAMESPACE:
        return reference
    return name + colon + (tag.partition("-")[0] if slash else tag)


def _architecture(name: str) -> str:
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())
