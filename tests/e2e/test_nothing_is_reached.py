"""Hostile probes are refused inside a session, and succeed where the line of the profile that refuses them is missing.

`probes.py` has the table: processes, files, kernel surface, network, descriptors.
"""

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.runtimes import bubblewrap, seccomp
from roost.runtimes.base import Place
from roost.wire.ids import new_session_id
from roost.wire.sandboxes import SandboxSpec
from tests.agents import output, run
from tests.e2e import probes
from tests.e2e.probes import PROBES, Found, Probe
from tests.ordinary import SOURCE, OrdinaryUser, ordinary_user

pytestmark = pytest.mark.skipif(
    not bubblewrap.BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

ROOT, ORDINARY = "root", "ordinary user"

of_every_user = pytest.mark.parametrize("user", [ROOT, ORDINARY])
of_every_probe = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name.replace(" ", "-"))


class Investigation(NamedTuple):
    """What one user's process said of every probe."""

    found: dict[str, Found]
    impossible: str = ""
    """Why that user cannot run anything from here."""
    failed: str = ""


def found_by(user: str, probe: Probe) -> Found:
    if user == ROOT and os.getuid() != 0:
        pytest.skip("the tests do not run as root")
    investigation = _investigate(user)
    if investigation.impossible:
        pytest.skip(f"an ordinary user cannot run the tests from here: {investigation.impossible}")
    assert not investigation.failed, investigation.failed
    return investigation.found[probe.name]


@functools.cache
def _investigate(user: str) -> Investigation:
    with ordinary_user() as ordinary:
        who = ordinary if user == ORDINARY else OrdinaryUser(SOURCE, None, Path.home())
        try:
            tried = who.run("-c", "pass", timeout_s=60)
        except (OSError, subprocess.SubprocessError) as error:
            return Investigation({}, impossible=str(error))
        if tried.returncode != 0:
            return Investigation({}, impossible=tried.stderr.strip())
        try:
            ended = who.run("-m", probes.__name__, timeout_s=100)
        except subprocess.TimeoutExpired as error:
            return Investigation({}, failed=f"{error}: {error.stderr!r}")
    if ended.returncode != 0:
        return Investigation({}, failed=ended.stderr)
    return Investigation({name: Found(**answers) for name, answers in json.loads(ended.stdout).items()})


@of_every_user
@of_every_probe
def test_a_session_is_refused(user: str, probe: Probe) -> None:
    assert found_by(user, probe).whole == probe.refused


@of_every_user
@of_every_probe
def test_without_its_lines_a_probe_succeeds_and_with_any_of_them_it_does_not(user: str, probe: Probe) -> None:
    found = found_by(user, probe)
    reason = probe.not_shown(root=user == ROOT, outside=found.outside)
    if reason:
        pytest.skip(f"{probe.name}: {reason}")

    succeeded = probe.answer(found.outside)

    assert found.without == succeeded
    assert succeeded not in found.put_back.values()


def test_every_line_of_the_profile_and_every_group_of_the_filter_has_a_probe() -> None:
    place = Place(folder=Path(), home=Path(), runner=Path(), programs=Path(), listener=0, ready=0, uid=None)
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
    lines = {*bubblewrap.whole_profile(spec, place), *seccomp.rules()}
    # A session needs what these bring; what they keep closed goes by a name of its own.
    lines -= {"system", "runner", "interpreter", "home", "packages"}
    lines |= {probes.READ_ONLY_SYSTEM, probes.READ_ONLY_RUNNER, probes.READ_ONLY_PACKAGES, probes.NOTHING_OF_THE_HOST}

    assert lines - {line for probe in PROBES for line in probe.without} == set()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no new privileges", "bubblewrap always sets it; there is no argument to leave out"),
        (
            "python -I -S",
            "the home is empty when the interpreter starts, so there is nothing that it could be made to read",
        ),
    ],
)
def test_what_cannot_be_left_out_is_named(line: str, reason: str) -> None:
    pytest.skip(f"{line}: {reason}")


async def test_a_session_has_no_capabilities_and_no_way_to_new_privileges(agent: LocalAgent) -> None:
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
    await agent.launch(spec)

    text = output(await run(agent, spec.session_id, "print(open('/proc/self/status').read())"))

    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Uid"].split() == ["1000"] * 4


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives sessions a uid of their own")
async def test_each_session_has_a_uid_of_its_own_that_owns_nothing_of_the_host(agent: LocalAgent) -> None:
    uids = set()
    for _ in range(2):
        spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
        await agent.launch(spec)
        uids.add(Path(f"/proc/{agent._sandboxes.load(spec.session_id).init_pid}").stat().st_uid)
        uids.add((agent._sandboxes.folder / spec.session_id / "home").stat().st_uid)

    # The runner is not dumpable, so its /proc folder belongs to root; the homes tell the uids.
    assert len(uids - {0}) == 2
