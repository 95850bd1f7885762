"""Names, aliases and labels of images, and what may be required of their packages."""

import asyncio
import os
from pathlib import Path

import pytest

from roost.agent import uv
from roost.agent.uv import MAX_LINE, by_pip, execute, failure
from roost.server.domain.images import MAX_HOPS, Image, check_alias, check_reference, find_image, follow, labelled
from roost.server.domain.requirements import mask_credentials, may_be, read_pyproject, read_requirements
from roost.wire.errors import AgentError, ImageNotFound, InvalidParameters
from roost.wire.sandboxes import Interpreter

PYTHON = Interpreter(language="python", version="3.11", path="/usr/bin/python3.11")


def an_image(reference: str, *aliases: str) -> Image:
    return Image(reference=reference, aliases=aliases, architecture="x86_64", interpreter=PYTHON)


def test_a_whole_tag_goes_before_one_without_platform() -> None:
    images = [an_image("analysis:1"), an_image("analysis:1-gpu")]

    assert find_image("lablup/analysis:1-gpu", images).reference == "analysis:1-gpu"
    assert find_image("analysis:1-gpu", images).reference == "analysis:1-gpu"
    assert find_image("analysis:1-ubuntu22.04", images).reference == "analysis:1"


def test_aliases_are_followed_as_far_as_allowed() -> None:
    chain = {f"alias{n}": f"alias{n + 1}" for n in range(MAX_HOPS + 1)}

    assert follow("alias1", chain) == f"alias{MAX_HOPS + 1}"
    with pytest.raises(ImageNotFound, match="more than 8 times"):
        follow("alias0", chain)
    with pytest.raises(ImageNotFound, match="a → b → a"):
        follow("a", {"a": "b", "b": "a"})
    assert follow("python", chain) == "python"


@pytest.mark.parametrize(("written", "reference"), [("a", "a:latest"), ("a-b.c:1.0_x", "a-b.c:1.0_x")])
def test_an_image_that_is_built_has_a_name_and_a_tag(written: str, reference: str) -> None:
    assert check_reference(written) == reference


@pytest.mark.parametrize(
    "written", ["", ":1", "A:1", "a/b:1", "a:", "a:b:c", "a:-1", "../a", "a" * 65, "a:" + "1" * 65]
)
def test_a_name_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(InvalidParameters):
        check_reference(written)


@pytest.mark.parametrize("alias", ["", "-a", "a b", "ä", "a:-", "x" * 256])
def test_an_alias_that_no_reference_could_be_is_refused(alias: str) -> None:
    with pytest.raises(InvalidParameters):
        check_alias(alias)


def test_labels_set_limits_and_shared_memory() -> None:
    labels = {
        "ai.backend.resource.min.cpu": "2",
        "ai.backend.resource.max.mem": "512m",
        "ai.backend.resource.preferred.shmem": "32m",
        "mine": "kept",
    }

    image = labelled(an_image("a:1"), labels)

    assert (image.minimum["cpu"], image.maximum["mem"], image.default["mem"]) == (2, 512 << 20, 512 << 20)
    assert (image.shmem, image.labels["mine"]) == ("32m", "kept")


@pytest.mark.parametrize(
    "labels",
    [
        {"ai.backend.resource.min.cpu": "many"},
        {"ai.backend.resource.max.mem": ""},
        {"ai.backend.resource.preferred.shmem": "-1"},
        {"ai.backend.resource.min.cpu": "4", "ai.backend.resource.max.cpu": "2"},
    ],
)
def test_labels_that_no_session_could_meet_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidParameters, match="label"):
        labelled(an_image("a:1"), labels)


def test_requirements_are_read_line_by_line() -> None:
    text = """
# what we need
numpy>=2,<3  # arrays
pandas[excel] ; python_version > "3.8"
scipy==1.0 \\
    --hash=sha256:abc \\
    --hash=sha256:def
tool @ https://example.org/tool-1-py3-none-any.whl#sha256=abc
"""

    assert read_requirements(text).splitlines() == [
        "numpy>=2,<3",
        'pandas[excel] ; python_version > "3.8"',
        "scipy==1.0      --hash=sha256:abc      --hash=sha256:def",
        "tool @ https://example.org/tool-1-py3-none-any.whl#sha256=abc",
    ]


@pytest.mark.parametrize(
    ("requirement", "masked"),
    [
        ("a @ https://user:secret@example.org/a.whl", "a @ https://****@example.org/a.whl"),
        ("a@https://token@example.org:8443/a.whl ; x", "a@https://****@example.org:8443/a.whl ; x"),
        ("a @ https://user:se@cret@example.org/a.whl", "a @ https://****@example.org/a.whl"),
        ("a @ https://example.org/b@1/a.whl#c@d", "a @ https://example.org/b@1/a.whl#c@d"),
        ("a>=1", "a>=1"),
    ],
)
def test_credentials_of_addresses_are_masked(requirement: str, masked: str) -> None:
    assert mask_credentials(f"{requirement}\nb\n") == f"{masked}\nb\n"


