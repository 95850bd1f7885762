"""The data that all layers share."""

import pytest

from roost.wire.errors import RoostError, error_classes
from roost.wire.ids import RUN_ID, SESSION_NAME, new_run_id
from roost.wire.sessions import SessionState
from roost.wire.versions import ACCEPTED_VERSIONS, CLIENT_VERSION, SERVER_VERSION, parse_version


@pytest.mark.parametrize("name", ["abcd", "class-7", "a.b-c_d", "x" * 64])
def test_good_session_names_match(name: str) -> None:
    assert SESSION_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["abc", "x" * 65, "-abc", "abc-", "a b c", "äbcd", "abcd\n"])
def test_bad_session_names_do_not_match(name: str) -> None:
    assert SESSION_NAME.fullmatch(name) is None


def test_our_own_run_ids_are_valid_run_ids() -> None:
    assert RUN_ID.fullmatch(new_run_id())


def test_versions_compare_as_pairs_and_are_accepted_in_order() -> None:
    pairs = [parse_version(version) for version in ACCEPTED_VERSIONS]

    assert pairs == sorted(pairs)
    assert ACCEPTED_VERSIONS[-1] == SERVER_VERSION
    assert CLIENT_VERSION in ACCEPTED_VERSIONS


@pytest.mark.parametrize("text", ["", "6.20210815", "v6", "v6.2021", "v6.20210815x"])
def test_text_that_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an API version"):
        parse_version(text)


def test_every_error_has_a_code_and_a_sentence_of_its_own() -> None:
    classes = [cls for cls in error_classes() if cls.__module__ == RoostError.__module__]

    assert len({cls.title() for cls in classes}) == len(classes)
    assert len({cls.code for cls in classes}) == len(classes)


def test_an_error_says_its_title_when_nothing_more_is_known() -> None:
    class Lost(RoostError):
        """It is lost.

        More for the reader of the code."""

    assert str(Lost()) == "It is lost"


def test_dead_sessions_are_not_live() -> None:
    dead = {state for state in SessionState if not state.is_live}

    assert dead == {SessionState.TERMINATED, SessionState.CANCELLED}
