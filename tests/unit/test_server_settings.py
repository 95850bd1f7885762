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


@pytest.mark.parametrize(
    "setting",
    [
        "insecure_http = 'maybe'",
        "overcommit_cpu = 0",
        "overcommit_mem = 'nan'",
        "port = 70000",
        "color = 'red'",
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, setting: str) -> None:
    (tmp_path / "roost.toml").write_text(setting)

    with pytest.raises(InvalidParameters, match=setting.partition(" ")[0]):
        load_settings({"data_dir": tmp_path}, environ={})


def test_the_file_in_the_data_folder_counts_and_a_named_one_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "roost.toml").write_text("port = 8080")

    assert load_settings({"data_dir": tmp_path}, environ={}).port == 8080
    (tmp_path / "broken.toml").write_text("port =")
    with pytest.raises(InvalidParameters, match="cannot be read"):
        load_settings({"data_dir": tmp_path}, environ={}, file=tmp_path / "broken.toml")
    with pytest.raises(InvalidParameters, match="there is no file"):
        load_settings({"data_dir": tmp_path}, environ={}, file=tmp_path / "other.toml")
