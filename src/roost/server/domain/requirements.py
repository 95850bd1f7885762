"""What an environment may be asked to hold: requirements that need nothing but the package index."""

import re
import tomllib

from packaging.specifiers import SpecifierSet

from roost.wire.errors import InvalidParameters

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(rf"{_NAME}\s*(?:\[[^\]]*\])?\s*(?:$|[<>=!~(;@\s].*)", re.DOTALL)
_DIRECT = re.compile(rf"{_NAME}\s*(?:\[[^\]]*\])?\s*@\s*(\S+)")
_MAX_PYTHON = 1000
"""Characters of a `requires-python`, which is tried with every patch."""
_PATCHES = 100
_HASH = re.compile(r"\s--hash[= ]\S+")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#]*@")
"""Of an address: what stands before its host. A password may hold an @ itself."""


def read_requirements(text: str) -> str:
    """The requirements of a `requirements.txt`, one to a line.

    Raises:
        InvalidParameters: a line is no requirement, or needs a file that was not sent along; or there is none.
    """
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()]
    requirements = [line for line in lines if line]
    for requirement in requirements:
        _check(requirement)
    if not requirements:
        raise InvalidParameters("there are no requirements", hint="name at least one package")
    return "".join(f"{requirement}\n" for requirement in requirements)


def read_pyproject(text: str, python: str) -> str:
    """The dependencies of a `pyproject.toml`, one to a line.

    Args:
        python: the version that they are for, such as `3.11`.

    Raises:
        InvalidParameters: it is no such file, is not for that Python, or its dependencies are not simply written down
            in it.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise InvalidParameters("the pyproject.toml is nested too deeply") from None
    except ValueError as error:  # of `tomllib`, or of a number that is too long
        raise InvalidParameters(f"the pyproject.toml cannot be read: {error}") from None
    project = document.get("project")
    if not isinstance(project, dict):
        raise InvalidParameters("the pyproject.toml has no table [project]", hint="list packages in its dependencies")
    dynamic = project.get("dynamic")
    if isinstance(dynamic, list) and "dependencies" in dynamic:
        raise InvalidParameters(
            "the pyproject.toml leaves its dependencies to a program", hint="send a requirements.txt instead"
        )
    wanted = project.get("requires-python", "")
    if not (isinstance(wanted, str) and may_be(python, wanted)):
        raise InvalidParameters(
            f"the pyproject.toml is for Python {wanted!s:.200}, and this image has {python}",
            hint="name another version with `python`, or correct requires-python",
        )
    tool = document.get("tool")
    uv = tool.get("uv") if isinstance(tool, dict) else None
    if isinstance(uv, dict) and uv.get("sources"):
        raise InvalidParameters(
            "the pyproject.toml takes packages from places of its own ([tool.uv.sources])",
            hint="packages come from the server's package index; remove that table",
        )
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(one, str) for one in dependencies):
        raise InvalidParameters("the dependencies of the pyproject.toml are no list of texts")
    return read_requirements("\n".join(" ".join(one.split()) for one in dependencies))


def mask_credentials(requirements: str) -> str:
    """The same requirements, or what they were solved to, with `****` for credentials in addresses."""
    return _CREDENTIALS.sub("****@", requirements)


def may_be(python: str, wanted: str) -> bool:
    """Whether a Python of this minor version may be one of `requires-python`; not if that is nonsense."""
    if len(wanted) > _MAX_PYTHON:
        return False
    try:
        allowed = SpecifierSet(wanted)
        # Which patch of it the nodes have is not known here.
        return any(allowed.contains(f"{python}.{patch}") for patch in range(_PATCHES))
    except ValueError:  # what `packaging` raises, and of numbers that are too long
        return False


def _check(requirement: str) -> None:
    shown = mask_credentials(requirement)
    if requirement.startswith("-"):
        raise InvalidParameters(
            f"options are not read from requirements: {shown!r:.200}",
            hint="put everything into one file; the package index is set on the server",
        )
    if "${" in requirement:  # uv would put in what the server's environment holds
        raise InvalidParameters(f"variables are not read from requirements: {shown!r:.200}")
    # Runs of blanks would let the patterns try each way of dividing them.
    bare = " ".join(_HASH.sub("", requirement).split())
    if "--" in bare.partition(";")[0] or not _REQUIREMENT.fullmatch(bare):
        raise InvalidParameters(
            f"not a requirement: {shown!r:.200}", hint="a name with versions, as in `pandas>=2`; no files"
        )
    direct = _DIRECT.match(bare)
    if direct is not None and not re.fullmatch(r"https://\S+\.whl(#\S+)?", direct[1]):
        raise InvalidParameters(
            f"not a wheel: {shown!r:.200}",
            hint="an address must be https and end with .whl; others are not built",
        )
