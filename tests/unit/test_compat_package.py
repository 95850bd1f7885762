"""`ai.backend.client` is `roost.client`, module by module.

`python tests/unit/test_compat_package.py` writes the files that these tests compare.
"""

import importlib
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
COMPATIBLE = SOURCE / "ai/backend/client"
PUBLIC = (
    "auth",
    "compat",
    "config",
    "exceptions",
    "func",
    "func.base",
    "func.session",
    "func.session_template",
    "request",
    "session",
    "types",
    "utils",
    "versioning",
)
PACKAGES = ("", "func", "cli")
COMMANDS = {"cli.main": "roost.cli.compat", "cli.pretty": "roost.cli.pretty"}


def expected_files() -> dict[Path, str]:
    """What each file of the compatible package says."""
    names = {"": "roost.client"} | {name: f"roost.client.{name}" for name in PUBLIC} | COMMANDS
    files = {_path(name): _text(name, target) for name, target in names.items()}
    return files | {_path("cli"): '"""The command of the compatible client."""\n'}


def _path(name: str) -> Path:
    parts = [part for part in name.split(".") if part]
    if name in PACKAGES:
        return COMPATIBLE.joinpath(*parts, "__init__.py")
    return COMPATIBLE.joinpath(*parts).with_suffix(".py")


def _text(name: str, target: str) -> str:
    if name in PACKAGES:
        # Were the package the same object, its `__path__` would have Python load every module within a second time.
        names = f"from {target} import __all__ as __all__\n" if name == "" else ""
        return f"from {target} import *  # noqa: F403\n{names}"
    return f"import sys\n\nimport {target}\nfrom {target} import *  # noqa: F403\n\nsys.modules[__name__] = {target}\n"


def test_the_files_are_what_the_generator_writes() -> None:
    found = {path: path.read_text() for path in COMPATIBLE.rglob("*.py")}
    assert found == expected_files()


def test_the_namespace_stays_open_for_other_distributions() -> None:
    assert not (SOURCE / "ai/__init__.py").exists()
    assert not (SOURCE / "ai/backend/__init__.py").exists()


def test_each_module_is_the_very_same_object() -> None:
    for name in set(PUBLIC) - set(PACKAGES):
        ours = importlib.import_module(f"roost.client.{name}")
        assert importlib.import_module(f"ai.backend.client.{name}") is ours


def test_a_program_in_a_fresh_interpreter_finds_the_same_session() -> None:
    code = (
        "from ai.backend.client.session import Session\n"
        "import ai.backend.client, ai.backend.client.func.session as functions, roost, roost.client.session\n"
        "assert Session is roost.Session is roost.client.session.Session is ai.backend.client.Session\n"
        "assert set(ai.backend.client.__all__) >= {'exceptions', 'session', 'Session', 'BackendError'}\n"
        "assert functions is roost.client.func.session\n"
        "from ai.backend.client.cli.main import main\n"
        "assert main.name == 'backend.ai'\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={"PYTHONPATH": str(SOURCE)})


if __name__ == "__main__":
    for path, text in expected_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
