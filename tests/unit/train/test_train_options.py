# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input ends with one sentence, before anything is written."""

import pytest
import torch
from options import parse_options

from train import Progress, build_trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-epochs", "0"], "argument --max-epochs: '0' is not a whole number of at least 1"),
        (["--max-epochs", "many"], "argument --max-epochs: 'many' is not a whole number of at least 1"),
        (["--batch-size", "1260"], "argument --batch-size: '1260' is not a whole number from 1 to 1259"),
        (["--lr", "-1"], "argument --lr: '-1' is not a number above 0"),
        (["--lr", "nan"], "argument --lr: 'nan' is not a number above 0"),
        (["--lr", "fast"], "argument --lr: 'fast' is not a number above 0"),
        (["--seed", "4294967296"], "argument --seed: '4294967296' is not a whole number from 0 to 4294967295"),
        (["--devices", "0"], "argument --devices: '0' is not a whole number of at least 1"),
        (["--num-nodes", "2"], "unrecognized arguments: --num-nodes 2"),
    ],
)
def test_bad_option(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        parse_options(arguments)
    assert ending.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert error.endswith(f"error: {message}")


def test_batch_that_the_ranks_cannot_share(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_TRAINER_NUM_NODES", "5")
    with pytest.raises(SystemExit) as ending:
        build_trainer(parse_options(["--accelerator", "cpu"]), Progress())
    assert str(ending.value) == (
        "train.py: a batch of 96 samples cannot be shared equally by 5 ranks; "
        "give --batch-size a multiple of 5, such as 95"
    )
    assert not list(tmp_path.iterdir())


def test_gpu_that_is_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # of which Lightning asks, also where there is a GPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ending:
        build_trainer(parse_options(["--accelerator", "gpu"]), Progress())
    assert str(ending.value).startswith("train.py: --accelerator or --devices asks for what this node lacks: ")
    assert not list(tmp_path.iterdir())
