# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A training that was killed and went on is the training that was not, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import lightning_checkpoint
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import verify_checkpoint
from train_nodes import result, run_nodes

STEPS_PER_EPOCH = 13  # 1,259 digits in batches of 96


def last(directory: Path) -> Path:
    return directory / "checkpoints" / "last.ckpt"


def assert_same_bits(first: object, second: object, path: str = "checkpoint") -> None:
    """Compare what checkpoints hold, tensors bit by bit."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for name in first:
            assert_same_bits(first[name], second[name], f"{path}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same_bits(one, other, f"{path}[{number}]")
    else:
        assert first == second, path


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_and_resumed_is_never_interrupted(tmp_path: Path, world_size: int):
    whole = [tmp_path / f"whole-{rank}" for rank in range(world_size)]
    killed = [tmp_path / f"killed-{rank}" for rank in range(world_size)]
    resumed = [tmp_path / f"resumed-{rank}" for rank in range(world_size)]
    epochs = ("--max-epochs", "3")

    uninterrupted = result(run_nodes(whole, *epochs)[0])

    (output, *_) = run_nodes(killed, *epochs, killed_at=STEPS_PER_EPOCH + 6)
    assert "epoch 1 of 3" in output and "epoch 2 of 3" not in output
    assert not any(last(directory).exists() for directory in killed[1:])  # it is rank 0's only

    for directory in resumed:  # as the launcher does
        last(directory).parent.mkdir(parents=True)
        shutil.copy(last(killed[0]), last(directory))
    (output, *_) = run_nodes(resumed, *epochs, checkpoint="checkpoints/last.ckpt")
    assert "epoch 1 of 3" not in output and "epoch 2 of 3" in output
    assert "Warning" not in (resumed[0] / "log").read_text()

    assert result(output)["train_loss"] == uninterrupted["train_loss"]
    assert result(output)["test_accuracy"] == uninterrupted["test_accuracy"]
    first, second = (torch.load(last(directories[0]), weights_only=True) for directories in (whole, resumed))
    assert first["global_step"] == 3 * STEPS_PER_EPOCH
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert_same_bits(first[part], second[part], part)


def test_the_launchers_checkpoint_is_preferred(tmp_path: Path):
    run_nodes([tmp_path / "a"], "--max-epochs", "2")
    run_nodes([tmp_path / "b"], "--max-epochs", "1")
    shutil.copy(last(tmp_path / "a"), tmp_path / "b" / "given.ckpt")
    (output,) = run_nodes([tmp_path / "b"], "--max-epochs", "3", checkpoint="given.ckpt")
    assert "epoch 2 of" not in output and "epoch 3 of 3" in output


def test_the_agent_reads_what_lightning_writes(tmp_path: Path):
    run_nodes([tmp_path / "node"], "--max-epochs", "2")
    path = last(tmp_path / "node")
    content = path.read_bytes()

    def look(data: bytes) -> int:
        path.write_bytes(data)
        with open(path, "rb") as file:
            archive = lightning_checkpoint.open_archive(file)
            step = lightning_checkpoint.find_step(archive)
            verify_checkpoint.check_parts(archive)
        return step

    for length in range(0, len(content), len(content) // 50):
        with pytest.raises(lightning_checkpoint.Unfit, match=r"is (truncated|empty)|not in torch's zip format"):
            look(content[:length])
    assert look(content) == 2 * STEPS_PER_EPOCH
    weight = torch.load(path, weights_only=True)["state_dict"]["net.6.weight"]
    flipped = bytearray(content)
    flipped[content.index(weight.numpy().tobytes()) + 100] ^= 1
    with pytest.raises(lightning_checkpoint.Unfit, match=r"^has a damaged part data/\d+$"):
        look(bytes(flipped))
    torch.load(path, weights_only=True)  # torch itself does not notice