def test_what_is_refused_is_told_without_its_credentials() -> None:
    with pytest.raises(InvalidParameters) as refused:
        read_requirements("a @ https://user:secret@example.org/a.tar.gz")

    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "-e .",
        "--index-url https://example.org",
        "--find-links=/etc",
        "numpy --no-binary numpy",
        "./local",
        "/etc/passwd",
        "~/wheels/a.whl",
        "../a.whl",
        "folder/a.whl",
        "file:///etc/passwd",
        "https://example.org/a.whl",
        "git+https://example.org/a.git",
        "a @ file:///etc/passwd",
        "a @ git+https://example.org/a.git",
        "a @ https://example.org/a.tar.gz",
        "a[b]@../a.whl",
        "a @ https://example.org/${SECRET}.whl",
        "",
        "# nothing",
    ],
)
def test_what_is_no_plain_requirement_is_refused(line: str) -> None:
    with pytest.raises(InvalidParameters):
        read_requirements(f"{line}\n")


def test_the_dependencies_of_a_project_are_its_requirements() -> None:
    text = '[project]\nname = "x"\ndependencies = ["numpy>=2", "pandas"]\n[tool.uv]\nmanaged = true\n'

    assert read_pyproject(text, "3.11") == "numpy>=2\npandas\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[project", "cannot be read"),
        ("[tool.x]\na = 1", "no table"),
        ('[project]\ndynamic = ["dependencies"]', "to a program"),
        ('[project]\ndependencies = "numpy"', "no list"),
        ("[project]\ndependencies = [1]", "no list"),
        ('[project]\ndependencies = ["a @ file:///etc"]', "not a wheel"),
        ('[project]\ndependencies = ["-r x"]', "options"),
        ("[project]\ndependencies = []", "no requirements"),
        ('[project]\ndependencies = ["a"]\nrequires-python = ">=3.12"', "for Python >=3.12, and this image has 3.11"),
        ('[project]\ndependencies = ["a"]\nrequires-python = 3.12', "for Python 3.12"),
        ('[project]\ndependencies = ["a"]\n[tool.uv.sources]\na = {path = "/etc"}', "places of its own"),
    ],
)
def test_a_project_that_does_not_simply_say_what_it_needs_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidParameters, match=said):
        read_pyproject(text, "3.11")


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("", True),
        (">=3.9", True),
        (">= 3.11", True),
        (">=3.11.4", True),
        (">3.11", True),
        (">=3.12.0rc1", False),
        (">=3.9,<3.11", False),
        ("<=3.11", True),
        ("<3.12, !=3.10.*", True),
        ("!=3.11.*", False),
        ("!=3.11.2", True),
        ("==3.11.*", True),
        ("==3.10.*", False),
        ("==3.11.2", True),
        ("~=3.9", True),
        ("~=3.11.4", True),
        ("~=3.10.1", False),
        (">=3.11.4,<3.11.4", False),
        (">=4", False),
        ("nonsense", False),
    ],
)
def test_a_project_says_which_pythons_it_is_for(wanted: str, fits: bool) -> None:
    assert may_be("3.11", wanted) == fits


def test_what_pip_was_told_holds_for_uv_unless_uv_was_told_itself() -> None:
    told = {"index-url": "https://index.example", "cert": "/a.pem", "find-links": "/wheels", "timeout": "9"}

    assert by_pip(told, {}) == {
        "UV_DEFAULT_INDEX": "https://index.example",
        "SSL_CERT_FILE": "/a.pem",
        "UV_FIND_LINKS": "/wheels",
    }
    assert by_pip(told, {"UV_INDEX_URL": "https://other.example", "SSL_CERT_FILE": "/b.pem"}) == {
        "UV_FIND_LINKS": "/wheels"
    }


def test_packages_that_would_have_to_be_built_are_named() -> None:
    said = "Because docopt==0.6.2 has no usable\n wheels and b has no usable wheels, nothing works"

    error = failure("solving", said)

    assert "b, docopt has none that fits" in str(error.hint)
    assert said in error.message


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "1" * 6000,
        '[project]\nrequires-python = ">=' + "9" * 6000 + '"',
        '[project]\nrequires-python = "' + ">=3," * 300 + '<3"',
    ],
)
def test_a_hostile_pyproject_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameters):
        read_pyproject(text, "3.11")


def test_what_dynamic_should_not_be_leaves_nothing_to_a_program() -> None:
    assert read_pyproject('[project]\ndynamic = 5\ndependencies = ["a"]', "3.11") == "a\n"


def test_many_blanks_are_one() -> None:
    requirement = f"a{' ' * 300_000}b"  # which uv refuses

    assert read_requirements(requirement) == f"{requirement}\n"


def test_a_long_message_without_a_word_is_looked_through_once() -> None:
    assert "only wheels" not in str(failure("solving", "\n".join(["a" * MAX_LINE] * 200)).hint)


async def test_a_builder_that_says_something_and_then_hangs_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uv, "COMMAND_TIMEOUT_S", 0.2)
    lines = execute(["/bin/sh", "-c", "echo begun; exec sleep 30"], os.environ, tmp_path, "solving")

    # Each in a task of its own, as those who stream them ask for them.
    assert await asyncio.ensure_future(anext(lines)) == "begun"
    with pytest.raises(AgentError, match=r"longer than 0\.2 s"):
        await asyncio.ensure_future(anext(lines))


async def test_of_a_long_line_the_beginning_is_told(tmp_path: Path) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; printf end"

    said = [line async for line in execute(["/bin/sh", "-c", script], os.environ, tmp_path, "solving")]

    assert said == ["x" * MAX_LINE, "end"]
