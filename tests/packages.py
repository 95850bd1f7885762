"""Packages for tests: wheels made here, and whether a package index can be reached."""

import asyncio
import base64
import contextlib
import functools
import hashlib
import os
import ssl
import subprocess
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from roost.agent.uv import set_up_uv


def a_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    *,
    requires: str = ">=3",
    depends: str = "",
) -> None:
    """Write a wheel of a module that knows its version.

    Args:
        files: come along, by their places in site-packages.
        requires: the versions of Python that it is for.
        depends: what it needs beside it.
    """
    content = {f"{name}.py": f"version = {version!r}\n", **(files or {})}
    info = f"{name}-{version}.dist-info"
    content[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {requires}\n"
    )
    if depends:
        content[f"{info}/METADATA"] += f"Requires-Dist: {depends}\n"
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:main\n"
    record = "".join(f"{path},sha256={_hash(text)},{len(text.encode())}\n" for path, text in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in content.items():
            wheel.writestr(path, text)


def only_wheels_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uv find nothing but the wheels in a folder, by what pip is told."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


@contextlib.asynccontextmanager
async def wheels_behind_a_password(
    folder: Path, user: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """Serve a folder over HTTPS to one user; gives host and port. uv trusts the server meanwhile."""
    certificate = folder / "certificate.pem"
    certificate.write_bytes(_certificate("localhost"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    wanted = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"

    async def get(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != wanted:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
        return web.FileResponse(folder / request.match_info["name"])

    app = web.Application()
    app.router.add_get("/{name}", get)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "localhost", 0, ssl_context=context).start()
        yield f"localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _certificate(host: str) -> bytes:
    """A key, and a certificate that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return builder.sign(key, hashes.SHA256()).public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, plain
    )


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@functools.cache
def unreachable_index() -> str:
    """Why the package index cannot be reached; empty where it can."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "requirements.txt").write_text("six\n")
        uv = asyncio.run(set_up_uv(Path(folder, "cache"), os.environ, "/usr/bin/python3"))
        argv = [uv.program, "pip", "compile", *uv.options, "--quiet", "requirements.txt"]
        asked = subprocess.run(
            argv, env=uv.environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
    return asked.stderr.strip() if asked.returncode != 0 else ""


async def need_index() -> None:
    """Skip the test where there is no package index."""
    if why := await asyncio.to_thread(unreachable_index):
        pytest.skip(f"the package index cannot be reached: {why}")
