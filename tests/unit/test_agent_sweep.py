"""Removing a sandbox's folder while its keeper still writes there."""

import os
from pathlib import Path

import pytest

from roost.agent.sweep import remove_tree


def test_a_folder_goes_although_its_keeper_writes_the_exit_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sandbox"
    folder.mkdir()
    listdir = os.listdir
    steps = iter(
        [
            lambda: (folder / "exit.json.keeper").touch(),
            lambda: (folder / "exit.json.keeper").rename(folder / "exit.json"),
            lambda: None,
            lambda: (folder / "exit.json.keeper").touch(),
        ]
    )

    def listdir_between_two_steps_of_the_keeper(descriptor: int) -> list[str]:
        next(steps, lambda: None)()
        names = listdir(descriptor)
        next(steps, lambda: None)()
        return names

    monkeypatch.setattr(os, "listdir", listdir_between_two_steps_of_the_keeper)
    remove_tree(folder)

    assert next(steps, None) is None
    assert not folder.exists()
