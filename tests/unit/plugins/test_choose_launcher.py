# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import ast
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.plan_job import make_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import fit
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.imports import MOST_BYTES
from user_options import run_options

FIELD = Path(__file__).parents[2] / "field"

LIGHTNING, CLI, FABRIC = "uses Lightning's Trainer", "uses LightningCLI", "uses Fabric"
DISTRIBUTED = "uses torch.distributed"
SPAWN = "uses torch.multiprocessing to start its processes itself"
PLAIN = "the script uses no Trainer, no Fabric and no torch.distributed"
CASES = {
    "trainer.py": ("lightning", f"trainer.py {LIGHTNING}"),
    "trainer_alone.py": ("lightning", f"trainer_alone.py {LIGHTNING}"),
    "cli.py": ("lightning", f"cli.py {CLI}"),
    "mixed.py": ("lightning", f"mixed.py {LIGHTNING}"),
    "configured.py": ("lightning", f"configured.py {LIGHTNING}"),
    "fabric_run.py": ("torchrun", f"fabric_run.py {FABRIC}"),
    "fabric_launch.py": ("torchrun", f"fabric_launch.py {FABRIC}"),
    "reads_rank.py": ("torchrun", f"reads_rank.py {DISTRIBUTED}"),
    "two_gpus.py": ("torchrun", f"two_gpus.py {DISTRIBUTED}"),
    "per_node.py": ("python", "per_node.py uses torch.distributed with NODE_RANK for its rank"),
    "shards.py": ("torchrun", "shards.py uses torch and RANK"),
    "transformers_trainer.py": ("torchrun", "transformers_trainer.py uses the Trainer of Transformers"),
    "with_accelerate.py": ("torchrun", "with_accelerate.py uses Accelerate"),
    "with_deepspeed.py": ("torchrun", "with_deepspeed.py uses DeepSpeed"),
    "project/start.py": ("torchrun", f"project/training/ranks.py {DISTRIBUTED}"),
    "one_machine.py": ("python", PLAIN),
    "asks_only.py": ("python", PLAIN),
    "no_torch.py": ("python", PLAIN),
    "accelerate/train.py": ("torchrun", "accelerate/train.py uses Accelerate"),
    "configurator/train.py": ("torchrun", f"configurator/train.py {DISTRIBUTED}"),
    "fabric/train.py": ("torchrun", f"fabric/train.py {FABRIC}"),
    "lightning-trainer/train.py": ("lightning", f"lightning-trainer/train.py {LIGHTNING}"),
    "lightning-cli/train.py": ("lightning", f"lightning-cli/train.py {CLI}"),
    "spawns/train.py": ("python", f"spawns/train.py {SPAWN}"),
    "spawns_alone.py": ("python", f"spawns_alone.py {SPAWN}"),
    "transformers/train.py": ("torchrun", "transformers/train.py uses the Trainer of Transformers"),
}


def test_every_habit_has_its_launcher() -> None:
    """The launcher follows from what a script, or a module of the project that it imports, uses."""
    found = {str(path.relative_to(FIELD)): fit(FIELD, str(path.relative_to(FIELD))) for path in FIELD.rglob("*.py")}
    assert {script: (found[script].launcher, found[script].reason) for script in CASES} == CASES
    others = {script for script in found.keys() - CASES.keys() if found[script].reason != PLAIN}
    assert others == {"project/training/loop.py", "project/training/ranks.py"}


def test_what_does_not_travel_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import loop, other")
    (tmp_path / "loop.py").write_text("from lightning import Trainer")
    (tmp_path / "other.py").write_text("import accelerate\naccelerate.Accelerator()")
    assert fit(tmp_path, "train.py").launcher == "lightning"
    assert fit(tmp_path, "train.py", files={"train.py", "other.py"}).launcher == "torchrun"


@pytest.mark.parametrize(
    ("text", "launcher"),
    [
        ("from torch import distributed as d\nd.init_process_group()", "torchrun"),
        ("from torch.distributed import *", "torchrun"),
        ("from torch.nn.parallel import DistributedDataParallel as DDP", "torchrun"),
        ("from torch import nn\nnn.parallel.DistributedDataParallel(None)", "torchrun"),
        ("import torch\ntorch.distributed.init_process_group()", "torchrun"),
        ("import torch\nfrom os import environ\nenviron['LOCAL_RANK']", "torchrun"),
        ("import torch, os\nos.getenv('RANK')", "torchrun"),
        ("import os\nos.getenv('RANK')", "python"),  # torchrun comes with torch
        ("import trl\ntrl.SFTTrainer()", "torchrun"),
        ("import torch\ntorch.distributed.is_available()", "python"),
        ("import lightning", "python"),
        ("# from lightning import Trainer\n'import deepspeed'", "python"),
        ("import lightning as L\nL.Trainer()", "lightning"),
        ("from lightning.pytorch.trainer import Trainer", "lightning"),
        ("class Trainer: ...\nTrainer()", "python"),
        ("def (", "python"),
        ("x = '\0'", "python"),
    ],
)
def test_how_it_may_be_written(tmp_path: Path, text: str, launcher: str) -> None:
    (tmp_path / "train.py").write_text(text)
    assert fit(tmp_path, "train.py").launcher == launcher


def test_a_project_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x = [1, 2, 3]\n" * 2000
    (tmp_path / "train.py").write_text("".join(f"import m{number}\n" for number in range(200)))
    for number in range(200):
        (tmp_path / f"m{number}.py").write_text(text)
    real, read = ast.parse, list[int]()
    monkeypatch.setattr(ast, "parse", lambda source: read.append(len(source)) or real(source))
    assert fit(tmp_path, "train.py").launcher == "python"
    assert MOST_BYTES <= sum(read) < MOST_BYTES + len(text)


def test_the_choice_is_kept(tmp_path: Path) -> None:
    text = (FIELD / "reads_rank.py").read_text()
    job = make_job(run_options(tmp_path, text), {}, "")
    assert (job.launcher, job.uses, job.reason) == ("torchrun", "distributed", f"train.py {DISTRIBUTED}")
    earlier = {"launcher": "python", "script": "train.py", "project_dir": str(tmp_path / "project")}
    again = make_job(run_options(tmp_path, resume="20260101-000000-train-0000"), earlier, "x.ckpt")
    assert (again.launcher, again.uses, again.reason) == ("python", "distributed", "")
    anew = make_job(run_options(tmp_path, resume="20260101-000000-train-0000", launcher="auto"), earlier, "x.ckpt")
    assert (anew.launcher, anew.reason) == ("torchrun", f"train.py {DISTRIBUTED}")


def test_devices_go_with_torchrun_however_it_was_chosen(tmp_path: Path) -> None:
    assert make_job(run_options(tmp_path, (FIELD / "reads_rank.py").read_text(), devices="2"), {}, "").devices == 2
    for name, ending in (
        ("trainer.py", f"lightning (train.py {LIGHTNING}) the script's Trainer(devices=...) decides"),
        ("one_machine.py", f"python ({PLAIN}) there is one per node"),
    ):
        with pytest.raises(JobError) as caught:
            make_job(run_options(tmp_path, (FIELD / name).read_text(), devices="2"), {}, "")
        assert str(caught.value) == f"devices is 2, but only launcher=torchrun takes it; with launcher={ending}"
