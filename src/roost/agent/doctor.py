"""What this host can give, what is missing, and the command that would mend it."""

import os
import platform
import resource

import msgspec

from roost.agent.interpreters import survey
from roost.runtimes import cgroups
from roost.runtimes.base import runtimes
from roost.wire.sandboxes import Interpreter, Rung, RuntimeProbe

PER_SESSION = 10
"""Descriptors for each session: it takes five, and as many are left to connections."""
WANTED_SESSIONS = 2000
"""As many idle ones a host of 24 GiB has memory for."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one host."""

    rung: Rung
    """The best that a session gets here when nothing is asked for."""
    runtimes: list[RuntimeProbe]
    cgroup_controllers: list[str]
    interpreters: list[Interpreter]
    refused: list[tuple[str, str]]
    """Programs that no image is made of, and why."""
    user: str
    kernel: str
    descriptors: int
    """As many a server may take here."""


def diagnose() -> Diagnosis:
    """Look at this host; changes nothing."""
    probes = [runtime.probe() for runtime in runtimes().values()]
    usable = [probe.rung for probe in probes if probe.available and probe.runtime != "process"]
    controllers = sorted(cgroups.here().controllers)
    found = survey()
    rung = max(usable, default=Rung.PROCESS)
    if rung is Rung.NAMESPACES_AND_LIMITS and not controllers:
        rung = Rung.NAMESPACES
    return Diagnosis(
        rung=rung,
        runtimes=probes,
        cgroup_controllers=controllers,
        interpreters=found.interpreters,
        refused=found.refused,
        user="root" if os.getuid() == 0 else f"uid {os.getuid()}",
        kernel=platform.release(),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )


def describe(diagnosis: Diagnosis) -> str:
    """The diagnosis for people."""
    lines = [f"rung {int(diagnosis.rung)} of isolation ({diagnosis.rung.name.lower().replace('_', ' ')})"]
    lines.append(f"running as {diagnosis.user} on kernel {diagnosis.kernel}")
    lines.append(f"limits by cgroup: {', '.join(diagnosis.cgroup_controllers) or 'none writable'}")
    lines.append(f"descriptors: enough for about {diagnosis.descriptors // PER_SESSION} sessions")
    if diagnosis.descriptors < PER_SESSION * WANTED_SESSIONS:
        wanted = PER_SESSION * WANTED_SESSIONS
        lines.append(f"  hint: raise the hard limit of open files to {wanted} (LimitNOFILE= of systemd, limits.conf)")
    for probe in diagnosis.runtimes:
        lines.append(f"{probe.runtime}: {'available' if probe.available else 'not available'}")
        lines += [f"  gives {gift}" for gift in probe.gives]
        for what, mend in probe.missing:
            lines.append(f"  missing: {what}")
            if mend:
                lines.append(f"  hint: {mend}")
    names = [f"{interpreter.language} {interpreter.version}" for interpreter in diagnosis.interpreters]
    lines.append(f"images: {', '.join(names) or 'none: no interpreter in /usr/bin'}")
    lines += [f"  no image of {path}: {why}" for path, why in diagnosis.refused]
    return "\n".join(lines)
