# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.mentions_checkpoint import (
    LONGEST_CONFIGURATION,
    mentions_checkpoint,
)


@pytest.mark.parametrize(
    ("where", "args", "expected"),
    [
        ("", ["--lr", "1"], False),
        ("", ["--init=${CKPT_PATH}"], True),
        ("train.py", [], True),
        ("parts/model.py", [], True),  # which the script imports
        ("evaluate.py", [], False),  # another script
        ("conf/model.yaml", [], True),
        ("pyproject.toml", [], True),
        ("README.md", [], False),
        ("missing.json", [], False),
    ],
)
def test_who_says_what_the_checkpoint_is_for(tmp_path: Path, where: str, args: list[str], expected: bool) -> None:
    texts = {"train.py": "from parts import model", "parts/model.py": "", "evaluate.py": "", "conf/model.yaml": ""}
    texts |= {"pyproject.toml": "", "README.md": ""}
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + ("\n# CKPT_PATH" if name == where else ""))
    files = {*texts, "missing.json"}
    assert mentions_checkpoint(tmp_path, "train.py", [tmp_path], files, args) is expected


def test_of_a_long_file_the_beginning_counts(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "data.json").write_text(" " * LONGEST_CONFIGURATION + "CKPT_PATH")
    assert not mentions_checkpoint(tmp_path, "train.py", [tmp_path], {"train.py", "data.json"}, [])
