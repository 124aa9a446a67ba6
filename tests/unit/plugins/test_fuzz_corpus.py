# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What fuzzing has found to reach different code (``make fuzz``), once more, without atheris."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
SPEC = importlib.util.spec_from_file_location("targets", FUZZ / "targets.py")
assert SPEC and SPEC.loader
targets = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(targets)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus(name: str) -> None:
    with zipfile.ZipFile(FUZZ / "corpus" / f"{name}.zip") as corpus:
        inputs = [corpus.read(one) for one in corpus.namelist()]
    assert inputs
    for one in inputs:
        targets.TARGETS[name](one)
