"""What holds for root holds for an ordinary user: the same tests, run by one."""

import os

import pytest

from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.ordinary import ordinary_user

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="the tests run as an ordinary user already"),
    pytest.mark.skipif(not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"),
]


@pytest.mark.parametrize(
    "chosen",
    [
        ["tests/e2e/test_nothing_is_left.py"],
        ["tests/e2e/test_nothing_is_hidden.py"],
        ["tests/integration/test_agent.py"],
        ["tests/integration/test_http_files.py", "tests/integration/test_http_runs.py"],
        ["tests/e2e/test_commands.py", "-k", "first_command or share_one_server or sdk_reads or compatible"],
    ],
    ids=lambda chosen: chosen[0],
)
def test_the_same_tests_pass(chosen: list[str]) -> None:
    with ordinary_user() as user:
        paths = [str(user.source / one) if one.startswith("tests/") else one for one in chosen]
        done = user.run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(user.source), *paths, timeout_s=110
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
