"""The Trainer of Transformers, with a model of a few numbers, that goes on from CKPT_PATH."""

import gc
import os

import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments


class Line(PreTrainedModel):
    """A line."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 1)
        self.post_init()

    def forward(self, x, labels=None):
        """Return a loss."""
        return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}


data = [{"x": torch.ones(2), "labels": torch.ones(())} for _sample in range(40)]
arguments = TrainingArguments(
    output_dir="out",
    max_steps=20,
    save_steps=10,
    per_device_train_batch_size=2,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model=Line(PretrainedConfig()), args=arguments, train_dataset=data)


class Says(TrainerCallback):
    """Says where it begins."""

    def on_train_begin(self, args, state, control, **_more):
        """Say it."""
        place = f"{args.process_index} of {args.world_size}"
        print(f"{place} from step {state.global_step} to {state.max_steps}", flush=True)


trainer.add_callback(Says())
trainer.train(resume_from_checkpoint=os.environ.get("CKPT_PATH"))
del trainer  # it has the process group, and its threads: left to Python's exit, one of them may abort the process
gc.collect()
torch.distributed.destroy_process_group()
