"""How many descriptors servers and sandboxes have."""

import contextlib
import resource
from pathlib import Path

import pytest

from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)


async def test_a_server_takes_all_descriptors_and_gives_sandboxes_the_usual_number(data_dir: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = ServerProcess(data_dir)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        server.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with contextlib.ExitStack() as opened:
        opened.callback(server.kill)
        async with server.caller() as caller:
            made = await caller("POST", "/session", {"name": "class-7", "image": "python"})
            assert made.status == 201, made.body
            code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE), end='')"
            ran = await caller.execute("class-7", code)
            await caller("DELETE", "/session/class-7", params={"forced": "true"})

        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        assert ran["console"] == [["stdout", str((min(1024, hard), hard))]]
