"""How this host reaches package indexes; a machine made from it must reach them the same way.

Everything is read when a test runs, so no address is written down anywhere.
"""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

CODENAME = "bookworm"
PASSED_ON = re.compile(r"(?i)(PIP|UV)_.*(?<!_DIR)|(HTTPS?|ALL|NO)_PROXY")


def apt_sources() -> list[str]:
    """Source lines of Debian 12 as this host knows them; empty where it knows none."""
    fields = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)|$(ORIGIN)|$(CODENAME)"
    text = _output("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    rows = [line.split("|") for line in text.splitlines()]
    return sorted(source for source, origin, name in rows if origin == "Debian" and name.startswith(CODENAME))


def apt_options() -> str:
    """Proxies, certificates and the like."""
    lines = _output("apt-config", "dump", "--no-empty").splitlines()
    return "".join(f"{line}\n" for line in lines if re.match("Acquire::(?!IndexTargets|cdrom)", line))


def environment() -> dict[str, str]:
    """What tells pip and uv where to look."""
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


def pip_settings() -> dict[str, str]:
    """pip's settings from its configuration files; the environment's are in `environment`."""
    names = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
    parser = configparser.RawConfigParser()
    parser.read([*(Path(name).expanduser() for name in names), os.environ.get("PIP_CONFIG_FILE", os.devnull)])
    return {
        key: value for name in ("global", "install") if parser.has_section(name) for key, value in parser[name].items()
    }


def uv_settings() -> str:
    """uv's configuration file, or an empty one."""
    names = (
        os.environ.get("UV_CONFIG_FILE", os.devnull),
        "~/.config/uv/uv.toml",
        "/etc/xdg/uv/uv.toml",
        "/etc/uv/uv.toml",
    )
    return next((path.read_text() for path in (Path(name).expanduser() for name in names) if path.is_file()), "")


def copy_settings(root: Path) -> None:
    """Have the machine in `root` reach what this host reaches."""
    shutil.rmtree(root / "etc/apt/sources.list.d")
    (root / "etc/apt/sources.list.d").mkdir()
    (root / "etc/apt/sources.list").write_text("".join(f"{line}\n" for line in apt_sources()))
    (root / "etc/apt/apt.conf.d/99mmdebstrap").write_text(apt_options())
    settings = "".join(f"{key} = {' '.join(value.split())}\n" for key, value in pip_settings().items())
    (root / "etc/pip.conf").write_text(f"[global]\n{settings}")
    (root / "etc/uv").mkdir()
    (root / "etc/uv/uv.toml").write_text(uv_settings())
    certificates = "etc/ssl/certs/ca-certificates.crt"
    trusted = os.environ.get("SSL_CERT_FILE", f"/{certificates}")
    for source, name in (("/etc/resolv.conf",) * 2, ("/etc/hosts",) * 2, (trusted, certificates)):
        if Path(source).exists():
            shutil.copyfile(source, root / name.lstrip("/"))


def shown_paths(root: Path) -> list[Path]:
    """Files and folders that those settings name, such as an index on this disk, and that `root` lacks."""
    values = "\n".join([*environment().values(), *pip_settings().values(), uv_settings()])
    found = set()
    for scheme, name in re.findall(r"(?<![\w/:.])(file://)?(/[\w./+-]+)", values):
        path = Path(name)
        # The pages of an index point to files that lie beside it.
        path = path.parent if scheme and path.parent != Path("/") else path
        if path.exists() and not (root / path.relative_to("/")).exists():
            found.add(path)
    return sorted(found)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
