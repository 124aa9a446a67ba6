# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs of train.py, on one node and on several."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits import TEST_SIZE, load_splits
from train_nodes import result, run_nodes

from train import Classifier

SCRIPT = Path(__file__).parents[3] / "train" / "train.py"


def checkpoint(directory: Path) -> dict:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_parameters(first: dict, second: dict) -> None:
    torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=1e-4, atol=1e-5)


def train_loss(directory: Path) -> float:
    with open(directory / "metrics" / "version_0" / "metrics.csv") as file:
        return next(float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"])


def test_one_step_on_two_ranks_is_one_step_on_one(tmp_path: Path):
    one, head, peer = tmp_path / "one", tmp_path / "head", tmp_path / "peer"
    step = ["--max-epochs", "1", "--batch-size", "1258"]  # all but one of the training digits
    run_nodes([one], *step)
    run_nodes([head, peer], *step)
    first, second = checkpoint(one), checkpoint(head)
    assert first["global_step"] == second["global_step"] == 1
    assert train_loss(head) == pytest.approx(train_loss(one), rel=1e-5)
    assert_same_parameters(first, second)
    for adam in (first, second):  # after one step Adam's first moment is a tenth of the gradient
        adam["gradient"] = [state["exp_avg"] * 10 for state in adam["optimizer_states"][0]["state"].values()]
    assert any(gradient.abs().max() > 0.01 for gradient in first["gradient"])
    torch.testing.assert_close(first["gradient"], second["gradient"], rtol=1e-4, atol=1e-6)


def test_run_goes_on_from_the_heads_checkpoint(tmp_path: Path):
    head, peer, whole = tmp_path / "head", tmp_path / "peer", tmp_path / "whole"
    (peer / "checkpoints").mkdir(parents=True)
    (peer / "checkpoints" / "last.ckpt").write_bytes(b"left by a job of which the head knows nothing")

    output, silence = run_nodes([head, peer], "--max-epochs", "1")
    assert result(output).items() >= {"world_size": 2, "epochs": 1}.items()
    assert "{" not in silence  # the result is rank 0's to print
    assert not (peer / "metrics").exists()

    classifier = Classifier.load_from_checkpoint(head / "checkpoints" / "last.ckpt")
    images, labels = load_splits()["test"].tensors
    with torch.no_grad():
        hits = int((classifier(images).argmax(1) == labels).sum())
    assert TEST_SIZE % 2 == 1  # so that ranks made even by repeated samples would be noticed
    assert result(output)["test_accuracy"] == round(hits / TEST_SIZE, 4)

    output, _ = run_nodes([head, peer], "--max-epochs", "2")
    assert "epoch 1 of" not in output and "epoch 2 of 2" in output
    assert result(output)["epochs"] == 2

    run_nodes([whole], "--max-epochs", "2")
    assert_same_parameters(checkpoint(head), checkpoint(whole))


def test_script_runs_alone_and_stops_where_it_is_done(tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ""}  # and nothing from a launcher
    command = [sys.executable, SCRIPT, "--max-epochs", "10"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr and "site-packages" not in run.stderr
    scores = result(run.stdout)
    assert scores.keys() == {
        *("test_accuracy", "train_loss", "world_size", "epochs", "train_seconds", "samples_per_second")
    }
    assert scores["world_size"] == 1
    assert scores["test_accuracy"] >= 0.95
    assert scores["samples_per_second"] > 0

    [again] = run_nodes([tmp_path], "--max-epochs", "10")
    assert result(again) == scores | {"train_seconds": 0.0, "samples_per_second": 0}
