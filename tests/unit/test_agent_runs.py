"""The life of a run, decided without I/O."""

import msgspec
import pytest

from roost.agent.runs import Acceptance, Ended, Kind, ProtocolBreachError, Run, admit, apply, run_end
from roost.wire.runs import RunSpec, RunState, RunStatus

NOON = 1_795_500_000.0


def a_run(*kinds: Kind) -> Run:
    """A run that has seen these events."""
    run = Run(1, Acceptance(run_id="r", code="1+1", mode="query", echo=True, at=NOON))
    for kind in kinds:
        data = admit(run, kind, PAYLOADS[kind]) if kind is not Kind.INPUT else {"prompt": 1, "text": "x"}
        apply(run, kind, data, NOON)
    return run


PAYLOADS = {
    Kind.STDOUT: b"out",
    Kind.STARTED: b'{"state_lost": false}',
    Kind.PROMPT: b'{"prompt": 1, "text": "? ", "password": false}',
    Kind.RESULT: b'{"text": "2"}',
    Kind.END: b'{"status": "ok", "exit_code": 0, "cpu_s": 0.1}',
}


def test_a_run_goes_from_accepted_to_ended() -> None:
    states = []
    run = a_run()
    for kind in (Kind.STARTED, Kind.PROMPT):
        states.append(run.state)
        apply(run, kind, admit(run, kind, PAYLOADS[kind]), NOON)
    states.append(run.state)
    apply(run, Kind.INPUT, {"prompt": 1, "text": "x"}, NOON)
    states.append(run.state)
    apply(run, Kind.END, admit(run, Kind.END, PAYLOADS[Kind.END]), NOON)

    assert states == [RunState.ACCEPTED, RunState.RUNNING, RunState.WAITING, RunState.RUNNING]
    assert run.state is RunState.ENDED
    assert run.last_seq == 4


@pytest.mark.parametrize(
    ("seen", "kind", "payload"),
    [
        ((), Kind.STDOUT, b"early"),
        ((), Kind.END, PAYLOADS[Kind.END]),
        ((Kind.STARTED,), Kind.STARTED, PAYLOADS[Kind.STARTED]),
        ((Kind.STARTED,), Kind.STDOUT, b""),
        ((Kind.STARTED,), Kind.STDOUT, b"x" * 65537),
        ((Kind.STARTED,), Kind.RESULT, b'{"text": 2}'),
        ((Kind.STARTED,), Kind.RESULT, b"[" * 100_000),
        ((Kind.STARTED,), Kind.DISPLAY, b'{"mime": {"text/plain": 2}}'),
        ((Kind.STARTED,), Kind.DISPLAY, b'{"mime": {}, "display_id": ""}'),
        ((Kind.STARTED,), Kind.DISPLAY, b'{"mime": {}, "display_id": "%s"}' % (b"a" * 257)),
        ((Kind.STARTED,), Kind.DISPLAY, b'{"mime": {}, "update": 1}'),
        ((Kind.STARTED,), Kind.ERROR, b'{"name": "E", "value": "", "traceback": [], "frames": [{"line": 1}]}'),
        ((Kind.STARTED,), Kind.PROMPT, b'{"prompt": 2, "text": ""}'),
        ((Kind.STARTED,), Kind.ACCEPTED, b"{}"),
        ((Kind.STARTED,), Kind.INPUT, b'{"prompt": 1, "text": "forged"}'),
        ((Kind.STARTED, Kind.PROMPT), Kind.PROMPT, b'{"prompt": 2, "text": ""}'),
        ((Kind.STARTED, Kind.END), Kind.STDOUT, b"late"),
        ((Kind.STARTED, Kind.END), Kind.END, PAYLOADS[Kind.END]),
        ((Kind.STARTED,), Kind.END, b'{"status": "fine", "exit_code": 0}'),
        ((Kind.STARTED,), Kind.END, b'{"status": "sandbox-lost"'),
    ],
)
def test_a_frame_that_may_not_come_is_a_breach(seen: tuple[Kind, ...], kind: Kind, payload: bytes) -> None:
    run = a_run(*seen)

    with pytest.raises(ProtocolBreachError):
        admit(run, kind, payload)


def test_a_run_that_waits_may_be_dequeued() -> None:
    run = a_run()
    payload = b'{"status": "interrupted", "exit_code": 130, "dequeued": true}'

    assert admit(run, Kind.END, payload).dequeued


def test_only_the_cgroup_says_memory_limit() -> None:
    killed = Ended(status=RunStatus.KERNEL_DIED, exit_code=137, signal=9)
    exited = Ended(status=RunStatus.KERNEL_DIED, exit_code=137)
    codes = []
    for ended, oom_killed in ((killed, True), (killed, False), (exited, False), (exited, True)):
        end = run_end(
            a_run(Kind.STARTED),
            ended,
            wall_s=1.0,
            peak_bytes=90,
            limit_bytes=100,
            oom_killed=oom_killed,
            escalated=False,
        )
        assert end.reason is not None
        codes.append(end.reason.code)

    assert codes == ["memory-limit", "kernel-signalled", "kernel-exited", "kernel-exited"]


def test_the_same_code_and_mode_is_the_same_run() -> None:
    run = a_run()

    assert run.is_same(RunSpec(run_id="r", code="1+1"))
    assert not run.is_same(RunSpec(run_id="r", code="1+2"))
    assert not run.is_same(RunSpec(run_id="r", code="1+1", mode="batch"))


def test_a_summary_survives_the_wire() -> None:
    summary = a_run(Kind.STARTED, Kind.PROMPT).summary()

    assert msgspec.json.decode(msgspec.json.encode(summary), type=type(summary)) == summary
    assert summary.prompt == 1
