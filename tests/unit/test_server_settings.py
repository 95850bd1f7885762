from pathlib import Path

import pytest

from roost.server.domain.sessions import TRANSITIONS, check_transition
from roost.server.settings import load_settings
from roost.wire.errors import Conflict, InvalidParameters
from roost.wire.sessions import SessionState


def test_flags_outweigh_environment_and_environment_outweighs_the_file(tmp_path: Path) -> None:
    file = tmp_path / "roost.toml"
    file.write_text('port = 1\nengine = "ray"\ndata_dir = "/a"\n')

    settings = load_settings({"port": 3, "host": None}, {"ROOST_PORT": "2", "ROOST_DATA_DIR": "/b"}, file)

    assert (settings.port, settings.engine, settings.data_dir) == (3, "ray", Path("/b"))


def test_plain_http_beyond_loopback_must_be_asked_for() -> None:
    with pytest.raises(InvalidParameters):
        load_settings({"host": "0.0.0.0"}, {})
    assert load_settings({"host": "0.0.0.0", "insecure_http": True}, {}).host == "0.0.0.0"


def test_every_state_is_in_the_table_and_the_dead_stay_dead() -> None:
    assert set(TRANSITIONS) == set(SessionState)
    for state in SessionState:
        assert state.is_live == bool(TRANSITIONS[state])
    with pytest.raises(Conflict):
        check_transition(SessionState.TERMINATED, SessionState.RUNNING)
