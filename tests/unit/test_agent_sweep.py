"""Removing a folder in which somebody else still writes a last word."""

import os
from pathlib import Path

import pytest

from roost.agent.sweep import remove_tree


def test_a_file_that_is_renamed_between_list_and_removal_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sandbox"
    folder.mkdir()
    (folder / "exit.json").touch()
    list_now = os.listdir
    stale = [["exit.json.keeper"]]
    monkeypatch.setattr(os, "listdir", lambda top: stale.pop() if stale else list_now(top))

    remove_tree(folder)

    assert not folder.exists()


def test_a_file_that_comes_after_the_last_look_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sandbox"
    folder.mkdir()
    (folder / "exit.json").touch()
    list_now = os.listdir
    stale: list[list[str]] = [[]]
    monkeypatch.setattr(os, "listdir", lambda top: stale.pop() if stale else list_now(top))

    remove_tree(folder)

    assert not folder.exists()
